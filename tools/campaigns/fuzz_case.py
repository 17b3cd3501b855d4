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
"""What a case of the fuzzing is: a file, and what must come of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

SHAPE = (5, 6, 4)
AFFINE = np.array([[-1.5, 0, 0, 10.0], [0, -1.2, 0, -20.0], [0, 0, 2.0, 5.0], [0, 0, 0, 1]])  # RAS
NRRD = """NRRD0004
type: {type}
dimension: 3
space: left-posterior-superior
sizes: {sizes}
space directions: (1.5,0,0) (0,1.2,0) (0,0,2)
kinds: domain domain domain
endian: little
encoding: {encoding}
space origin: (-10,20,5)
"""
MHA = """ObjectType = Image
NDims = 3
BinaryData = True
BinaryDataByteOrderMSB = False
CompressedData = False
TransformMatrix = 1 0 0 0 1 0 0 0 1
Offset = -10 20 5
ElementSpacing = 1.5 1.2 2
DimSize = {sizes}
ElementType = {type}
ElementDataFile = LOCAL
"""


@dataclass(frozen=True)
class Case:
    """A file, and what must come of it: ``values`` (I, J, K), or a refusal; neither where both may be right."""

    path: Path
    values: np.ndarray | None = None
    affine: np.ndarray | None = None
    refused: bool = False
    modality: str = "mr"


Make = Callable[[np.random.Generator, Path], Case]


def voxels(random: np.random.Generator, dtype: Any = np.int16) -> np.ndarray:
    """Return voxels of which no two planes are alike."""
    return random.integers(0, 100, SHAPE).astype(dtype)
