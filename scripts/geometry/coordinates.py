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
"""Coordinates of one grid: identity grid, sampling, voxel <-> normalized, Jacobian.

Every other module interpolates through this one: the only ``grid_sample`` and ``align_corners`` live here.

Spaces (docs/conventions.md):
    voxel: index along each tensor axis, 0 .. size - 1 at the voxel centers.
    normalized: voxel / (size - 1), so 0 is the center of the first voxel and 1 the center of the last one.

Component ``c`` of a point or of a displacement belongs to tensor axis ``c`` (D, H, W).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

Transform = Callable[[Tensor], Tensor]
"""A spatial transform, normalized points (B, 3, ...) of the fixed grid -> normalized points of the moving grid."""
_MOST_SLABS = 8  # each costs a copy of the values in the backward pass
_LEAST_SLAB = 50_000  # numbers; smaller ones are not worth the copies


def identity_grid(
    shape: Sequence[int], device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> Tensor:
    """Return the normalized coordinates of all voxel centers of a grid.

    Args:
        shape: grid size (D, H, W), at least 2 along each axis.
        device: where the grid is made.
        dtype: floating type of the grid.

    Returns:
        points (1, 3, D, H, W), normalized.
    """
    return _identity_grid(int(shape[0]), int(shape[1]), int(shape[2]), torch.empty(0, device=device, dtype=dtype))


def _identity_grid(depth: int, height: int, width: int, like: Tensor) -> Tensor:
    """Scriptable core of :func:`identity_grid`; ``like`` gives device and type."""
    axis_d = torch.arange(depth, device=like.device, dtype=like.dtype) / (depth - 1)
    axis_h = torch.arange(height, device=like.device, dtype=like.dtype) / (height - 1)
    axis_w = torch.arange(width, device=like.device, dtype=like.dtype) / (width - 1)
    grid_d = axis_d.view(depth, 1, 1).expand(depth, height, width)
    grid_h = axis_h.view(height, 1).expand(depth, height, width)
    grid_w = axis_w.expand(depth, height, width)
    return torch.stack([grid_d, grid_h, grid_w]).unsqueeze(0)


def identity_grid_like(image: Tensor) -> Tensor:
    """Return the identity grid (1, 3, D, H, W), normalized, of an image (B, C, D, H, W). Scriptable."""
    return _identity_grid(image.shape[2], image.shape[3], image.shape[4], image)


def sample(values: Tensor, points: Tensor, padding: str = "border", mode: str = "bilinear") -> Tensor:
    """Interpolate a grid of values at normalized points.

    Args:
        values: (B, C, D, H, W), its voxel centers span the unit cube. A batch of one serves every batch of points.
        points: (B, 3, d, h, w), normalized coordinates of the grid of ``values``.
        padding: "border" (nearest value inside) or "zeros" (zero outside, fading over the last voxel).
        mode: "bilinear" (trilinear in 3-D) or "nearest".

    Returns:
        (B, C, d, h, w).
    """
    if values.shape[0] == 1 and points.shape[0] > 1:
        values = values.expand(points.shape[0], -1, -1, -1, -1)
    if torch.jit.is_scripting() or torch.compiler.is_compiling():
        return _grid_sample(values, _last_axis_first(points), padding, mode)
    return _sample_in_parallel(values, points, padding, mode)


def _last_axis_first(points: Tensor) -> Tensor:
    """Return points (B, 3, d, h, w) as (B, d, h, w, 3), the component of the last tensor axis first."""
    return points.permute(0, 2, 3, 4, 1).flip(-1)  # flipped last: the gradient's way back is faster


def _grid_sample(values: Tensor, grid: Tensor, padding: str, mode: str) -> Tensor:
    """Sample at the normalized points of :func:`_last_axis_first`, which are overwritten."""
    grid = grid.mul_(2.0).sub_(1.0)
    return F.grid_sample(values, grid, mode=mode, padding_mode=padding, align_corners=True)


@torch.jit.unused
def _sample_in_parallel(values: Tensor, points: Tensor, padding: str, mode: str) -> Tensor:
    """Sample slabs of the points as a batch: on a CPU, ``grid_sample`` uses one processor for each element of it."""
    batch, depth = points.shape[0], points.shape[2]
    slabs = min(torch.get_num_threads() // max(batch, 1), _MOST_SLABS, depth)
    alone = points.device.type != "cpu" or slabs < 2 or points[0].numel() < _LEAST_SLAB * slabs
    if alone or torch.jit.is_tracing():
        return _grid_sample(values, _last_axis_first(points), padding, mode)
    size = -(-depth // slabs)
    slabs = -(-depth // size)
    starts = [min(n * size, depth - size) for n in range(slabs)]  # the last one may overlap: all have one size
    found = []
    for own_values, own_points in zip(values.split(1), points, strict=True):
        flipped = torch.cat([own_points[axis, start : start + size] for start in starts for axis in (2, 1, 0)])
        grid = flipped.view(slabs, 3, size, *points.shape[3:]).permute(0, 2, 3, 4, 1)
        sampled = _grid_sample(own_values.expand(slabs, -1, -1, -1, -1), grid, padding, mode)
        new = [sampled[n : n + 1, :, n * size - start :] for n, start in enumerate(starts)]
        found.append(torch.cat(new, dim=2))
    return torch.cat(found) if batch > 1 else found[0]


def transform_from_displacement(displacement: Tensor) -> Transform:
    """Wrap a displacement field as a function on points: p(x) = x + d(x).

    Args:
        displacement: (B, 3, D, H, W), normalized units, on a grid whose voxel centers span the unit cube.

    Returns:
        the transform; the field is sampled linearly, with the border value outside.
    """

    def transform(points: Tensor) -> Tensor:
        return points + sample(displacement, points)

    return transform


def identity_transform(points: Tensor) -> Tensor:
    """Return the points unchanged."""
    return points


def extent(displacement: Tensor) -> Tensor:
    """Return size - 1 of the grid per axis, shaped (1, 3, 1, 1, 1), to turn normalized displacements into voxels."""
    size = torch.tensor(
        [displacement.shape[2] - 1, displacement.shape[3] - 1, displacement.shape[4] - 1],
        device=displacement.device,
        dtype=displacement.dtype,
    )
    return size.view(1, 3, 1, 1, 1)


def to_ddf(transform: Transform, shape: Sequence[int], device: torch.device | str = "cpu") -> Tensor:
    """Evaluate a transform on a grid and return its dense displacement field.

    Args:
        transform: function on normalized points.
        shape: grid (D, H, W).
        device: where the transform lives.

    Returns:
        ddf (B, 3, D, H, W) in voxels of that grid.
    """
    grid = identity_grid(shape, device)
    displacement = transform(grid) - grid
    return displacement * extent(displacement)


def from_ddf(ddf: Tensor) -> Transform:
    """Return the transform on normalized points whose dense displacement field in voxels is ``ddf`` (B, 3, D, H, W)."""
    return transform_from_displacement(ddf / extent(ddf))


def jacobian_determinant(points: Tensor) -> Tensor:
    """Determinant of the Jacobian of a transform given by its values on the identity grid, by finite differences.

    The differences share one corner of each 2x2x2 cell, as in the reference's ``flips``
    (icon_registration.losses); the determinant is 1 for the identity.

    Args:
        points: (B, 3, D, H, W), normalized, the transform evaluated on :func:`identity_grid`.

    Returns:
        (B, 1, D - 1, H - 1, W - 1).
    """
    corner = points[:, :, 1:, 1:, 1:]
    along_d = corner - points[:, :, :-1, 1:, 1:]
    along_h = corner - points[:, :, 1:, :-1, 1:]
    along_w = corner - points[:, :, 1:, 1:, :-1]
    return triple_product(along_d, along_h, along_w, dim=1) * torch.prod(extent(points))


def triple_product(first: Tensor, second: Tensor, third: Tensor, dim: int) -> Tensor:
    """Return (first x second) . third along a dimension of size 3, which is kept with size 1.

    Written out: torch.cross uses one processor only.
    """
    a, b, c = (vectors.split(1, dim) for vectors in (first, second, third))
    volume = (a[1] * b[2] - a[2] * b[1]) * c[0]
    volume = volume + (a[2] * b[0] - a[0] * b[2]) * c[1]
    return volume + (a[0] * b[1] - a[1] * b[0]) * c[2]


def folding_percentage(points: Tensor) -> Tensor:
    """Percentage of grid cells with a negative Jacobian determinant; ``points`` as in :func:`jacobian_determinant`."""
    return 100.0 * (jacobian_determinant(points) < 0).float().mean()


def resample_grid(values: Tensor, shape: Sequence[int]) -> Tensor:
    """Evaluate (B, C, D, H, W) on another grid over the same unit cube (the end voxel centers coincide), trilinear.

    One matrix product an axis, which is faster than ``F.interpolate``, above all in the backward pass.
    """
    sizes = zip(values.shape[2:], shape, strict=True)
    return along_axes(values, *(_interpolation_matrix(n, int(m), values.device, values.dtype) for n, m in sizes))


def along_axes(image: Tensor, along_d: Tensor, along_h: Tensor, along_w: Tensor) -> Tensor:
    """Apply one matrix (new size, size) along each spatial axis of (B, C, D, H, W)."""
    mixed = torch.matmul(along_h, torch.matmul(image, along_w.T))
    planes = torch.matmul(along_d, mixed.flatten(3))
    return planes.reshape(*planes.shape[:3], *mixed.shape[3:])


def interpolation_matrix(size: int, target: int) -> Tensor:
    """Return the (target, size) matrix, float64, of linear interpolation between grids of equal end voxel centers."""
    unit = torch.eye(size, dtype=torch.float64)
    return F.interpolate(unit[None], size=target, mode="linear", align_corners=True)[0].T.contiguous()


@lru_cache(maxsize=64)
def _interpolation_matrix(size: int, target: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    with torch.inference_mode(False):  # it outlives the call
        return interpolation_matrix(size, target).to(device=device, dtype=dtype)


def resample_like(values: Tensor, image: Tensor) -> Tensor:
    """Return :func:`resample_grid` for the grid of an image (B, C, D, H, W); scriptable."""
    size = [image.shape[2], image.shape[3], image.shape[4]]
    return F.interpolate(values, size=size, mode="trilinear", align_corners=True)


def shift_with_border(image: Tensor, axis: int, voxels: int) -> Tensor:
    """Return image(x + voxels along a spatial axis (0, 1, 2)), the border value repeated outside; (B, C, D, H, W)."""
    size = image.shape[axis + 2]
    index = torch.arange(voxels, size + voxels, device=image.device).clamp(0, size - 1)
    return image.index_select(axis + 2, index)
