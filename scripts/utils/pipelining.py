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
"""Cohorts without waiting: the next pair is read, and the last one written, while the device computes.

MONAI's ``ThreadBuffer`` drops what is raised in its thread, and worker processes wrap it in a traceback; a wrong file
must end in its one line. Here an error comes out where its result would have.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any, Literal

from monai.transforms import Transform
from torch.utils.data import Dataset

from scripts.utils.errors import quiet_engine
from scripts.utils.itk_modules import load_itk_modules
from scripts.utils.output_lock import alone_in


class ReadAhead(Dataset):
    """Serve a dataset in order, with the next item being made in a thread.

    Args:
        dataset: of cases; making an item is reading and preprocessing.
        enabled: False makes each item when it is asked for.
    """

    def __init__(self, dataset: Any, enabled: bool = True) -> None:
        self.dataset, self.enabled = dataset, enabled
        self._pool = ThreadPoolExecutor(1, "read-ahead")
        self._next: tuple[int, Future[Any]] | None = None

    def __len__(self) -> int:
        """Return the number of cases."""
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        """Return an item, or raise what was raised when it was made."""
        if not self.enabled:
            return self.dataset[index]
        ahead, self._next = self._next, None
        item = ahead[1].result() if ahead is not None and ahead[0] == index else self.dataset[index]
        if index + 1 < len(self):
            load_itk_modules()
            self._next = (index + 1, self._pool.submit(self.dataset.__getitem__, index + 1))
        return item


class InBackground(Transform):
    """Apply a transform, for its files, in a thread, one case at a time: the next case waits for the last one's end.

    Call :meth:`finish` after the last case; :func:`run_cases` does.

    Args:
        transform: takes and returns a case.
        enabled: False applies it at once.
    """

    def __init__(self, transform: Any, enabled: bool = True) -> None:
        self.transform, self.enabled = transform, enabled
        self._pool = ThreadPoolExecutor(1, "write-behind")
        self._running: Future[Any] | None = None

    def __call__(self, data: Mapping[Any, Any]) -> Mapping[Any, Any]:
        """Return the result if it is applied at once, else the case as it is.

        Raises:
            Exception: what was raised for the case before.
        """
        if not self.enabled:
            return self.transform(data)
        self.finish()
        self._running = self._pool.submit(self._apply, data)
        return data

    def _apply(self, data: Mapping[Any, Any]) -> None:
        self.transform(data)  # the result is not kept: it is as large as a case

    def finish(self) -> None:
        """Wait for the case at hand; raise what was raised for it."""
        running, self._running = self._running, None
        if running is not None:
            running.result()


def run_cases(
    evaluator: Any,
    postprocessing: InBackground,
    output_dir: str | os.PathLike[str] | Literal[False],
    cases: int = 1,
    rank: int = 0,
) -> None:
    """Run an evaluator to the last file; when a case fails, the one before is still finished.

    Args:
        evaluator: MONAI engine over the cases.
        postprocessing: its postprocessing.
        output_dir: where results go; other runs are kept out of it. False: none are written.
        cases: how many there are; 0 does nothing, which MONAI's engines refuse.
        rank: of this process among those that share the cases.

    Raises:
        InputError: another run works in ``output_dir``.
    """
    quiet_engine(evaluator)
    with nullcontext() if output_dir is False else alone_in(output_dir, rank):
        try:
            if cases:
                evaluator.run()
        finally:
            postprocessing.finish()
