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
"""From a displacement field on a grid over the field of view to a transform of the world, RAS mm.

Geometry: a point of the fixed world becomes a voxel of the ddf's grid; there the ddf is added, which gives a
voxel of the like grid over the moving image; that becomes a point of the moving world:

    forward(x) = moving_affine @ (v + ddf(v)),   v = inverse(fixed_affine) @ x
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from scripts.geometry.coordinates import sample
from scripts.utils.tensors import plain

SLAB_VOXELS = 2**20  # voxels worked on at a time: bounds the memory beside the result
POINTS_AT_A_TIME = 2**20


@dataclass(frozen=True, eq=False)
class GridTransform:
    """A transform of the world given by a displacement field on a grid: fixed point -> moving point.

    For the inverse transform, read "moving" for "fixed" and the other way round.

    Args:
        ddf: (3, D, H, W), voxels of the grid; sampled on the fixed grid, pointing into the moving grid.
        fixed_affine: (4, 4), fixed voxel (d, h, w) -> world RAS mm.
        moving_affine: (4, 4), moving voxel (d, h, w) -> world RAS mm.

    Raises:
        ValueError: a shape is wrong.
    """

    ddf: Tensor
    fixed_affine: Tensor
    moving_affine: Tensor

    def __post_init__(self) -> None:
        ddf = plain(self.ddf)
        if ddf.ndim != 4 or ddf.shape[0] != 3:
            raise ValueError(f"GridTransform: ddf must be (3, D, H, W), got {tuple(ddf.shape)}; remove the batch axis")
        object.__setattr__(self, "ddf", ddf if ddf.dtype == torch.float64 else ddf.float())
        for name in ("fixed_affine", "moving_affine"):
            affine = plain(getattr(self, name)).double()
            if affine.shape != (4, 4):
                raise ValueError(f"GridTransform: {name} must be (4, 4), got {tuple(affine.shape)}")
            object.__setattr__(self, name, affine)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Size (D, H, W) of the grid."""
        return (self.ddf.shape[1], self.ddf.shape[2], self.ddf.shape[3])

    def __call__(self, points_ras_mm: Tensor) -> Tensor:
        """Carry points, as ITK's DisplacementFieldTransform does: linear between voxels, no displacement outside.

        Args:
            points_ras_mm: (N, 3), world RAS mm.

        Returns:
            (N, 3), world RAS mm, float64.
        """
        to_voxel, ddf = torch.linalg.inv(self.fixed_affine), self.ddf.double()
        carried = [
            _apply(self.moving_affine, _displaced(ddf, _apply(to_voxel, part)))
            for part in plain(points_ras_mm).double().split(POINTS_AT_A_TIME)
        ]
        return torch.cat(carried)

    def without_displacement(self) -> GridTransform:
        """Return the start of a registration: field of view onto field of view."""
        return GridTransform(self.ddf.new_zeros(()).expand(self.ddf.shape), self.fixed_affine, self.moving_affine)

    def on_fixed_grid(self) -> GridTransform:
        """Return the deformation alone, the fields of view taken as one: fixed world -> fixed world."""
        return GridTransform(self.ddf, self.fixed_affine, self.fixed_affine)

    def reaches(self, points_ras_mm: Tensor) -> Tensor:
        """Return for each point (N, 3), RAS mm, whether the field says anything there: inside its grid, (N,) bool."""
        voxels = _apply(torch.linalg.inv(self.fixed_affine), plain(points_ras_mm).double())
        return ((voxels >= -0.5) & (voxels < torch.tensor(self.shape) - 0.5)).all(dim=1)

    def grid_points(self, step: int) -> Tensor:
        """Return the world points (N, 3), RAS mm, of the fixed grid's voxel centers, of every ``step``-th per axis."""
        voxels = torch.cartesian_prod(*(torch.arange(0, n, step, dtype=torch.float64) for n in self.shape))
        return _apply(self.fixed_affine, voxels)


def _apply(affine: Tensor, points: Tensor) -> Tensor:
    return points @ affine[:3, :3].T + affine[:3, 3]


def _displaced(ddf: Tensor, voxels: Tensor) -> Tensor:
    """Return voxels (N, 3) + ddf(voxels)."""
    points = voxels.T.reshape(1, 3, -1, 1, 1)
    return voxels + _displacement_at(ddf, points).reshape(3, -1).T


def _displacement_at(ddf: Tensor, voxels: Tensor) -> Tensor:
    """Sample ddf (3, D, H, W) at voxels (B, 3, ...): linear, border value in the outer half voxel, zero beyond."""
    size = torch.tensor(ddf.shape[1:], dtype=voxels.dtype).view(1, 3, 1, 1, 1)
    inside = ((voxels >= -0.5) & (voxels < size - 0.5)).all(dim=1, keepdim=True)
    normalized = (voxels / (size - 1)).to(ddf.dtype)
    return sample(ddf[None], normalized, padding="border") * inside


def displacement_field(transform: GridTransform, shape: Sequence[int], affine_ras: Tensor) -> Tensor:
    """Evaluate a transform on any grid, as displacements of the world.

    Args:
        transform: fixed point -> moving point.
        shape: (I, J, K) of the grid, usually the fixed image's own.
        affine_ras: (4, 4), voxel (i, j, k) of that grid -> world RAS mm.

    Returns:
        transform(x) - x, (3, I, J, K) float32, mm along the RAS axes. In memory i runs fastest, as in files.
    """
    size_i, size_j, size_k = (int(n) for n in shape)
    affine = plain(affine_ras).double()
    to_voxel = torch.linalg.inv(transform.fixed_affine) @ affine
    # transform(x) - x = (moving_affine - fixed_affine) @ v + moving_affine @ ddf(v): no difference of large numbers
    start = (transform.moving_affine - transform.fixed_affine) @ to_voxel
    turn = transform.moving_affine[:3, :3].to(transform.ddf.dtype)
    field = torch.empty((3, size_k, size_j, size_i), dtype=torch.float32)
    for first, last in slabs(shape):
        voxels = lattice(to_voxel, (size_i, size_j), first, last)
        displacement = _displacement_at(transform.ddf, voxels)
        world = torch.einsum("ab,kbcji->kacji", turn, displacement) + lattice(start, (size_i, size_j), first, last)
        field[:, first:last] = world.squeeze(2).transpose(0, 1)
    return field.permute(0, 3, 2, 1)


def slabs(shape: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield first and last + 1 along the last axis of (I, J, K), so that a slab has about a million voxels."""
    step = max(1, SLAB_VOXELS // (int(shape[0]) * int(shape[1])))
    for first in range(0, int(shape[2]), step):
        yield first, min(first + step, int(shape[2]))


def lattice(matrix: Tensor, size_ij: tuple[int, int], first: int, last: int) -> Tensor:
    """Return matrix @ (i, j, k, 1) for a slab of voxels, (last - first, 3, 1, J, I), of the matrix's type.

    The slices stand on the batch axis: interpolation uses all processors that way.
    """
    i, j, k = torch.arange(size_ij[0]), torch.arange(size_ij[1]), torch.arange(first, last)
    along_i, along_j, along_k, origin = (matrix[:3, column].view(3, 1, 1, 1) for column in range(4))
    return origin + k.view(-1, 1, 1, 1, 1) * along_k + j.view(-1, 1) * along_j + i * along_i
