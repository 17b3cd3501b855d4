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
"""The order of pairs in an epoch, shared out over processes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import ignite.distributed as idist
from torch.utils.data import Sampler
from torch.utils.data.distributed import DistributedSampler


class EpochSampler(DistributedSampler):
    """Yield pair numbers ``epoch * length + n`` in a random order that follows from seed and epoch.

    Process r of R takes every R-th number of the same order, so that R processes with one pair each make the steps of
    one process with R pairs. MONAI's engines call ``set_epoch``.

    Args:
        dataset: :class:`scripts.training.pair_dataset.PairDataset`.
        seed: of the order.
    """

    def __init__(self, dataset: Any, seed: int = 0) -> None:
        super().__init__(
            dataset,
            num_replicas=idist.get_world_size(),
            rank=idist.get_rank(),
            shuffle=True,
            seed=seed,
            drop_last=False,
        )
        self._skipped = 0

    def skip_once(self, count: int) -> None:
        """Leave out the first ``count`` pairs of this process in the next epoch only: they were done before a stop."""
        self._skipped = int(count)

    def __iter__(self) -> Iterator[int]:
        """Yield this process's numbers."""
        numbers = list(super().__iter__())[self._skipped :]
        self._skipped = 0
        return iter([self.epoch * len(self.dataset) + number for number in numbers])  # type: ignore[arg-type]


class SharedSampler(Sampler):
    """Yield each pair number once, shared out over processes without repeats: for validation.

    With fewer pairs than processes all of them take all pairs, which leaves means as they are: a process without any
    would skip the evaluation, and the others would wait for it forever.

    Args:
        dataset: anything with a length, 0 too.
    """

    def __init__(self, dataset: Any) -> None:
        processes = idist.get_world_size()
        is_enough = len(dataset) >= processes
        self.numbers = range(idist.get_rank(), len(dataset), processes) if is_enough else range(len(dataset))

    def __len__(self) -> int:
        return len(self.numbers)

    def __iter__(self) -> Iterator[int]:
        """Yield this process's numbers."""
        return iter(self.numbers)
