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
is made on a template cube and seen twice: by the fixed image through an affine map ``view_fixed``, by the moving image
through ``view_moving o phi`` with a diffeomorphism phi. So a moving point y and the fixed point

    x = view_fixed^-1(view_moving(phi(y)))

show the same place of the anatomy: exact, no map is inverted numerically. Coordinates are normalized
(:mod:`scripts.coordinates`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .coordinates import extent, identity_grid, resample_grid, sample
from .errors import InputError
from .similarity import gaussian_blur

KINDS = ("ct", "mr")
SMALLEST = 16  # voxels along an axis
_SQUARINGS = 6
# CT tissues on the scale of -1000 to 1000 HU -> 0 to 1, with how often an organ is made of them
_CT_TISSUES = ((0.07, 0.20, 0.15), (0.43, 0.47, 0.10), (0.50, 0.56, 0.45), (0.55, 0.65, 0.18), (0.62, 0.95, 0.12))


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


class SyntheticPairs:
    """Make pairs by number: the same seed gives the same pair on the same device.

    Args:
        spatial_shape: (D, H, W) of both images.
        kinds: what images may look like: "ct", "mr" or both.
        same_contrast: probability that both images are of one kind with the same tissue values.
        deformation: smallest and largest of the greatest displacements, fractions of the field of view.
        affine: size of random scalings, rotations, shears and shifts of each image.
        partial_view: probability that an image shows only 60 to 100 % of the anatomy along each axis.
        labels: least and greatest number of structures.
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
        for name, value in (("same_contrast", same_contrast), ("partial_view", partial_view)):
            if not 0 <= value <= 1:
                raise InputError(f"synthetic: {name} must be a probability from 0 to 1, got {value}")
        if len(deformation) != 2 or not 0 < deformation[0] <= deformation[1] < 0.5:
            raise InputError(f"synthetic: deformation must be two rising numbers in (0, 0.5), got {list(deformation)}")
        if len(labels) != 2 or not 3 <= labels[0] <= labels[1] <= 250:
            raise InputError(f"synthetic: labels must be two rising numbers from 3 to 250, got {list(labels)}")
        if affine < 0 or corruption < 0 or landmarks < 1:
            raise InputError("synthetic: affine and corruption must not be negative, landmarks at least 1")
        self.same_contrast, self.partial_view = float(same_contrast), float(partial_view)
        self.deformation, self.affine = (float(deformation[0]), float(deformation[1])), float(affine)
        self.labels, self.landmarks = (int(labels[0]), int(labels[1])), int(landmarks)
        self.corruption, self.device = float(corruption), torch.device(device)

    @torch.no_grad()
    def __call__(self, seed: int) -> SyntheticPair:
        """Return the pair with this number."""
        random = _Random(seed, self.device)
        label = self._anatomy(random)
        texture = 0.6 * random.smooth(1, 10, self.shape) + 0.4 * random.smooth(1, 20, self.shape)
        moving_kind = fixed_kind = self.kinds[random.integer(0, len(self.kinds))]
        moving_values = fixed_values = _tissues(moving_kind, random, int(label.max()))
        if random.uniform() >= self.same_contrast:
            fixed_kind = self.kinds[random.integer(0, len(self.kinds))]
            fixed_values = _tissues(fixed_kind, random, int(label.max()))

        grid = identity_grid(self.shape, self.device)
        view_fixed, view_moving = self._view(random), self._view(random)
        seen_fixed = _apply(view_fixed, grid)
        low, high = (math.log(value) for value in self.deformation)
        deformed = grid + self._displacement(random, math.exp(random.uniform(low, high)))
        seen_moving = _apply(view_moving, deformed)
        to_fixed = torch.linalg.inv(view_fixed) @ view_moving
        partners = _apply(to_fixed, deformed)

        fixed_label, moving_label = (
            sample(label, points, "zeros", "nearest")[0].round().to(torch.uint8) for points in (seen_fixed, seen_moving)
        )
        fixed = self._render(random, fixed_kind, fixed_values, label, texture, seen_fixed)
        moving = self._render(random, moving_kind, moving_values, label, texture, seen_moving)
        inverse_ddf = ((partners - grid) * extent(grid))[0]
        points = self._landmarks(random, moving_label, deformed, to_fixed)
        return SyntheticPair(moving, fixed, moving_label, fixed_label, inverse_ddf, *points)

    def _anatomy(self, random: _Random) -> Tensor:
        """Return labels (1, 1, D, H, W) on the template."""
        grid = identity_grid(self.shape, self.device)
        warped = grid + 0.05 * random.smooth(3, 5, self.shape)  # organs are no ideal ellipsoids
        count = random.integer(self.labels[0], self.labels[1] + 1)
        regions = min(max(2, count // 3), 8)
        # regions of tissue, as SynthMorph's shapes: where one of several random fields is the largest
        label = 1 + random.smooth(regions, random.integer(3, 7), self.shape).argmax(dim=1, keepdim=True).float()
        center = 0.5 + 0.06 * random.normal(3)
        radii = random.uniforms(3, 0.36, 0.5)
        power = random.uniform(2.0, 4.0)
        depth = 1 - (((warped - _column(center)) / _column(radii)).abs() ** power).sum(1, keepdim=True)
        next_label = regions + 1
        while next_label <= count:
            if next_label == count - 1:  # vessels: along the lines where two random fields cross zero
                fields = random.smooth(2, random.integer(3, 6), self.shape)
                inside = fields.square().sum(1, keepdim=True) < random.uniform(0.01, 0.05)
            else:
                place = center + 0.6 * radii * random.uniforms(3, -1.0, 1.0)
                size = random.uniforms(3, 0.05, 0.2)
                turned = torch.einsum("ij,bjdhw->bidhw", random.rotation(math.pi), warped - _column(place))
                inside = (turned / _column(size)).square().sum(1, keepdim=True) < 1
            label = torch.where(inside, float(next_label), label)
            next_label += 1
        if random.uniform() < 0.65:  # a body in air; else the anatomy fills the field, as in a crop
            if random.uniform() < 0.5:  # with a skin or a skull
                label = torch.where(depth < random.uniform(0.08, 0.25), float(count), label)
            label = torch.where(depth > 0, label, 0.0)
        return label

    def _view(self, random: _Random) -> Tensor:
        """Return the affine map (4, 4) from an image to the template."""
        size = 1 + self.affine * random.normal(3).clamp(-2, 2)
        if random.uniform() < self.partial_view:
            size = size * random.uniforms(3, 0.6, 1.0)
        shear = torch.eye(3, device=self.device) + 0.3 * self.affine * random.normal(3, 3).clamp(-2, 2)
        linear = random.rotation(self.affine) @ shear @ torch.diag(size)
        # a view that shows less may lie anywhere in the anatomy
        shift = 0.5 * self.affine * random.normal(3).clamp(-2, 2) + 0.5 * (1 - size).clamp(min=0) * random.uniforms(
            3, -1.0, 1.0
        )
        view = torch.eye(4, device=self.device)
        view[:3, :3] = linear
        view[:3, 3] = 0.5 + shift - linear @ torch.full((3,), 0.5, device=self.device)
        return view

    def _displacement(self, random: _Random, largest: float) -> Tensor:
        """Return a displacement (1, 3, D, H, W), normalized, of a map without folds: an integrated velocity."""
        velocity = random.smooth(3, 3, self.shape) + 0.35 * random.smooth(3, 7, self.shape)
        velocity = velocity * (largest / float(velocity.square().sum(1).max().sqrt()))
        grid = identity_grid(self.shape, self.device)
        displacement = velocity / 2**_SQUARINGS
        for _ in range(_SQUARINGS):
            displacement = displacement + sample(displacement, grid + displacement)
        return displacement

    def _render(
        self, random: _Random, kind: str, values: Tensor, label: Tensor, texture: Tensor, points: Tensor
    ) -> Tensor:
        """Return an image (1, D, H, W) of the anatomy at template points (1, 3, D, H, W)."""
        gain = random.uniform(0.004, 0.02) if kind == "ct" else random.uniform(0.03, 0.12)
        tissue = values[label.long()] + gain * texture
        image = sample(torch.where(label > 0, tissue, 0.0), points, "zeros")
        strength = self.corruption
        if kind == "mr" and strength > 0:
            image = image * torch.exp(0.25 * strength * random.smooth(1, 3, self.shape))
        if strength > 0:
            width = strength * random.uniform(0.0, 0.9)
            image = gaussian_blur(image, width) if width > 0.25 else image
            level = strength * random.uniform(0.0, 0.02 if kind == "ct" else 0.05)
            noise = level * random.noise(2, self.shape)
            image = image + noise[:, :1] if kind == "ct" else ((image + noise[:, :1]) ** 2 + noise[:, 1:] ** 2).sqrt()
        if kind == "mr":  # as the preprocessing of MR
            ordered = image.flatten().sort().values
            image = image / ordered[int(0.99 * (len(ordered) - 1))].clamp_min(1e-6)
        return image.clamp(0, 1)[0]

    def _landmarks(
        self, random: _Random, moving_label: Tensor, deformed: Tensor, to_fixed: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return landmarks in the moving image and their partners in the fixed one, voxels, (N, 3) each."""
        size = extent(deformed)
        places = random.uniforms(3 * 64 * self.landmarks, 0.0, 1.0).view(1, 3, -1, 1, 1)
        partners = _apply(to_fixed, sample(deformed, places))
        inside = ((partners >= 0) & (partners <= 1)).all(dim=1).flatten()
        anatomy = sample(moving_label[None].float(), places, mode="nearest").flatten() > 0
        chosen = next(c for c in (inside & anatomy, inside, torch.ones_like(inside)) if bool(c.any())).nonzero()[:, 0]
        chosen = chosen.repeat(-(-self.landmarks // len(chosen)))[: self.landmarks]
        return tuple((points * size)[0, :, chosen, 0, 0].T for points in (places, partners))  # type: ignore[return-value]


class _Random:
    """Random numbers of one pair: small ones are drawn on the CPU, the same on every device."""

    def __init__(self, seed: int, device: torch.device) -> None:
        self.device = device
        self.small = torch.Generator().manual_seed(int(seed))
        self.large = torch.Generator(device=device).manual_seed(int(seed))

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        return low + (high - low) * float(torch.rand((), generator=self.small))

    def uniforms(self, count: int, low: float, high: float) -> Tensor:
        return (low + (high - low) * torch.rand(count, generator=self.small)).to(self.device)

    def integer(self, low: int, high: int) -> int:
        """Return an integer from ``low`` to ``high`` - 1."""
        return int(torch.randint(low, high, (), generator=self.small))

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.small).to(self.device)

    def noise(self, channels: int, shape: Sequence[int]) -> Tensor:
        return torch.randn(1, channels, *shape, generator=self.large, device=self.device)

    def smooth(self, channels: int, cells: int, shape: Sequence[int]) -> Tensor:
        """Return random fields (1, channels, D, H, W) of variance about 1, with ``cells`` waves across the image."""
        coarse = [min(4 * cells, int(n)) for n in shape]
        field = resample_grid(self.normal(1, channels, cells + 1, cells + 1, cells + 1), coarse)
        field = gaussian_blur(F.pad(field, (4,) * 6, mode="replicate"), 1.5)[:, :, 4:-4, 4:-4, 4:-4]
        return resample_grid(field / field.std().clamp_min(1e-6), shape)

    def rotation(self, size: float) -> Tensor:
        """Return a rotation (3, 3) by up to ``size`` radians about a random axis."""
        axis = F.normalize(self.normal(3), dim=0) * self.uniform(-size, size)
        x, y, z = axis.tolist()
        return torch.linalg.matrix_exp(torch.tensor([[0, -z, y], [z, 0, -x], [-y, x, 0]])).to(self.device)


def _tissues(kind: str, random: _Random, count: int) -> Tensor:
    """Return a value in [0, 1] for each label 0 ... count; 0 is air."""
    if kind == "mr":
        values = random.uniforms(count, 0.08, 1.0)
    else:
        weights = torch.tensor([often for _, _, often in _CT_TISSUES])
        tissue = torch.multinomial(weights, count, replacement=True, generator=random.small)
        low, high = (torch.tensor([t[end] for t in _CT_TISSUES])[tissue].to(random.device) for end in (0, 1))
        values = low + (high - low) * random.uniforms(count, 0.0, 1.0)
    return torch.cat([torch.zeros(1, device=random.device), values])


def _column(values: Tensor) -> Tensor:
    return values.view(1, 3, 1, 1, 1)


def _apply(matrix: Tensor, points: Tensor) -> Tensor:
    """Apply an affine map (4, 4) to points (1, 3, ...)."""
    return torch.einsum("ij,bjdhw->bidhw", matrix[:3, :3], points) + _column(matrix[:3, 3])
