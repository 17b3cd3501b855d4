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
"""The header of an image in any format: geometry, type, and warnings for the user."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Header:
    """Geometry and type of an image file or DICOM series; one entry per axis in file order (i, j, k, ...).

    The geometry is the one that the voxels are used with. Where a file contradicts itself, ``warnings`` states which
    reading was chosen.
    """

    shape: tuple[int, ...]
    spacing: tuple[float, ...]
    """mm; above zero."""
    direction: np.ndarray
    """(N, N), columns are the axes, LPS."""
    origin: tuple[float, ...]
    """Center of the first voxel, LPS mm."""
    components: int
    """Values per voxel."""
    dtype: str = ""
    """numpy's name of the type of the values, after the file's scaling; empty where it is not known."""
    xform_code: int = 1
    """The world of the geometry by NIfTI's codes (1 scanner, 2 aligned, 3 Talairach, 4 MNI, 5 template, 0 unknown)."""
    warnings: tuple[str, ...] = ()
    """One line each, with the file's name and what is at stake; they go to the log and into report.json."""
