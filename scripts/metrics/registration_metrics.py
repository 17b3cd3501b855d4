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
"""How good a registration is: Dice of labels, distance of landmarks, folding, forward-backward inconsistency."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from scripts.geometry.coordinates import extent, folding_percentage, identity_grid, triple_product
from scripts.geometry.grid_transform import GridTransform, slabs
from scripts.utils.tensors import plain

COUNTED = 2**16  # labels below it are counted without sorting the voxels


def common_labels(fixed: np.ndarray, moving: np.ndarray) -> list[int]:
    """Return the label values that both images have, in order, without the background 0."""
    return sorted((_counts(fixed).keys() & _counts(moving).keys()) - {0})


def dice_per_label(fixed: np.ndarray, warped: np.ndarray, labels: Iterable[int]) -> dict[int, float]:
    """Return ``2 |F and W| / (|F| + |W|)`` for each label.

    Equal to ``monai.metrics.compute_dice``, which needs a one-hot copy of the images: too large at native resolution
    with a hundred labels.

    Args:
        fixed: label image (I, J, K).
        warped: the moving label on the same grid.
        labels: values to score; one that neither image has gets 0.
    """
    if fixed.shape != warped.shape:
        raise ValueError(f"dice_per_label: fixed and warped must have one shape, got {fixed.shape} and {warped.shape}")
    overlap = _counts(fixed[fixed == warped])
    in_fixed, in_warped = _counts(fixed), _counts(warped)
    return {
        label: 2 * overlap[label] / (in_fixed[label] + in_warped[label]) if label in overlap else 0.0
        for label in labels
    }


def _counts(values: np.ndarray) -> dict[int, int]:
    """Return how often each value occurs."""
    whole = values.astype(np.int64).ravel()
    if whole.size and whole.min() >= 0 and whole.max() < COUNTED:
        counts = np.bincount(whole)
        return {int(label): int(counts[label]) for label in np.flatnonzero(counts)}
    labels, numbers = np.unique(whole, return_counts=True)
    return dict(zip(labels.tolist(), numbers.tolist(), strict=True))


def target_registration_error_mm(
    forward_transform: GridTransform, fixed_points_ras_mm: Tensor, moving_points_ras_mm: Tensor
) -> Tensor:
    """Return for each landmark the distance of forward(fixed point) from the moving point, (N,) mm.

    Args:
        forward_transform: fixed point -> moving point.
        fixed_points_ras_mm: (N, 3).
        moving_points_ras_mm: (N, 3), in the same order.
    """
    if fixed_points_ras_mm.shape != moving_points_ras_mm.shape:
        raise ValueError(
            "target_registration_error_mm: both images need the same landmarks in the same order, got"
            f" {len(fixed_points_ras_mm)} fixed and {len(moving_points_ras_mm)} moving points"
        )
    return torch.linalg.vector_norm(forward_transform(fixed_points_ras_mm) - moving_points_ras_mm, dim=1)


def inconsistency_mm(forward_transform: GridTransform, inverse_transform: GridTransform) -> float:
    """Return the mean distance of inverse(forward(x)) from x over the grid of the forward ddf (every second voxel), mm.

    Points that the forward transform carries out of the moving image's field of view are left out: the inverse
    transform knows nothing there. NaN if no point stays inside.
    """
    total, count = 0.0, 0
    for part in forward_transform.grid_points(step=2).split(2**20):
        carried = forward_transform(part)
        inside = inverse_transform.reaches(carried)
        gaps = torch.linalg.vector_norm(inverse_transform(carried[inside]) - part[inside], dim=1)
        total, count = total + float(gaps.sum()), count + len(gaps)
    return total / count if count else float("nan")


def folding(transform: GridTransform) -> float:
    """Return the percentage of cells of its grid that the ddf turns inside out."""
    ddf = transform.ddf[None]
    points = identity_grid(transform.shape, dtype=ddf.dtype) + ddf / extent(ddf)
    return float(folding_percentage(points))


def jacobian_determinant(displacement_mm: Tensor, affine_ras: Tensor) -> Tensor:
    """Return the determinant of a transform's Jacobian in the world: its local change of volume, fixed -> moving.

    1 keeps the volume, below 1 the moving image is smaller there, 0 and below is folded. Central differences over the
    two neighboring voxels (one-sided at the border), as ITK's DisplacementFieldJacobianDeterminantFilter, whose version
    5.4 leaves out the grid's direction, which counts here.

    Args:
        displacement_mm: (3, I, J, K), RAS mm, at least 2 voxels along each axis.
        affine_ras: (4, 4) of its grid.

    Returns:
        (I, J, K) float32, i fastest in memory.
    """
    field = plain(displacement_mm)
    axes = plain(affine_ras).double()[:3, :3]
    volume = float(torch.linalg.det(axes))
    step = axes.float().view(3, 3, 1, 1, 1)
    size_k = field.shape[3]
    determinant = torch.empty(tuple(reversed(field.shape[1:])), dtype=torch.float32).permute(2, 1, 0)
    for first, last in slabs(field.shape[1:]):
        low, high = max(first - 1, 0), min(last + 1, size_k)
        slopes = torch.gradient(field[..., low:high], dim=(1, 2, 3))
        # column a: where one step along voxel axis a leads in the moving world, mm
        columns = [(step[:, axis] + slope)[..., first - low : last - low] for axis, slope in enumerate(slopes)]
        determinant[..., first:last] = triple_product(columns[0], columns[1], columns[2], dim=0)[0] / volume
    return determinant
