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
"""Warping volumes at their own resolution, onto the fixed image's own grid, as ITK's resampling would."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from monai.data import MetaTensor
from torch import Tensor

from scripts.geometry.coordinates import sample
from scripts.geometry.grid_transform import GridTransform, displacement_field, lattice, slabs
from scripts.utils.tensors import plain

MODES = ("linear", "nearest")
NIFTI_TYPES = {"bool": "uint8", "float16": "float32", "float128": "float64"}  # types that NIfTI or ITK lack


def warp_image(
    moving: MetaTensor,
    displacement_mm: Tensor | GridTransform,
    fixed_shape: Sequence[int],
    fixed_affine: Tensor,
    mode: str = "linear",
    default: float = 0.0,
    dtype: str = "float32",
) -> np.ndarray:
    """Resample a moving image onto a fixed grid through a transform.

    Points up to half a voxel outside the moving image's outermost centers take the nearest value, points further
    outside ``default``: the rule of ITK's resample filter.

    Args:
        moving: (1, I, J, K) with its RAS affine.
        displacement_mm: fixed point -> moving point, on the fixed grid (3, I, J, K) in RAS mm, or as a transform, which
            is then evaluated slab by slab.
        fixed_shape: (I, J, K) of the fixed grid.
        fixed_affine: (4, 4), fixed voxel -> world RAS mm.
        mode: "linear", or "nearest", which keeps values exactly (labels).
        default: value outside the moving image.
        dtype: numpy type of the result; integers are rounded and clipped to the type's range.

    Returns:
        (I, J, K) on the fixed grid, i fastest in memory.
    """
    if mode not in MODES:
        raise ValueError(f"warp_image: mode must be one of {MODES}, got {mode!r}")
    size_i, size_j, size_k = (int(n) for n in fixed_shape)
    fixed = plain(fixed_affine).double()
    to_voxel = torch.linalg.inv(plain(moving.affine).double())
    values = plain(moving)
    warped = np.empty((size_k, size_j, size_i), dtype=dtype)
    for first, last in slabs(fixed_shape):
        if isinstance(displacement_mm, GridTransform):
            slab_affine = shift_affine(fixed, (0, 0, first))
            slab = displacement_field(displacement_mm, (size_i, size_j, last - first), slab_affine)
        else:
            slab = plain(displacement_mm)[..., first:last]
        slab = slab.permute(3, 0, 2, 1).unsqueeze(2).double()  # (k, 3, 1, j, i)
        voxels = lattice(to_voxel @ fixed, (size_i, size_j), first, last)
        voxels += torch.einsum("ab,kbcji->kacji", to_voxel[:3, :3], slab)
        result = _linear(values, voxels, default) if mode == "linear" else _nearest(values, voxels, default)
        warped[first:last] = cast(result.numpy(), dtype)
    return warped.transpose(2, 1, 0)


def on_grid(
    values: Tensor, affine_ras: Tensor, shape: Sequence[int], fixed_affine: Tensor, outside: float = 0.0
) -> np.ndarray:
    """Evaluate a coarse map on a finer grid, linear.

    Args:
        values: (1, 1, D, H, W).
        affine_ras: (4, 4), its voxel (d, h, w) -> world RAS mm.
        shape: (I, J, K) of the finer grid.
        fixed_affine: (4, 4), voxel (i, j, k) of it -> world RAS mm.
        outside: value outside the map.

    Returns:
        (I, J, K) float32.
    """
    coarse = MetaTensor(values[0], affine=affine_ras)
    nowhere = torch.zeros(()).expand(3, *(int(n) for n in shape))
    return warp_image(coarse, nowhere, shape, fixed_affine, default=outside)


def shift_affine(affine: Tensor, first: Sequence[int]) -> Tensor:
    """Return the affine of the part of a grid that begins at voxel ``first``."""
    shifted = affine.clone()
    shifted[:3, 3] += affine[:3, :3] @ torch.tensor([float(n) for n in first], dtype=affine.dtype)
    return shifted


def _inside(voxels: Tensor, shape: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return the grid's size, to be broadcast over voxels (k, 3, 1, j, i), and where they are inside, (k, j, i)."""
    size = torch.tensor(list(shape), dtype=torch.float64).view(1, 3, 1, 1, 1)
    return size, ((voxels >= -0.5) & (voxels < size - 0.5)).all(dim=1).squeeze(1)


def _linear(values: Tensor, voxels: Tensor, default: float) -> Tensor:
    size, inside = _inside(voxels, values.shape[1:])
    points = (voxels / (size - 1)).float()
    warped = sample(values[None].float(), points, padding="border")[:, 0, 0]
    return warped.masked_fill_(~inside, default)


def _nearest(values: Tensor, voxels: Tensor, default: float) -> Tensor:
    # Indexing, not sampling: integers of any size stay exact, and halves round up as in ITK.
    size, inside = _inside(voxels, values.shape[1:])
    nearest = torch.floor(voxels + 0.5).clamp_min_(0.0).minimum(size - 1).long()[:, :, 0]
    warped = values[0][nearest[:, 0], nearest[:, 1], nearest[:, 2]]
    return warped.masked_fill_(~inside, default)


def cast(values: np.ndarray, dtype: str) -> np.ndarray:
    """Return values in a numpy type; for integer types rounded and clipped to the type's range."""
    kind = np.dtype(dtype)
    if kind.kind not in "iu" or values.dtype.kind in "iu":
        return values.astype(kind)
    limits = np.iinfo(kind)
    highest = float(limits.max) if kind.itemsize < 8 else np.nextafter(float(limits.max), 0.0)
    return np.clip(np.rint(values.astype(np.float64)), float(limits.min), highest).astype(kind)
