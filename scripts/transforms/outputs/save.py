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
"""Write the outputs of a case that are switched on, and its report."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from monai.transforms import Transform

from scripts.data.case import Case, CaseFiles
from scripts.data.cases import PATHS
from scripts.data.report import REPORT_NAME, build_report
from scripts.transforms.outputs.base import KINDS, Output
from scripts.transforms.outputs.files import is_result, remove_results
from scripts.utils.errors import InputError
from scripts.utils.strict_json import strict, write_report
from scripts.utils.suggestions import did_you_mean

logger = logging.getLogger(__name__)


class SaveOutputsd(Transform):
    """Write the outputs that are switched on into ``case_dir``, and report.json last; add ``written`` and ``report``.

    Results of an earlier run are removed first. Without ``case_dir`` nothing is written, and the report is still made.
    Outputs run side by side, since compressing a file keeps one processor busy only; those that run alone go first.
    When one fails, the others are still finished before its error is raised.

    Args:
        save: switches by the ``name`` of an output; the files are listed in this order.
        settings: options to report.
        weights: ``name`` and ``sha256`` of the network's weights.
        seed: of the random numbers.
        workers: how many outputs at a time.

    Raises:
        InputError: an unknown name.
    """

    def __init__(
        self,
        save: Mapping[str, bool],
        settings: Mapping[str, Any] | None = None,
        weights: Mapping[str, Any] | None = None,
        seed: int | None = None,
        workers: int = 2,
    ) -> None:
        self.outputs, self.workers = switched_on(save), workers
        self.settings, self.weights, self.seed = dict(settings or {}), dict(weights or {}), seed

    def __call__(self, data: Case) -> Case:
        """Return the case with the names of its files and its report."""
        folder = Path(data["case_dir"]) if "case_dir" in data else None
        if folder is not None:
            remove_results(folder)
            data = {**data, "written": write_outputs(self.outputs, data, folder, self.workers)}
        report = strict(build_report(data, self.settings, self.weights, self.seed))
        if folder is not None:
            write_report(report, folder / REPORT_NAME)
        return {**data, "report": report}


def switched_on(save: Mapping[str, bool]) -> tuple[Output, ...]:
    """Return the outputs of the group ``save`` that are on, in its order.

    Raises:
        InputError: an unknown name, or a value that is neither True nor False.
    """
    known = list(dict.fromkeys(kind.name for kind in KINDS))
    for name, is_on in save.items():
        if name not in known:
            raise InputError(f"save: unknown output '{name}'{did_you_mean(name, known)}; known: {', '.join(known)}")
        if not isinstance(is_on, bool):
            raise InputError(f"save: {name} must be True or False, got {is_on!r}")
    return tuple(kind() for name, is_on in save.items() if is_on for kind in KINDS if kind.name == name)


def check_outputs(cases: Sequence[CaseFiles], save: Mapping[str, bool]) -> None:
    """Check for all cases that the outputs can be made and overwrite no input, before any work.

    Raises:
        InputError: naming the case, if there are several.
    """
    outputs = switched_on(save)
    for case in cases:
        try:
            check_outputs_of_case(case, outputs)
        except InputError as error:
            if len(cases) == 1:
                raise
            raise type(error)(f"case '{case['case']}': {error}") from error


def check_outputs_of_case(case: CaseFiles, outputs: Sequence[Output]) -> None:
    """Check one case; see :func:`check_outputs`."""
    if "case_dir" not in case:
        return  # nothing is written
    for output in outputs:
        output.check(case)
    folder = Path(case["case_dir"]).resolve()
    for key in PATHS:
        file = case.get(key)
        path = Path(file).resolve() if isinstance(file, str) else None
        if path is not None and path.parent == folder and is_result(path.name):
            raise InputError(f"{key} '{file}' would be overwritten by the result; give another output_dir")


def write_outputs(outputs: Sequence[Output], data: Case, folder: Path, workers: int = 2) -> tuple[str, ...]:
    """Write outputs into a folder and return the names of the files, in the order of ``outputs``."""
    alone = [_write(output, data, folder) for output in outputs if output.runs_alone]
    with ThreadPoolExecutor(workers) as pool:
        running = [pool.submit(_write, output, data, folder) for output in outputs if not output.runs_alone]
    done = [future.result() for future in running]  # all have ended: none is cancelled by the error of another
    return tuple(name for names in (*alone, *done) for name in names)


def _write(output: Output, data: Case, folder: Path) -> list[str]:
    names = list(output.write(data, folder))
    for name in names:
        logger.debug("wrote %s", folder / name)
        if not any(fnmatchcase(name, pattern) for pattern in output.files):
            raise ValueError(f"{type(output).__name__} wrote '{name}', which its files do not declare: {output.files}")
    return names
