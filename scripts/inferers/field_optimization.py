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
"""Instance optimization of two displacement fields, without or after a network: mode ``field``.

GradICON needs no network: a forward and an inverse displacement field are optimized for one pair, coarse to fine, with
the image similarity in both directions and the GradICON regularity of their composition. They start from a network's
transforms, or from an alignment found by :mod:`scripts.inferers.start_search`.

Both directions are one batch of two: element 0 is forward (moving onto fixed), element 1 inverse (fixed onto moving).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from scripts.geometry.coordinates import identity_grid_like, jacobian_determinant, resample_grid, sample
from scripts.geometry.image_pair import ImagePair
from scripts.geometry.smoothing import gaussian_blur
from scripts.losses.gradicon import symmetric_dice_loss
from scripts.losses.similarity import Similarity
from scripts.utils.errors import InputError, describe_memory_error
from scripts.utils.memory import available_memory, release_freed_memory

logger = logging.getLogger(__name__)


class Level(NamedTuple):
    """One level of the coarse-to-fine optimization."""

    size: int
    """Voxels along each axis of the level's grid, which spans the whole field of view."""
    steps: int
    """Adam steps."""


LEAST_BYTES = 330  # per voxel of a level's grid; lncc takes 340, nmi 410, mind 2400
LARGEST_RESOLUTION = 384  # voxels; 256 takes 8 GB (docs/performance.md), and memory grows with the third power


def refine_levels(levels: Sequence[Level], resolution: int, steps: int) -> list[Level]:
    """Return levels that go on, in strides of at most 1.5, to a finer grid than those of a preset.

    Args:
        levels: coarse to fine.
        resolution: voxels along each axis of the last level.
        steps: of each level that is added.

    Raises:
        InputError: a resolution that is no refinement, or beyond what memory is for.
    """
    last = levels[-1].size
    if not last < resolution <= LARGEST_RESOLUTION or steps < 1:
        raise InputError(
            f"resolution: expected more voxels than the preset's last level ({last}), at most {LARGEST_RESOLUTION}, and"
            f" at least one of resolution_steps, got {resolution} and {steps}"
        )
    count = math.ceil(math.log(resolution / last) / math.log(1.5))
    sizes = [round(last * (resolution / last) ** (n / count)) for n in range(1, count + 1)]
    return [*levels, *(Level(size, steps) for size in sizes)]


class FieldObjective(NamedTuple):
    """The GradICON objective for two fields: similarity + lambda_gradicon * regularity + dice_weight * dice."""

    similarity: Similarity
    """Loss of a warped image against its target, in voxels of the level's grid."""
    lambda_gradicon: float = 1.5
    """Weight of the regularity."""
    mass_conservation: bool = False
    """Multiply warped intensities by the Jacobian determinant (CT of the lung)."""
    dice_weight: float = 0.0
    """Weight of the soft Dice loss of the labels; 0 is off."""


class FieldResult(NamedTuple):
    """What :func:`optimize_field` returns."""

    displacement: Tensor
    """(2, 3, D, H, W), normalized units, forward and inverse, on the grid of the last level."""
    loss: float
    """The objective at the last level; lower is better."""
    similarity: float
    """Sum of both directions, likewise."""
    regularity: float
    """GradICON regularity, likewise."""
    size: int
    """Voxels along each axis of the last level, smaller than asked for if memory ran out."""


def optimize_field(
    pair: ImagePair,
    start: Tensor,
    objective: FieldObjective,
    levels: Sequence[Level],
    *,
    learning_rate: float = 0.005,
    smoothing: float = 1.0,
    progress: bool = False,
    oom_fallback: bool = False,
) -> FieldResult:
    """Optimize a forward and an inverse displacement field for one pair.

    loss = similarity(moving o forward, fixed) + similarity(fixed o inverse, moving)
           + lambda_gradicon * (|| grad(forward o inverse - id) ||^2 + || grad(inverse o forward - id) ||^2)

    (Tian et al., GradICON, CVPR 2023, with fields in the place of the network.) The unknowns live on a grid of half the
    level's size and are smoothed by a Gaussian, which keeps the steps of Adam smooth; they are added to the start.
    Images are sampled with zeros outside, fields with the border value. There is nothing random in it. A level that
    does not lower the loss leaves what it began with.

    Args:
        pair: the images; labels are needed with a Dice weight.
        start: displacements to start from, (2, 3, d, h, w), normalized units, forward and inverse, any grid.
        objective: the terms and their weights.
        levels: coarse to fine.
        learning_rate: of Adam, in normalized units (fractions of the field of view).
        smoothing: standard deviation of the Gaussian, in voxels of the unknowns' grid.
        progress: show a bar with the terms.
        oom_fallback: when memory runs out at a level, return what the levels before it found.

    Returns:
        the fields and the terms of the loss.

    Raises:
        MemoryError: on a CPU, before a level that there is no memory for: Linux would end the process instead.
    """
    displacement = start.detach()
    values, done = (math.nan, math.nan, math.nan), 0
    with (
        torch.enable_grad(),
        tqdm(total=sum(level.steps for level in levels), disable=not progress, desc="field") as bar,
    ):
        for level in levels:
            try:
                displacement, values = _optimize_level(
                    pair, displacement, objective, level, learning_rate=learning_rate, smoothing=smoothing, bar=bar
                )
            except (MemoryError, RuntimeError) as error:
                if not oom_fallback or done == 0 or describe_memory_error(error) is None:
                    raise
                logger.warning(
                    "out of memory on the grid of %d voxels along each axis; the result is that of %d", level.size, done
                )
                break
            done = level.size
    return FieldResult(displacement, *values, done)


def _optimize_level(
    pair: ImagePair,
    start: Tensor,
    objective: FieldObjective,
    level: Level,
    *,
    learning_rate: float,
    smoothing: float,
    bar: Any,
) -> tuple[Tensor, tuple[float, float, float]]:
    """Return the displacements after the steps of one level, and loss, similarity and regularity."""
    _check_memory(level, pair.fixed.device)
    shape = (level.size, level.size, level.size)
    low_shape = tuple(max(4, -(-n // 2)) for n in shape)
    evaluate = _LevelLoss(pair.shrink(shape), objective)
    found, low_found = resample_grid(start, shape), resample_grid(start, low_shape)
    unknowns = torch.zeros_like(low_found).requires_grad_()
    optimizer = torch.optim.Adam([unknowns], lr=learning_rate)
    values = first = (math.nan, math.nan, math.nan)
    for step in range(level.steps):
        optimizer.zero_grad()
        update = gaussian_blur(unknowns, smoothing)
        loss, similarity, regularity = evaluate(found + resample_grid(update, shape), low_found + update)
        loss.backward()
        optimizer.step()
        values = (loss.item(), similarity.item(), regularity.item())
        first = values if step == 0 else first
        bar.set_postfix_str(f"{level.size}: similarity {values[1]:.4f} regularity {values[2]:.5f}", refresh=False)
        bar.update()
    with torch.no_grad():
        update = gaussian_blur(unknowns, smoothing)
        displacement = found + resample_grid(update, shape)
        loss, similarity, regularity = evaluate(displacement, low_found + update)
        values = (loss.item(), similarity.item(), regularity.item())
    if not values[0] < first[0]:  # Adam's steps are as long where nothing is left to gain
        return found, first
    return displacement, values


def _check_memory(level: Level, device: torch.device) -> None:
    needed = LEAST_BYTES * level.size**3
    if device.type != "cpu" or needed <= available_memory():
        return
    release_freed_memory()
    free = available_memory()
    if needed > free:
        raise MemoryError(
            f"the grid of {level.size} voxels along each axis needs {needed / 2**30:.1f} GiB or more, and"
            f" {free / 2**30:.1f} GiB are free"
        )


class _LevelLoss:
    """The objective at one level; what depends on the targets alone is computed once."""

    def __init__(self, pair: ImagePair, objective: FieldObjective) -> None:
        self.pair = pair
        self.objective = objective
        self.source = torch.cat([pair.moving, pair.fixed])
        self.grid = identity_grid_like(pair.fixed)
        target, mask = self.source.flip(0), pair.target_masks()
        if objective.mass_conservation:  # the determinant lives on cells: one fewer than voxels along each axis
            target = target[:, :, :-1, :-1, :-1]
            mask = None if mask is None else mask[:, :, :-1, :-1, :-1]
        self.compare = objective.similarity.to_target(target, mask)

    def __call__(self, displacement: Tensor, low_displacement: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return loss, similarity and regularity for fields (2, 3, D, H, W) on the level grid and the coarser one."""
        points = self.grid + displacement
        warped = sample(self.source, points, "zeros")
        if self.objective.mass_conservation:
            warped = warped[:, :, :-1, :-1, :-1] * jacobian_determinant(points)
        similarity = 2 * self.compare(warped)  # the sum over both directions, as in the network's objective
        regularity = gradicon_regularity(low_displacement)
        loss = similarity + self.objective.lambda_gradicon * regularity
        if self.objective.dice_weight > 0:
            if self.pair.moving_label is None or self.pair.fixed_label is None:
                raise InputError("dice_weight > 0 needs moving_label and fixed_label")
            labels = self.pair.moving_label, self.pair.fixed_label
            loss = loss + self.objective.dice_weight * symmetric_dice_loss(*labels, points[:1], points[1:])
        return loss, similarity, regularity


def gradicon_regularity(displacement: Tensor) -> Tensor:
    """GradICON regularity of a pair of displacement fields: || grad r ||^2, r the error of their composition.

    The norm is the mean over the grid of the squared Frobenius norm, summed over both orders of composition as the
    similarity is over both directions. (The network's objective, :mod:`scripts.losses.gradicon`, takes one order and
    the mean over the components, as the reference does.)

    Args:
        displacement: (2, 3, D, H, W), normalized units, forward and inverse.

    Returns:
        a scalar; derivatives by forward differences.
    """
    other = displacement.flip(0)
    points = identity_grid_like(displacement) + other
    residual = other + sample(displacement, points)
    total = residual.new_zeros(())
    for axis in (2, 3, 4):
        derivative = residual.diff(dim=axis) * (residual.shape[axis] - 1)
        total = total + 2 * (derivative**2).sum(dim=1).mean()  # the mean over the batch of two, twice: the sum
    return total
