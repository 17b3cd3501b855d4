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
"""Synthetic registration pairs, without any data: random anatomies, deformations and contrasts.

The idea is SynthMorph's (Hoffmann et al., IEEE TMI 2022); the code is ours. One anatomy (labels, tissues, texture)
is made on a template and seen twice: by the fixed image through an affine map ``view_fixed``, by the moving image
through ``view_moving o phi`` with a diffeomorphism phi. So a moving point y and the fixed point

    x = view_fixed^-1(view_moving(phi(y)))

show the same place of the anatomy: exact, no map is inverted numerically. Coordinates are normalized
(:mod:`scripts.geometry.coordinates`); the template covers the field of view [0, 1] and a margin around it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from scripts.data.synthetic_anatomy import MARGIN, PairRandom, column, make_anatomy, tissues
from scripts.geometry.coordinates import (
    extent,
    identity_grid,
    jacobian_determinant,
    resample_grid,
    sample,
    shift_with_border,
)
from scripts.utils.errors import InputError

KINDS = ("ct", "mr")
SMALLEST = 16  # voxels along an axis
_SQUARINGS = 6
_VELOCITY_SIZE = 40  # the velocity has no detail that needs more voxels along an axis
_LEAST_OVERLAP = 0.45  # of the moving field of view with the fixed one, before the deformation


class SyntheticPair(NamedTuple):
    """One pair with its labels and exact correspondences."""

    moving: Tensor
    """(1, D, H, W) float32 in [0, 1]."""
    fixed: Tensor
    """Likewise."""
    moving_label: Tensor
    """(1, D, H, W) uint8, 0 is background."""
    fixed_label: Tensor
    """Likewise."""
    inverse_ddf: Tensor
    """(3, D, H, W), voxels: from each moving voxel to its place in the fixed image, also outside of it."""
    moving_points: Tensor
    """(N, 3), voxels (d, h, w): landmarks inside the anatomy."""
    fixed_points: Tensor
    """(N, 3), voxels: their places in the fixed image, inside of its grid."""
    moving_similarity: Tensor
    """(1, D, H, W) float32 in [0, 1]: the moving image in a contrast that both images have here."""
    fixed_similarity: Tensor
    """Likewise."""


class SyntheticPairs:
    """Make pairs by number: the same seed gives the same pair on the same device.

    Args:
        spatial_shape: (D, H, W) of both images.
        kinds: what images may look like: "ct", "mr" or both.
        same_contrast: probability that both images are of one kind with the same tissue values.
        deformation: smallest and largest of the greatest displacements, fractions of the field of view.
        affine: size of random scalings, rotations, shears and shifts of each image, 0 to 0.3.
        partial_view: probability that an image shows only 60 to 100 % of the anatomy along an axis.
        labels: least and greatest number of structures, lungs apart.
        lungs: probability that the anatomy has a large lung, or two, with vessels in it.
        landmarks: of each pair.
        corruption: scales noise, blur and bias field; 0 switches them off.
        device: where pairs are made.

    Raises:
        InputError: an option out of range.
    """

    def __init__(
        self,
        spatial_shape: Sequence[int],
        kinds: Sequence[str] = KINDS,
        same_contrast: float = 0.6,
        deformation: Sequence[float] = (0.02, 0.12),
        affine: float = 0.1,
        partial_view: float = 0.3,
        labels: Sequence[int] = (6, 20),
        lungs: float = 0.0,
        landmarks: int = 64,
        corruption: float = 1.0,
        device: torch.device | str = "cpu",
    ) -> None:
        self.shape = tuple(int(n) for n in spatial_shape)
        self.kinds = (kinds,) if isinstance(kinds, str) else tuple(kinds)
        if len(self.shape) != 3 or min(self.shape) < SMALLEST:
            raise InputError(f"synthetic: spatial_shape must have three axes of at least {SMALLEST}, got {self.shape}")
        if not self.kinds or not set(self.kinds) <= set(KINDS):
            raise InputError(f"synthetic: kinds must be among {', '.join(KINDS)}, got {list(self.kinds)}")
        for name, value in (("same_contrast", same_contrast), ("partial_view", partial_view), ("lungs", lungs)):
            if not 0 <= value <= 1:
                raise InputError(f"synthetic: {name} must be a probability from 0 to 1, got {value}")
        if len(deformation) != 2 or not 0 < deformation[0] <= deformation[1] <= 0.25:
            raise InputError(f"synthetic: deformation must be two rising numbers in (0, 0.25], got {list(deformation)}")
        if len(labels) != 2 or not 3 <= labels[0] <= labels[1] <= 250:
            raise InputError(f"synthetic: labels must be two rising numbers from 3 to 250, got {list(labels)}")
        if not 0 <= affine <= 0.3:
            raise InputError(f"synthetic: affine must be from 0 to 0.3, got {affine}")
        if not 0 <= corruption < math.inf:
            raise InputError(f"synthetic: corruption must be 0 or more, got {corruption}")
        if landmarks < 1:
            raise InputError(f"synthetic: landmarks must be at least 1, got {landmarks}")
        self.same_contrast, self.partial_view = float(same_contrast), float(partial_view)
        self.deformation, self.affine = (float(deformation[0]), float(deformation[1])), float(affine)
        self.lungs = float(lungs)
        self.labels, self.landmarks = (int(labels[0]), int(labels[1])), int(landmarks)
        self.corruption, self.device = float(corruption), torch.device(device)
        self._template = tuple(round((n - 1) * (1 + 2 * MARGIN)) + 1 for n in self.shape)

    @torch.no_grad()
    def __call__(self, seed: int) -> SyntheticPair:
        """Return the pair with this number."""
        random = PairRandom(seed, self.device)
        label, roles = make_anatomy(random, self._template, self.labels, self.lungs)
        scales = ((9, 0.6), (19, 0.6), (37, 0.5))
        texture = torch.cat([weight * random.rough(cells, self._template) for cells, weight in scales]).sum(0)[None]
        moving_kind = fixed_kind = self.kinds[random.integer(0, len(self.kinds))]
        moving_anatomy = fixed_anatomy = tissues(moving_kind, random, label, roles, texture)
        differ = random.uniform() >= self.same_contrast
        if differ:
            fixed_kind = self.kinds[random.integer(0, len(self.kinds))]
            fixed_anatomy = tissues(fixed_kind, random, label, roles, texture)

        grid = identity_grid(self.shape, self.device)
        view_fixed, view_moving = self._views(random)
        low, high = (math.log(value) for value in self.deformation)
        deformed = grid + self._displacement(random, math.exp(random.uniform(low, high)))
        to_fixed = torch.linalg.inv(view_fixed) @ view_moving
        # in the template, whose own normalized coordinates begin at its margin
        seen_fixed, seen_moving = (
            (_apply(view, points) + MARGIN) / (1 + 2 * MARGIN)
            for view, points in ((view_fixed, grid), (view_moving, deformed))
        )
        fixed_label, moving_label = (
            sample(label, points, mode="nearest")[0].round().to(torch.uint8) for points in (seen_fixed, seen_moving)
        )
        fixed = self._corrupt(random, fixed_kind, sample(fixed_anatomy, seen_fixed))
        moving = self._corrupt(random, moving_kind, sample(moving_anatomy, seen_moving))
        inverse_ddf = ((_apply(to_fixed, deformed) - grid) * extent(grid))[0]
        points = self._landmarks(random, moving_label, deformed, to_fixed)
        moving_similarity, fixed_similarity = moving, fixed
        if differ:  # one of the two contrasts, of both images
            if random.uniform() < 0.5:
                moving_similarity = self._corrupt(random, fixed_kind, sample(fixed_anatomy, seen_moving))
            else:
                fixed_similarity = self._corrupt(random, moving_kind, sample(moving_anatomy, seen_fixed))
        return SyntheticPair(
            moving, fixed, moving_label, fixed_label, inverse_ddf, *points, moving_similarity, fixed_similarity
        )

    def _views(self, random: PairRandom) -> tuple[Tensor, Tensor]:
        """Return the affine maps (4, 4) from the fixed and from the moving image to the field of view."""
        probe = identity_grid((8, 8, 8), self.device)
        for _ in range(20):
            fixed, moving = self._view(random), self._view(random)
            partners = _apply(torch.linalg.inv(fixed) @ moving, probe)
            if _is_inside(partners).float().mean() >= _LEAST_OVERLAP:
                break
        return fixed, moving

    def _view(self, random: PairRandom) -> Tensor:
        size = 1 + self.affine * random.normal(3).clamp(-2, 2)
        shift = 0.4 * self.affine * random.normal(3).clamp(-2, 2)
        if random.uniform() < self.partial_view:
            axis, part = random.integer(0, 3), random.uniform(0.6, 1.0)
            size[axis] *= part
            shift[axis] += 0.5 * (1 - part) * random.uniform(-1.0, 1.0)
        shear = torch.eye(3, device=self.device) + 0.3 * self.affine * random.normal(3, 3).clamp(-2, 2)
        view = torch.eye(4, device=self.device)
        view[:3, :3] = random.rotation(2 * self.affine) @ shear @ torch.diag(size)
        view[:3, 3] = 0.5 + shift - 0.5 * view[:3, :3].sum(1)  # about the center
        return view

    def _displacement(self, random: PairRandom, largest: float) -> Tensor:
        """Return a displacement (1, 3, D, H, W), normalized, of a map without folds: an integrated velocity."""
        shape = [min(n, _VELOCITY_SIZE) for n in self.shape]
        grid = identity_grid(shape, self.device)
        velocity = random.smooth(3, 3, shape) + random.uniform(0.1, 0.5) * random.smooth(3, 7, shape)
        velocity = velocity * (largest / _longest(velocity))
        for attempt in range(12):
            displacement = velocity / 2**_SQUARINGS
            for _ in range(_SQUARINGS):
                displacement = displacement + sample(displacement, grid + displacement)
            fitting = largest / _longest(displacement)
            # where a velocity is very strong, its integral can fold between voxels
            folds = float(jacobian_determinant(grid + displacement).min()) < 0.05
            if not folds and (attempt > 1 or abs(fitting - 1) < 0.02):
                break
            velocity = velocity * (0.8 if folds else fitting)
        return resample_grid(displacement, self.shape)

    def _corrupt(self, random: PairRandom, kind: str, image: Tensor) -> Tensor:
        """Return the anatomy (1, 1, D, H, W) as a scanner would show it, (1, D, H, W)."""
        strength = self.corruption
        if strength > 0:
            if kind == "mr":
                image = image * torch.exp(random.uniform(0.0, 0.3) * strength * random.smooth(1, 3, self.shape))
            image = self._blurred(random, image)
            level = random.uniform(0.0, 0.02) if kind == "ct" else random.uniform(0.0, 0.05) * _brightness(image)
            noise = strength * level * random.noise(2, self.shape)
            image = image + noise[:, :1]
            image = image if kind == "ct" else (image.square() + noise[:, 1:].square()).sqrt()
        if kind == "mr":  # as the preprocessing of MR
            image = image / _brightness(image)
        return image.clamp(0, 1)[0]

    def _blurred(self, random: PairRandom, image: Tensor) -> Tensor:
        """Blur an image (1, 1, D, H, W) a little along each axis and, at times, as thick slices do along one."""
        widths = [random.uniform(0.0, 0.7) for _ in range(3)]
        if random.uniform() < 0.3:
            axis = random.integer(0, 3)
            widths[axis] = random.uniform(0.7, 0.8 + 0.008 * self.shape[axis])
        for axis, width in enumerate(self.corruption * w for w in widths):
            radius = min(math.ceil(2 * width), self.shape[axis] - 1)
            taps = [math.exp(-0.5 * (n / width) ** 2) for n in range(-radius, radius + 1)] if width > 0.25 else [1.0]
            shifts = range(-(len(taps) // 2), len(taps) // 2 + 1)
            shifted = (t / sum(taps) * shift_with_border(image, axis, n) for t, n in zip(taps, shifts, strict=True))
            image = torch.stack(list(shifted)).sum(0)
        return image

    def _landmarks(
        self, random: PairRandom, moving_label: Tensor, deformed: Tensor, to_fixed: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return landmarks in the moving image and their partners in the fixed one, voxels, (N, 3) each."""
        size = extent(deformed)
        places = random.uniforms(3 * 64 * self.landmarks, 0.0, 1.0).view(1, 3, -1, 1, 1)
        partners = _apply(to_fixed, sample(deformed, places))
        inside = _is_inside(partners).flatten()
        anatomy = sample(moving_label[None].float(), places, mode="nearest").flatten() > 0
        # the views overlap, so that some places are inside; without anatomy there, air still is a true correspondence
        chosen = (inside & anatomy if bool((inside & anatomy).any()) else inside).nonzero()[:, 0]
        chosen = chosen.repeat(-(-self.landmarks // len(chosen)))[: self.landmarks]
        moving_points, fixed_points = ((points * size)[0, :, chosen, 0, 0].T for points in (places, partners))
        return moving_points, fixed_points


def _brightness(image: Tensor) -> Tensor:
    """Return the 99th percentile of an image."""
    return image.flatten().kthvalue(int(0.99 * image.numel())).values.clamp_min(1e-6)


def _is_inside(points: Tensor) -> Tensor:
    """Return where points (1, 3, ...) are in the unit cube, (1, ...)."""
    return ((points >= 0) & (points <= 1)).all(dim=1)


def _longest(vectors: Tensor) -> float:
    """Return the length of the longest of vectors (1, 3, ...)."""
    return float(vectors.square().sum(1).max().sqrt())


def _apply(matrix: Tensor, points: Tensor) -> Tensor:
    """Apply an affine map (4, 4) to points (1, 3, ...)."""
    return torch.einsum("ij,bjdhw->bidhw", matrix[:3, :3], points) + column(matrix[:3, 3])
