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
"""A start for the field optimization: several rough alignments, each refined to an affine one, the best kept.

Gradients need a start within reach. The candidates are what the file headers and the images themselves offer:

- ``network``: a network's transform, where there is one;
- ``field_of_view``: the moving field of view stretched onto the fixed one, where the network starts, too;
- ``world``: the coordinates of the file headers;
- ``center``: the sizes and directions of the headers, the centers of intensity laid onto each other.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from scripts.geometry.coordinates import identity_grid, identity_grid_like, resample_grid, sample
from scripts.geometry.image_pair import ImagePair
from scripts.inferers.field_optimization import FieldObjective, Level, optimize_field
from scripts.losses.similarity import Similarity

logger = logging.getLogger(__name__)

_AFFINE_SIZE = 24
_AFFINE_STEPS = 80
_AFFINE_LEARNING_RATE = 0.01
_TRIAL_LEVELS = (Level(16, 60), Level(24, 40))
_NETWORK_TRIAL_LEVELS = _TRIAL_LEVELS[1:]  # what the coarsest level finds, the network has found
_NO_SLOPE = 1e-5  # equal images have about 1e-6 left, others 1e-4 and more
_ASIDE = 1e-4  # of the start: there, at voxel centers, the slope has two sides, of which the mean is taken
_ROUGH = 2.0**-12  # of the field of view, a fraction of a voxel: what candidates are rounded to
_LEAST_OVERLAP = 0.25  # of the fixed field of view
_NETWORK_HANDICAP = 0.75  # of the network's score: where headers or centers disagree, they must be clearly better
_SAME_START = 0.03  # of the field of view: candidates that agree this well at all corners need one trial only


class Start(NamedTuple):
    """What :func:`search_start` returns."""

    displacement: Tensor
    """(2, 3, D, H, W), normalized units, forward and inverse."""
    name: str
    """The candidate it came from."""


def search_start(
    pair: ImagePair, objective: FieldObjective, learning_rate: float = 0.005, network: Tensor | None = None
) -> Start:
    """Find a forward and an inverse displacement from which gradients reach the right alignment.

    Every candidate gets an affine refinement (both directions, the inverse being the matrix inverse) and a coarse
    deformable trial; the one that explains one of the two images best wins, with its trial. One, not both: where
    one field of view is a part of the other, the larger image cannot be explained everywhere.

    Args:
        pair: the images with their affines.
        objective: of the trial; its similarity also drives the affine refinement.
        learning_rate: of the trial, in normalized units.
        network: a network's displacement (2, 3, d, h, w), normalized units: one more candidate, which needs no affine
            refinement.

    Returns:
        the start and the name of its candidate.
    """
    candidates = start_candidates(pair)
    small = pair.shrink((_AFFINE_SIZE,) * 3)
    matrices = _refine_affine(small, torch.stack(list(candidates.values())), objective.similarity)
    grid = identity_grid((8, 8, 8), pair.fixed.device, pair.fixed.dtype)
    different: dict[str, Tensor] = {}
    for name, matrix in zip(candidates, matrices, strict=True):
        if not any((_corners(matrix) - _corners(other)).abs().max() < _SAME_START for other in different.values()):
            different[name] = matrix
    starts = {
        name: apply_affine(torch.stack([matrix, torch.linalg.inv(matrix)]), grid) - grid
        for name, matrix in different.items()
    }
    if network is not None:
        starts["network"] = network
    scores, similarities, found = {}, {}, {}
    for name, start in starts.items():
        levels = _NETWORK_TRIAL_LEVELS if name == "network" else _TRIAL_LEVELS
        trial = optimize_field(pair, start, objective, levels, learning_rate=learning_rate)
        found[name] = Start(trial.displacement, name)
        similarities[name] = _score(small, trial.displacement, objective.similarity)
        scores[name] = similarities[name] + objective.lambda_gradicon * trial.regularity
        logger.info("start %s: similarity %.4f, with regularity %.4f", name, similarities[name], scores[name])
    if network is not None:
        # both start at the field of view; a network's two fields become inverses of each other in the steps to come
        same = ("network", "field_of_view")
        left_out = max(same, key=lambda name: similarities[name])
        kept = next(name for name in same if name != left_out)
        scores[kept] = _NETWORK_HANDICAP * min(scores[kept], scores.pop(left_out))
    return found[min(scores, key=lambda name: scores[name])]


def _corners(matrix: Tensor) -> Tensor:
    """Return where a (4, 4) matrix takes the corners of the unit cube."""
    return apply_affine(matrix[None], identity_grid((2, 2, 2), matrix.device, matrix.dtype))


def start_candidates(pair: ImagePair) -> dict[str, Tensor]:
    """Return the rough alignments as (4, 4) matrices, normalized fixed points -> normalized moving points.

    The field of view comes first; the others are left out where the two fields of view then hardly overlap.
    """
    moving, fixed = pair.moving, pair.fixed
    to_world_moving = _normalized_to_world(pair.moving_affine, moving.shape[2:])
    to_world_fixed = _normalized_to_world(pair.fixed_affine, fixed.shape[2:])
    world = torch.linalg.solve(to_world_moving, to_world_fixed).to(fixed)
    center = world.clone()
    center[:3, 3] += center_of_mass(moving) - (world[:3, :3] @ center_of_mass(fixed) + world[:3, 3])
    candidates = {"field_of_view": torch.eye(4, dtype=fixed.dtype, device=fixed.device)}
    for name, matrix in (("world", _rounded(world)), ("center", _rounded(center))):
        if _overlap(matrix) > _LEAST_OVERLAP:
            candidates[name] = matrix
    return candidates


def _rounded(matrix: Tensor) -> Tensor:
    """Return a rough alignment without the digits that differ when a header is written in another way."""
    return (matrix / _ROUGH).round() * _ROUGH


def apply_affine(matrix: Tensor, points: Tensor) -> Tensor:
    """Apply (B, 4, 4) matrices to points (1 or B, 3, D, H, W)."""
    moved = torch.einsum("bij,bj...->bi...", matrix[:, :3, :3], points.expand(matrix.shape[0], -1, -1, -1, -1))
    return moved + matrix[:, :3, 3].view(-1, 3, 1, 1, 1)


def center_of_mass(image: Tensor) -> Tensor:
    """Return the center of intensity (3,), normalized, of an image (1, 1, D, H, W)."""
    weight = image / image.sum().clamp_min(1e-6)
    return (identity_grid_like(image) * weight).sum(dim=(0, 2, 3, 4))


def _normalized_to_world(affine: Tensor, shape: Sequence[int]) -> Tensor:
    scale = torch.tensor([n - 1 for n in shape] + [1], dtype=torch.float64)
    return torch.as_tensor(affine, dtype=torch.float64).cpu() * scale


def _overlap(matrix: Tensor) -> float:
    """Share of the fixed unit cube that a (4, 4) matrix maps into the moving unit cube."""
    points = apply_affine(matrix[None], identity_grid((16, 16, 16), matrix.device, matrix.dtype))
    return ((points >= 0) & (points <= 1)).all(dim=1).float().mean().item()


@torch.no_grad()
def _score(pair: ImagePair, displacement: Tensor, similarity: Similarity) -> float:
    """Return the lower one of both directions' similarity losses; ``displacement`` (2, 3, d, h, w) on any grid."""
    grid = identity_grid_like(pair.fixed)
    warped = sample(
        torch.cat([pair.moving, pair.fixed]), grid + resample_grid(displacement, pair.fixed.shape[2:]), "zeros"
    )
    forward = similarity(warped[:1], pair.fixed, pair.fixed_mask)
    inverse = similarity(warped[1:], pair.moving, pair.moving_mask)
    return min(forward.item(), inverse.item())


def _refine_affine(pair: ImagePair, starts: Tensor, similarity: Similarity) -> Tensor:
    """Optimize (K, 4, 4) matrices at once, each from its start, for the similarity in both directions."""
    count = starts.shape[0]
    moving, fixed = (image.expand(count, -1, -1, -1, -1) for image in (pair.moving, pair.fixed))
    source = torch.cat([moving, fixed])
    grid = identity_grid_like(source)
    masks = pair.target_masks()
    masks = None if masks is None else masks.repeat_interleave(count, dim=0)
    compare = similarity.to_target(torch.cat([fixed, moving]), masks)
    with torch.enable_grad():
        change = torch.zeros((count, 3, 4), dtype=source.dtype, device=source.device, requires_grad=True)
        optimizer = torch.optim.Adam([change], lr=_AFFINE_LEARNING_RATE)
        for step in range(_AFFINE_STEPS):
            for group in optimizer.param_groups:  # the last steps are small ones, so that Adam settles
                group["lr"] = _AFFINE_LEARNING_RATE * (1 - step / _AFFINE_STEPS)
            optimizer.zero_grad()
            for aside in (-_ASIDE, _ASIDE) if step == 0 else (0.0,):
                both = torch.cat(_changed(starts, change, aside))
                compare(sample(source, apply_affine(both, grid), "zeros")).backward()
            if step == 0 and change.grad is not None:  # sides that cancel leave rounding, which Adam would enlarge
                change.grad[change.grad.abs() < _NO_SLOPE] = 0
            optimizer.step()
        return _changed(starts, change)[0].detach()


def _changed(starts: Tensor, change: Tensor, stretch: float = 0.0) -> tuple[Tensor, Tensor]:
    """Return (K, 4, 4) matrices and their inverses: half of the change before the start, half of it after.

    Matrices are e^(c/2) start e^(c/2), about the centers of the fields of view. Swapping fixed and moving image inverts
    the start and turns the sign of c; so the search takes the same steps then.

    Args:
        starts: (K, 4, 4).
        change: (K, 3, 4), c but for its last row, which is 0.
        stretch: added to c in all directions.
    """
    to_center = torch.eye(4, dtype=starts.dtype, device=starts.device)
    to_center[:3, 3] = -0.5
    generator = torch.cat([change, torch.zeros_like(change[:, :1])], dim=1) / 2
    generator = generator + stretch / 2 * torch.diag(to_center.new_tensor([1, 1, 1, 0]))
    half, back = (torch.linalg.inv(to_center) @ torch.linalg.matrix_exp(c) @ to_center for c in (generator, -generator))
    return half @ starts @ half, back @ torch.linalg.inv(starts) @ back
