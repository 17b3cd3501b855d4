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
"""Composition of displacement fields: phi(x) = p1(p2(...pn(x))), at any points or at the voxels of a grid."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from scripts.geometry.coordinates import (
    Transform,
    identity_grid_like,
    resample_like,
    sample,
)


def apply_displacements(fields: list[Tensor], points: Tensor) -> Tensor:
    """Return p1(p2(...pn(points))) with pk(x) = x + fields[k - 1](x). Scriptable.

    Args:
        fields: each (B, 3, D, H, W), normalized units, on a grid of its own whose voxel centers span the unit cube;
            sampled linearly, border value outside.
        points: (B or 1, 3, d, h, w), normalized.

    Returns:
        (B, 3, d, h, w), normalized.
    """
    for n in range(len(fields)):
        field = fields[len(fields) - 1 - n]
        if points.shape[0] == 1 and field.shape[0] > 1:
            points = points.expand(field.shape[0], -1, -1, -1, -1)
        points = sample(field, points).add_(points)
    return points


def apply_on_grid(fields: list[Tensor], image: Tensor) -> Tensor:
    """Return :func:`apply_displacements` at all voxel centers of an image (B, C, D, H, W). Scriptable.

    The last field is evaluated on a regular grid: as it is where that is its own, else by the cheaper interpolation
    between grids.
    """
    last = fields[len(fields) - 1]
    if last.shape[2:] != image.shape[2:]:
        last = resample_like(last, image)
    return apply_displacements(fields[: len(fields) - 1], identity_grid_like(image) + last)


class CompositeTransform:
    """A :data:`~scripts.geometry.coordinates.Transform` made of displacement fields: phi(x) = p1(p2(...pn(x))).

    Args:
        fields: see :func:`apply_displacements`.
    """

    def __init__(self, fields: Sequence[Tensor]) -> None:
        self.fields = list(fields)

    def __call__(self, points: Tensor) -> Tensor:
        """Map points (B or 1, 3, d, h, w), normalized."""
        return apply_displacements(self.fields, points)

    def on_grid(self, image: Tensor) -> Tensor:
        """Map all voxel centers of an image (B, C, D, H, W); returns (B, 3, D, H, W), normalized."""
        return apply_on_grid(self.fields, image) if self.fields else identity_grid_like(image)


def transform_on_grid(transform: Transform, image: Tensor) -> Tensor:
    """Evaluate any transform at all voxel centers of an image, the fast way where the transform knows one.

    Args:
        transform: function on normalized points.
        image: (B, C, D, H, W); its grid, device and type are used.

    Returns:
        (B or 1, 3, D, H, W), normalized.
    """
    if isinstance(transform, CompositeTransform):
        return transform.on_grid(image)
    return transform(identity_grid_like(image))
