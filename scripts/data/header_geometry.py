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
"""Check that the axes of a grid are perpendicular, and measure how far two readings of a grid are apart.

An ITK image, and so every transform that is written, has axes at right angles. Headers with rounded numbers come near
enough; others are refused, since taking the axes for perpendicular would move voxels.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from scripts.utils.errors import InputFileError

MOST_SHEAR_DEGREES = 0.1  # of rounding: three digits of an oblique affine
AGREE_VOXELS = 0.1  # readings whose corners lie closer together are one
_ROUNDING_DEGREES = 1e-4  # of float32, in which headers are written; nothing is changed or said


def corners(shape: Sequence[int]) -> np.ndarray:
    """Return the voxels (8, 4), homogeneous, at the corners of a grid of ``shape`` (I, J, K)."""
    return np.array([(*ends, 1) for ends in itertools.product(*((0, max(int(n), 1) - 1) for n in shape[:3]))], float)


def corner_gap_mm(affine: np.ndarray, other: np.ndarray, shape: Sequence[int]) -> float:
    """Return the largest distance between where two affines (4, 4) put a corner of the grid, in their unit."""
    return float(np.linalg.norm((corners(shape) @ (affine - other).T)[:, :3], axis=1).max())


def shear_degrees(axes: np.ndarray) -> float:
    """Return the largest deviation of the columns of (3, 3) from right angles to each other."""
    unit = axes / np.linalg.norm(axes, axis=0)
    cosines = np.abs((unit.T @ unit)[np.triu_indices(3, 1)])
    return float(np.degrees(np.arcsin(np.clip(cosines, 0, 1))).max())


def check_axes(path: str, axes: np.ndarray, name: str) -> None:
    """Refuse axes that span no space.

    Args:
        path: file, for the message.
        axes: (3, 3), columns are the steps of i, j, k.
        name: what of the header says so.

    Raises:
        InputFileError: a step has no length, or the steps lie in one plane.
    """
    lengths = np.linalg.norm(axes, axis=0)
    if not np.isfinite(axes).all() or lengths.min() <= 0 or abs(np.linalg.det(axes / lengths)) < 1e-6:
        raise InputFileError(
            f"'{path}' has a non-invertible affine ({name}: a zero spacing, or axes in one plane); repair its header"
        )


def without_shear(path: str, affine: np.ndarray, shape: Sequence[int], name: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return an affine with perpendicular axes, and what is to be said of it.

    The nearest rotation (polar decomposition), the spacing kept, turned about the middle of the grid.

    Args:
        path: file, for messages.
        affine: (4, 4), voxel (i, j, k) -> world mm.
        shape: (I, J, K).
        name: what of the header says so.

    Raises:
        InputFileError: the axes are sheared by more than rounding does.
    """
    axes = affine[:3, :3]
    check_axes(path, axes, name)
    shear = shear_degrees(axes)
    if shear < _ROUNDING_DEGREES:
        return affine, ()
    spacing = np.linalg.norm(axes, axis=0)
    left, _, right = np.linalg.svd(axes / spacing)
    straight = affine.copy()
    straight[:3, :3] = (left @ right) * spacing
    middle = (np.array(shape[:3], float) - 1) / 2
    straight[:3, 3] += (axes - straight[:3, :3]) @ middle
    moved = corner_gap_mm(straight, affine, shape)
    if shear > MOST_SHEAR_DEGREES and moved > AGREE_VOXELS * spacing.min():
        raise InputFileError(
            f"'{path}' has sheared axes ({name}: {shear:.2g} degrees from right angles, {moved:.2g} mm at the corners);"
            " resample it to perpendicular axes, or repair its header"
        )
    if moved <= AGREE_VOXELS * spacing.min():
        return straight, ()
    return straight, (
        f"'{path}': its axes are {shear:.2g} degrees from right angles ({name}), taken for rounding: the corners are"
        f" up to {moved:.2g} mm off",
    )
