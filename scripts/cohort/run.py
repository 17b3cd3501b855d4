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
"""Running a cohort: what is done stays done, a pair that fails leaves its error and the others go on.

The order of work is that of the list. The next pair is read while the device computes (``ahead``).
"""

from __future__ import annotations

import json
import logging
import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

from ignite.engine import Engine, Events
from monai.transforms import Transform
from torch.utils.data import IterableDataset
from tqdm import tqdm

from scripts.data.case import Case, CaseFiles
from scripts.data.report import ERROR_NAME, REPORT_NAME, input_paths, is_done
from scripts.transforms.outputs.files import remove_results, sweep_results
from scripts.utils.errors import InputError, describe_memory_error, find_input_error, quiet_engine
from scripts.utils.itk_modules import load_itk_modules
from scripts.utils.output_lock import alone_in
from scripts.utils.pipelining import InBackground
from scripts.utils.strict_json import write_report
from scripts.utils.versions import versions

logger = logging.getLogger(__name__)


def record_failure(case: CaseFiles | Case, error: BaseException) -> None:
    """Replace a case's results by its error.json: one line for people, what it was made of, and the version."""
    known = find_input_error(error) or describe_memory_error(error)
    line = " ".join(str(known or f"{type(error).__name__}: {error}").split())
    logger.error("case '%s' failed: %s", case["case"], line)
    content = {"case": case["case"], "error": line, "inputs": input_paths(case), "versions": versions()}
    folder = Path(case["case_dir"])
    try:
        remove_results(folder)
        write_report(content, folder / ERROR_NAME)
    except (InputError, OSError) as reason:  # the others go on all the same
        logger.error("case '%s': its error can't be written: %s", case["case"], reason)


class IsolateFailures(Transform):
    """Apply a transform to a case; what it raises becomes the case's error.json.

    Args:
        transform: takes and returns a case.
    """

    def __init__(self, transform: Any) -> None:
        self.transform = transform

    def __call__(self, data: Case) -> Case:
        """Return the result, or the case as it came."""
        try:
            return cast(Case, self.transform(data))
        except Exception as error:
            record_failure(data, error)
            return data


class CaseQueue(IterableDataset):
    """Hand out the cases that are left, each once; those that can't be read leave an error.json and are passed over.

    Iterating again goes on where the last iteration stopped.

    Args:
        cases: to be done.
        transform: reading and preprocessing.
        ahead: read the next case in a thread while the last one is worked on.
    """

    def __init__(self, cases: Sequence[CaseFiles], transform: Any, ahead: bool = True) -> None:
        self.transform, self.ahead = transform, ahead
        self._left = deque(cases)
        self._pool = ThreadPoolExecutor(1, "read-ahead")

    @property
    def left(self) -> int:
        """Number of cases that were not handed out yet."""
        return len(self._left)

    def __iter__(self) -> Iterator[Any]:
        """Yield preprocessed cases."""
        load_itk_modules()
        following: Future[Any] | None = None
        while self._left:
            case = self._left[0]
            loading = following or self._pool.submit(self._load, case)
            try:
                item = loading.result()
            except Exception as error:
                item = None
                record_failure(case, error)
            self._left.popleft()
            following = self._pool.submit(self._load, self._left[0]) if self.ahead and self._left else None
            if item is not None:
                yield item

    def _load(self, case: CaseFiles) -> Any:
        if "error" in case:
            raise InputError(str(case["error"]))
        return self.transform(case.copy())


def remaining_cases(
    cases: Sequence[CaseFiles],
    settings: Mapping[str, Any],
    weights: Mapping[str, Any],
    seed: int | None = None,
    resume: bool = True,
    rank: int = 0,
    processes: int = 1,
) -> list[CaseFiles]:
    """Return this process's cases that are not done yet.

    Done is a case with a report of the same registration (files, their sizes and times of change, settings, weights,
    seed, version) and all of its results; a failure removes them.

    Args:
        cases: all of the cohort.
        settings: options of this run, as reports hold them.
        weights: name and hash, likewise.
        seed: likewise.
        resume: False does all anew.
        rank: of this process.
        processes: how many share the work; each takes every ``processes``-th case.
    """
    share = list(cases)[rank::processes]
    left = [
        case for case in share if not (resume and "error" not in case and _is_complete(case, settings, weights, seed))
    ]
    if len(left) < len(share):
        logger.info(
            "%d of %d cases are done already; --resume False does them anew", len(share) - len(left), len(share)
        )
    return left


def _is_complete(case: CaseFiles, settings: Mapping[str, Any], weights: Mapping[str, Any], seed: int | None) -> bool:
    folder = Path(case["case_dir"])
    if not is_done(case, settings, weights, seed):
        return False
    report = json.loads((folder / REPORT_NAME).read_text(encoding="utf-8"))
    return all((folder / name).exists() for name in report["outputs"])


def run_cohort(
    evaluator: Any,
    queue: CaseQueue,
    postprocessing: InBackground,
    cases: Sequence[CaseFiles],
    output_dir: str | os.PathLike[str],
    progress: bool = True,
    rank: int = 0,
) -> None:
    """Run an evaluator over a :class:`CaseQueue` to its last case, whatever fails on the way.

    Args:
        evaluator: MONAI engine.
        queue: the dataset of its loader.
        postprocessing: its postprocessing.
        cases: of the queue.
        output_dir: of the cohort; other runs are kept out of it.
        progress: show a bar.
        rank: of this process among those that share the cases.

    Raises:
        InputError: another run works in ``output_dir``.
    """
    quiet_engine(evaluator)
    with alone_in(output_dir, rank):
        for case in cases:
            sweep_results(Path(case["case_dir"]))
        _run_all(evaluator, queue, postprocessing, len(cases), progress)


def _run_all(evaluator: Any, queue: CaseQueue, postprocessing: InBackground, count: int, progress: bool) -> None:
    bar = tqdm(total=count, unit="pair", disable=not progress)
    at_work: list[CaseFiles] = []

    def begin(engine: Engine) -> None:
        batch: Any = engine.state.batch
        at_work[:] = [{"case": batch["case"][0], "case_dir": batch["case_dir"][0]}]

    def end(engine: Engine) -> None:
        at_work.clear()
        bar.update(count - queue.left - bar.n)

    evaluator.add_event_handler(Events.GET_BATCH_COMPLETED, begin)
    evaluator.add_event_handler(Events.ITERATION_COMPLETED, end)
    try:
        while queue.left:
            try:
                evaluator.run()
            except Exception as error:
                if not at_work:
                    raise
                record_failure(at_work.pop(), error)
        bar.update(count - bar.n)
    finally:
        postprocessing.finish()
        bar.close()
