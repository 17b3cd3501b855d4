# Copyright (c) uniGradICON bundle contributors
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#     http://www.apache.org/licenses/LICENSE-2.0
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""An evaluation run: which cases are left to do, what one costs, and the tables at the end."""

from __future__ import annotations

import json
import logging
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events

from scripts.data.case import CaseFiles
from scripts.data.report import is_done
from scripts.evaluation.plots import draw_box_plots
from scripts.evaluation.tables import Run, read_run, run_of_reports, write_tables
from scripts.utils.errors import InputError
from scripts.utils.memory import reset_peak_memory
from scripts.utils.paths import from_home, is_absent
from scripts.utils.strict_json import write_report

logger = logging.getLogger(__name__)


def require_data(datalist: Any, how_to_get: str | None) -> None:
    """Refuse to start without the list of a data set, saying how to get it.

    Raises:
        InputError: ``how_to_get`` is given, and the list is not there.
    """
    if how_to_get and (is_absent(datalist) or not from_home(str(datalist)).is_file()):
        raise InputError(
            f"datalist: '{datalist}' does not exist; {how_to_get}; then give its list with --datalist FILE"
        )


def remaining_cases(
    cases: Sequence[CaseFiles],
    settings: Mapping[str, Any],
    weights: Mapping[str, Any],
    resume: bool = True,
    seed: int | None = None,
    rank: int = 0,
    processes: int = 1,
) -> list[CaseFiles]:
    """Return the cases of this process that have no report of the same files, settings, weights, seed and version.

    Args:
        cases: of :func:`scripts.data.cases.load_cases`.
        settings: options of this run, as reports hold them.
        weights: name and hash, likewise.
        resume: False does all cases anew.
        seed: of the random numbers.
        rank: of this process.
        processes: how many share the work; each takes every ``processes``-th case.
    """
    share = list(cases)[rank::processes]
    left = [case for case in share if not (resume and is_done(case, settings, weights, seed))]
    if len(left) < len(share):
        logger.info(
            "%d of %d cases are done already; --resume False does them anew", len(share) - len(left), len(share)
        )
    return left


class MeasurePeakMemory:
    """Forget the peak of the memory before each case, so that reports tell that of their own."""

    def attach(self, engine: Engine) -> None:
        """Attach to an evaluator."""
        engine.add_event_handler(Events.GET_BATCH_STARTED, reset_peak_memory)


def write_evaluation(
    cases: Sequence[CaseFiles],
    output_dir: str,
    method: str,
    dataset_name: str | None = None,
    paper: Mapping[str, Any] | None = None,
    rank: int = 0,
) -> Run | None:
    """Write the tables and plots of all cases that have a report; the first process does, the others return None.

    Files in ``output_dir``: ``summary.json``, ``pairs.csv``, ``labels.csv``, ``landmarks.csv``, ``table.md``,
    ``table.tex``, ``box_plots.png``.

    Args:
        cases: all of them, of all processes.
        output_dir: of the run.
        method: what registered.
        dataset_name: of the table's columns.
        paper: figures of the paper to print beside: ``metric`` (dice or tre_mm), ``before``, ``zero_shot``, ``with_io``
            and ``syn``, Dice in percent.
        rank: of this process.
    """
    if rank > 0:
        return None
    reports = []
    for case in cases:
        path = Path(case["case_dir"]) / "report.json"
        if path.is_file():
            reports.append(json.loads(path.read_text(encoding="utf-8")))
    if len(reports) < len(cases):
        logger.warning(
            "%d of %d cases have no report; the tables leave them out", len(cases) - len(reports), len(cases)
        )
    if not reports:
        raise InputError(f"output_dir '{output_dir}': no case has a report, there is nothing to sum up")
    run = run_of_reports(reports, method, dataset_name or "data", dict(paper or {}), machine())
    folder = from_home(str(output_dir))
    write_report(run._asdict(), folder / "summary.json")
    run = read_run(folder)  # what others will read, numbers that are not finite as None
    write_tables([run], folder)
    draw_box_plots([run], folder / "box_plots.png")
    print((folder / "table.md").read_text(encoding="utf-8"), end="")
    return run


def machine() -> str:
    """Return what the figures of time and memory were measured on."""
    import torch

    name = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            name = next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    gpu = f", {torch.cuda.get_device_name(0)}" if torch.cuda.is_available() else ""
    return f"{name}, {torch.get_num_threads()} threads{gpu}"
