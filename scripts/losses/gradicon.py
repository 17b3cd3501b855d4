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
"""The GradICON objective, shared by training, fine-tuning and instance optimization.

With phi the forward and psi the inverse transform (Tian et al., GradICON, CVPR 2023; uniGradICON, MICCAI 2024; the same
numbers as ``unigradicon.GradientICONSparse``):

    loss = similarity + lambda_gradicon * regularity + dice_weight * dice
    similarity = sim(moving o phi, fixed) + sim(fixed o psi, moving)
    regularity = || grad(x - phi(psi(x))) ||^2, by differences of 0.001 at jittered points on every second voxel
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from scripts.geometry.composition import transform_on_grid
from scripts.geometry.coordinates import Transform, identity_grid, identity_grid_like, jacobian_determinant, sample
from scripts.utils.errors import InputError

_STEP = 0.001  # of the finite differences, normalized units
_JITTER = 2.0  # standard deviation of the points' noise, voxels (of the last axis)
_DICE_FLOOR = 1e-6


class LossTerms(NamedTuple):
    """The terms of the objective, scalars. ``loss`` is to be minimized; the others are its parts and measures."""

    loss: Tensor
    similarity: Tensor
    """Sum of both directions, lower is better."""
    regularity: Tensor
    """GradICON, without its weight."""
    transform_magnitude: Tensor
    """Mean square of the forward displacement, normalized units."""
    folding: Tensor
    """Cells of the inverse transform with a negative Jacobian determinant, a sample's mean count."""
    dice: Tensor
    """Dice loss, sum of both directions, without its weight; 0 when it is off."""

    def as_floats(self) -> dict[str, float]:
        """Return the terms as plain numbers by name."""
        return {name: float(value.detach()) for name, value in self._asdict().items()}


class GradICONLoss(nn.Module):
    """See the module's equations.

    Args:
        similarity: (warped, target, mask) -> scalar, lower is better; of :mod:`scripts.losses.similarity`.
        lambda_gradicon: weight of the regularity.
        mass_conservation: multiply warped intensities by the Jacobian determinant (CT of the lung: mass is kept).
        dice_weight: weight of the Dice loss of the labels; 0 is off.
        require_labels: refuse a pair without common labels when ``dice_weight`` is above 0. False, for data sets of
            which some have labels: such a pair adds nothing to the Dice loss.
    """

    def __init__(
        self,
        similarity: Callable[..., Tensor],
        lambda_gradicon: float = 1.5,
        mass_conservation: bool = False,
        dice_weight: float = 0.0,
        require_labels: bool = True,
    ) -> None:
        super().__init__()
        if lambda_gradicon < 0 or dice_weight < 0:
            raise ValueError(
                "GradICONLoss: lambda_gradicon and dice_weight must not be negative,"
                f" got {lambda_gradicon} and {dice_weight}"
            )
        self.similarity = similarity
        self.lambda_gradicon = float(lambda_gradicon)
        self.mass_conservation = mass_conservation
        self.dice_weight = float(dice_weight)
        self.require_labels = require_labels

    def forward(
        self,
        forward_transform: Transform,
        inverse_transform: Transform,
        moving: Tensor,
        fixed: Tensor,
        *,
        moving_mask: Tensor | None = None,
        fixed_mask: Tensor | None = None,
        moving_label: Tensor | None = None,
        fixed_label: Tensor | None = None,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
        recompute: bool = False,
    ) -> LossTerms:
        """Return all terms for one batch.

        Args:
            forward_transform: fixed point -> moving point, normalized.
            inverse_transform: moving point -> fixed point, normalized.
            moving: (B, 1, D, H, W) in [0, 1].
            fixed: same shape.
            moving_mask: same shape; where the similarity of the warped fixed image counts.
            fixed_mask: same shape; where the similarity of the warped moving image counts.
            moving_label: same shape, integers; needed with ``dice_weight``.
            fixed_label: likewise.
            noise: standard normal numbers of :func:`jitter_shape`, instead of ``generator``.
            generator: source of the noise; the global one by default.
            recompute: compute the similarities and the regularity again in the backward pass instead of keeping what
                they need: less memory, the same gradients.

        Raises:
            ValueError: images of different shapes.
            InputError: labels that are missing or have nothing in common.
        """
        if moving.shape != fixed.shape or moving.dim() != 5:
            raise ValueError(
                "GradICONLoss: moving and fixed must have one shape (B, 1, D, H, W),"
                f" got {tuple(moving.shape)} and {tuple(fixed.shape)}"
            )
        forward_points = transform_on_grid(forward_transform, moving)
        inverse_points = transform_on_grid(inverse_transform, moving)
        compare = _recomputed(self._similarity) if recompute else self._similarity
        similarity = compare(moving, fixed, forward_points, fixed_mask)
        similarity = similarity + compare(fixed, moving, inverse_points, moving_mask)
        at = jittered_points(moving.shape[2:], noise, generator, forward_points.device, forward_points.dtype)
        measure = _recomputed(gradicon_regularity) if recompute else gradicon_regularity
        regularity = measure(forward_transform, inverse_transform, at)
        dice = torch.zeros_like(similarity)
        if self.dice_weight > 0 and moving_label is not None and fixed_label is not None:
            dice = symmetric_dice_loss(moving_label, fixed_label, forward_points, inverse_points, self.require_labels)
        elif self.dice_weight > 0 and self.require_labels:
            raise InputError("dice_weight > 0 needs moving_label and fixed_label")
        with torch.no_grad():
            magnitude = ((forward_points - identity_grid_like(moving)) ** 2).mean()
            folding = (jacobian_determinant(inverse_points) < 0).sum() / inverse_points.shape[0]
        loss = similarity + self.lambda_gradicon * regularity + self.dice_weight * dice
        return LossTerms(loss, similarity, regularity, magnitude, folding, dice)

    def _similarity(self, image: Tensor, target: Tensor, points: Tensor, mask: Tensor | None) -> Tensor:
        """Warp ``image`` with zeros outside and compare it with ``target``."""
        warped = sample(image, _batched(points, image), padding="zeros")
        if self.mass_conservation:
            # the determinant lives on cells: one fewer than voxels along each axis
            warped = warped[:, :, :-1, :-1, :-1] * jacobian_determinant(points)
            target = target[:, :, :-1, :-1, :-1]
            mask = None if mask is None else mask[:, :, :-1, :-1, :-1]
        return self.similarity(warped, target, mask)


def _recomputed(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    # the noise is an argument: nothing in the functions is random
    return partial(checkpoint, function, use_reentrant=False, preserve_rng_state=False)


def jitter_shape(shape: Sequence[int]) -> tuple[int, int, int, int, int]:
    """Return the shape (1, 3, d, h, w) of the regularity's points on a grid (D, H, W): every second voxel."""
    depth, height, width = (-(-int(n) // 2) for n in shape)
    return 1, 3, depth, height, width


def jittered_points(
    shape: Sequence[int],
    noise: Tensor | None = None,
    generator: torch.Generator | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Return every second voxel center of a grid, moved at random.

    Args:
        shape: grid (D, H, W).
        noise: standard normal numbers of :func:`jitter_shape`; drawn where None is given.
        generator: draws the noise on its own device, the same numbers for the same seed on every device of its kind.
        device: where the points are made.
        dtype: their type.

    Returns:
        (1, 3, d, h, w), normalized.
    """
    expected = jitter_shape(shape)
    if noise is None:
        source = device if generator is None else generator.device
        noise = torch.randn(expected, generator=generator, device=source)
    elif tuple(noise.shape) != expected:
        raise ValueError(f"jittered_points: expected noise of shape {expected}, got {tuple(noise.shape)}")
    grid = identity_grid(shape, device, dtype)[:, :, ::2, ::2, ::2]
    return grid + _JITTER * noise.to(device=device, dtype=dtype) / int(shape[-1])


def gradicon_regularity(forward_transform: Transform, inverse_transform: Transform, points: Tensor) -> Tensor:
    """Return the mean squared gradient of x - forward(inverse(x)), summed over the three directions.

    Args:
        forward_transform: function on normalized points.
        inverse_transform: likewise.
        points: (1 or B, 3, d, h, w), normalized, where it is evaluated.
    """

    steps = _STEP * torch.eye(3, device=points.device, dtype=points.dtype).view(3, 3, 1, 1, 1)
    # all points in one call: each call makes gradients of the whole fields
    at = torch.cat([points, *(points + step for step in steps)], dim=2)
    center, *stepped = (at - forward_transform(inverse_transform(at))).chunk(4, dim=2)
    terms = [(((center - error) / _STEP) ** 2).mean() for error in stepped]
    return terms[0] + terms[1] + terms[2]


def symmetric_dice_loss(
    moving_label: Tensor, fixed_label: Tensor, forward_points: Tensor, inverse_points: Tensor, required: bool = True
) -> Tensor:
    """Return the soft Dice loss of the warped labels, the sum of both directions.

    Only the labels other than 0 that both images of a pair have count.

    Args:
        moving_label: (B, 1, D, H, W), integer values of any type.
        fixed_label: same shape.
        forward_points: (B or 1, 3, D, H, W), normalized, the forward transform on the grid.
        inverse_points: likewise, the inverse transform.
        required: False counts 0 for a pair without a common label.

    Raises:
        InputError: a pair without a common label, if ``required``.
    """
    moving_classes, fixed_classes = _one_hot_of_common(moving_label.long(), fixed_label.long())
    present = (moving_classes.sum((2, 3, 4)) > 0) & (fixed_classes.sum((2, 3, 4)) > 0)
    if required and not present.any(dim=1).all():
        raise InputError("dice_weight > 0: moving_label and fixed_label of a pair have no common label besides 0")
    if present.shape[1] == 0:
        return forward_points.sum() * 0  # part of the graph, as in other steps
    warped_moving = sample(moving_classes, _batched(forward_points, moving_classes))
    warped_fixed = sample(fixed_classes, _batched(inverse_points, fixed_classes))
    return _dice_loss(warped_moving, fixed_classes, present) + _dice_loss(warped_fixed, moving_classes, present)


def _one_hot_of_common(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Return (B, C, D, H, W) indicators of the C labels, 0 aside, that occur in both batches (B, 1, D, H, W)."""
    labels, others = torch.unique(first), torch.unique(second)
    common = labels[torch.isin(labels, others) & (labels != 0)]
    values = common.view(1, -1, 1, 1, 1)
    return (first == values).float(), (second == values).float()


def _dice_loss(prediction: Tensor, target: Tensor, present: Tensor) -> Tensor:
    """Return 1 - soft Dice of (B, C, D, H, W), averaged over a sample's classes ``present`` (B, C), then samples."""
    axes = (2, 3, 4)
    overlap = (prediction * target).sum(axes)
    score = (2 * overlap + _DICE_FLOOR) / (prediction.sum(axes) + target.sum(axes) + _DICE_FLOOR)
    return (((1 - score) * present).sum(1) / present.sum(1).clamp_min(1)).mean()


def _batched(points: Tensor, values: Tensor) -> Tensor:
    """Repeat points (1, 3, ...) for each sample of ``values``, without copying."""
    return points.expand(values.shape[0], -1, -1, -1, -1)
