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
"""The order of an epoch's pairs: of the epoch, resumable, shared by processes."""

from __future__ import annotations

import pytest
from torch.utils.data import Dataset

from scripts.training.distributed_samplers import EpochSampler


class Numbers(Dataset):
    def __len__(self) -> int:
        return 10


def test_the_sampler_visits_all_pairs_in_an_order_of_the_epoch() -> None:
    sampler = EpochSampler(Numbers(), seed=3)
    sampler.set_epoch(1)
    first = list(sampler)
    assert sorted(first) == list(range(10, 20))
    assert first == list(sampler)
    sampler.set_epoch(2)
    second = list(sampler)
    assert sorted(second) == list(range(20, 30))
    assert [n - 10 for n in second] != first


def test_a_resumed_epoch_goes_on_where_it_was_and_only_once() -> None:
    sampler = EpochSampler(Numbers(), seed=3)
    sampler.set_epoch(4)
    whole = list(sampler)
    sampler.skip_once(6)
    assert list(sampler) == whole[6:]
    assert list(sampler) == whole


def test_processes_share_the_order_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = EpochSampler(Numbers(), seed=3)
    parts = []
    for rank in range(2):
        monkeypatch.setattr("ignite.distributed.get_world_size", lambda: 2)
        monkeypatch.setattr("ignite.distributed.get_rank", lambda rank=rank: rank)
        parts.append(list(EpochSampler(Numbers(), seed=3)))
    assert [n for step in zip(*parts, strict=True) for n in step] == list(whole)
