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
"""Wrong seeds and devices end in one line."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from scripts.utils.errors import InputError
from scripts.utils.seeding import check_device, set_seed


@pytest.mark.parametrize("seed", ["abc", 1.5, -1, 2**32, True, None])
def test_a_seed_is_a_whole_number(seed: Any) -> None:
    with pytest.raises(InputError, match="seed must be a whole number from 0 to 4294967295"):
        set_seed(seed)


@pytest.mark.parametrize("seed", [0, 7, 2**32 - 1])
def test_a_seed_repeats_all_random_numbers(seed: int) -> None:
    found = []
    for _ in range(2):
        set_seed(seed)
        found.append((torch.rand(3).tolist(), np.random.rand(3).tolist()))
    assert found[0] == found[1]


@pytest.mark.parametrize("device", ["foo", "cuda:x", "cuda:99", 3.5])
def test_a_device_that_is_not_there_is_refused(device: Any) -> None:
    with pytest.raises(InputError, match=r"^device '.*' can't be used \(.*; give cpu, cuda or cuda:N$"):
        check_device(device)


def test_a_device_that_is_there_is_returned() -> None:
    assert check_device("cpu") == check_device(torch.device("cpu")) == torch.device("cpu")
