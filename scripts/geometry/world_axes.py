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
"""The two conventions of the world.

RAS, as in memory, and LPS, as ITK has it. The only place that turns one into the other.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from scripts.utils.tensors import plain

LPS_RAS = torch.diag(torch.tensor([-1.0, -1.0, 1.0, 1.0], dtype=torch.float64))  # its own inverse
SIGNS = LPS_RAS.diagonal()[:3].numpy()
"""(3,), what the coordinates of one convention are multiplied by for the other."""


def signs_to_lps(space: str) -> np.ndarray:
    """Return what coordinates (3,) in ``space``, LPS or RAS, are multiplied by for LPS, and back."""
    return np.ones(3) if space == "LPS" else SIGNS.copy()


def flip_lps_ras(points_mm: Tensor) -> Tensor:
    """Turn world points (N, 3) from LPS to RAS mm or back."""
    return plain(points_mm).double() * LPS_RAS.diagonal()[:3]
