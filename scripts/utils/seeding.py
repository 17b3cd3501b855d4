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
"""Seeds and devices that users give, checked before they are used."""

from __future__ import annotations

from typing import Any

import torch
from monai.utils import set_determinism

from scripts.utils.errors import InputError

LARGEST_SEED = 2**32 - 1  # of numpy


def set_seed(seed: Any) -> None:
    """Seed all random numbers of this process.

    Raises:
        InputError: no whole number from 0 to 4294967295.
    """
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed <= LARGEST_SEED:
        raise InputError(f"seed must be a whole number from 0 to {LARGEST_SEED}, got {seed!r}")
    set_determinism(seed=seed)


def check_device(device: Any) -> torch.device:
    """Return a device that is there.

    Raises:
        InputError: an unknown name, or a GPU that PyTorch does not find.
    """
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, TypeError, AssertionError, NotImplementedError) as error:
        raise InputError(
            f"device '{device}' can't be used ({str(error).splitlines()[0][:200]}); give cpu, cuda or cuda:N"
        ) from error
    return found
