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
"""Random anatomies of synthetic pairs: labels, tissues and texture on a template, and the random numbers of a pair."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from scripts.geometry.coordinates import identity_grid, resample_grid
from scripts.geometry.smoothing import gaussian_blur

MARGIN = 0.15  # of the template beyond the field of view on each side, for views that look there
# CT tissues on the scale of -1000 to 1000 HU -> 0 to 1: lung, fat, soft tissue, contrast-enhanced, bone
_CT_TISSUES = ((0.07, 0.20), (0.43, 0.47), (0.50, 0.56), (0.55, 0.65), (0.62, 0.95))
# strength of their texture: the small vessels and airways of a lung are its texture, the others are nearly even
_CT_TEXTURES = ((0.03, 0.12), (0.01, 0.04), (0.01, 0.04), (0.01, 0.04), (0.01, 0.04))
# how often a structure is made of each of them
_CT_ODDS = {
    "filling": (0.0, 0.3, 0.6, 0.1, 0.0),
    "organ": (0.2, 0.1, 0.35, 0.2, 0.15),
    "vessel": (0.0, 0.0, 0.3, 0.7, 0.0),
    "fat": (0.0, 1.0, 0.0, 0.0, 0.0),
    "bone": (0.0, 0.0, 0.0, 0.0, 1.0),
    "lung": (1.0, 0.0, 0.0, 0.0, 0.0),
    "lung vessel": (0.0, 0.0, 0.7, 0.3, 0.0),
}


class PairRandom:
    """Random numbers of one pair: small ones are drawn on the CPU, the same on every device."""

    def __init__(self, seed: int, device: torch.device) -> None:
        self.device = device
        self.small = torch.Generator().manual_seed(int(seed))
        self.large = torch.Generator(device=device).manual_seed(int(seed))

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        """Return a number between two."""
        return low + (high - low) * float(torch.rand((), generator=self.small))

    def uniforms(self, count: int, low: float, high: float) -> Tensor:
        """Return ``count`` numbers between two, on the device."""
        return (low + (high - low) * torch.rand(count, generator=self.small)).to(self.device)

    def integer(self, low: int, high: int) -> int:
        """Return an integer from ``low`` to ``high`` - 1."""
        return int(torch.randint(low, high, (), generator=self.small))

    def normal(self, *shape: int) -> Tensor:
        """Return standard normal numbers, on the device."""
        return torch.randn(*shape, generator=self.small).to(self.device)

    def noise(self, channels: int, shape: Sequence[int]) -> Tensor:
        """Return standard normal numbers (1, channels, D, H, W), drawn on the device."""
        return torch.randn(1, channels, *shape, generator=self.large, device=self.device)

    def rough(self, cells: int, shape: Sequence[int]) -> Tensor:
        """Return a random field (1, 1, D, H, W), linear within each of ``cells`` cells along an axis."""
        # cells of fewer than three voxels would not survive the interpolation of the views
        return resample_grid(self.normal(1, 1, *(min(cells, n // 3) + 1 for n in shape)), shape)

    def smooth(self, channels: int, cells: int, shape: Sequence[int]) -> Tensor:
        """Return smooth random fields (1, channels, D, H, W) of variance about 1, from ``cells`` cells an axis."""
        coarse = [min(4 * cells, n) for n in shape]
        field = resample_grid(self.normal(1, channels, cells + 1, cells + 1, cells + 1), coarse)
        field = gaussian_blur(F.pad(field, (4,) * 6, mode="replicate"), 1.5)[:, :, 4:-4, 4:-4, 4:-4]
        return resample_grid(field / field.std().clamp_min(1e-6), shape)

    def rotation(self, size: float) -> Tensor:
        """Return a rotation (3, 3) by up to ``size`` radians about a random axis."""
        x, y, z = (F.normalize(self.normal(3).cpu(), dim=0) * self.uniform(-size, size)).tolist()
        return torch.linalg.matrix_exp(torch.tensor([[0, -z, y], [z, 0, -x], [-y, x, 0]])).to(self.device)


def make_anatomy(
    random: PairRandom, shape: Sequence[int], labels: tuple[int, int], lungs: float = 0.0
) -> tuple[Tensor, list[str]]:
    """Return a random anatomy: labels (1, 1, d, h, w), 0 is air, and what each of the labels 1 ... is.

    Args:
        random: numbers of the pair.
        shape: (d, h, w) of the template, which covers the field of view and :data:`MARGIN` around it.
        labels: least and greatest number of structures.
        lungs: probability of a large lung, or two, with vessels of their own, which count as two structures more.
    """
    points = identity_grid(shape, random.device) * (1 + 2 * MARGIN) - MARGIN - 0.5  # 0 is the center of the view
    points = points + 0.035 * random.smooth(3, 5, shape)  # nothing is an ideal ellipsoid
    count = random.integer(labels[0], labels[1] + 1)
    in_air = random.uniform() < 0.65  # else the anatomy fills the field, as in a crop
    along, across = random.integer(0, 3), random.integer(1, 3)
    radii = random.uniforms(3, 0.34, 0.48)
    if random.uniform() < 0.5:
        radii[along] = 3.0  # a trunk or a limb, cut by the field of view
    body = (points / column(radii)).abs().pow(random.uniform(2.0, 3.5)).sum(1, keepdim=True)

    # tissues between the organs, as SynthMorph's shapes: where one of several smooth random fields is the largest
    fillings = min(max(2, count // 3), 6)
    fields = random.smooth(fillings, random.integer(5, 9), shape)
    label, largest = torch.ones_like(fields[:, :1]), fields[:, :1]
    for region in range(1, fillings):  # several times faster than argmax over channels
        label = torch.where(fields[:, region : region + 1] > largest, float(region + 1), label)
        largest = torch.maximum(largest, fields[:, region : region + 1])
    roles = ["filling"] * fillings
    extras = [e for e in (("vessel", "fat", "bone") if in_air else ("vessel",)) if random.uniform() < 0.75]
    extras = extras[: (count - fillings) // 2]
    mirrored = points.clone()
    middle = (along + across) % 3
    mirrored[:, middle] = mirrored[:, middle].abs()
    organs = count - fillings - len(extras)
    # large organs first, so that small ones lie in them
    for size in (0.06 * 4.5 ** random.uniforms(organs, 0.0, 1.0)).sort(descending=True).values.tolist():
        pairwise = random.uniform() < 0.35  # as lungs and kidneys are
        place = random.uniforms(3, -1.0, 1.0) * radii.clamp(max=0.5) * 0.75
        if pairwise:
            place[middle] = place[middle].abs().clamp(min=0.7 * size)
        shape_matrix = torch.diag(1 / (size * random.uniforms(3, 0.6, 1.5))) @ random.rotation(math.pi)
        offset = torch.einsum("ij,bjdhw->bidhw", shape_matrix, (mirrored if pairwise else points) - column(place))
        label = torch.where(offset.square().sum(1, keepdim=True) < 1, float(len(roles) + 1), label)
        roles.append("organ")
    inner = 1.0
    for extra in extras:
        if extra == "vessel":  # along the lines where two smooth random fields are zero
            fields = random.smooth(2, random.integer(4, 7), shape)
            inside = fields.square().sum(1, keepdim=True) < random.uniform(0.01, 0.04)
        else:  # shells below the skin; ribs are a shell with gaps
            outer, inner = inner, inner - random.uniform(0.12, 0.3)
            inside = (body > inner) & (body <= outer)
            if extra == "bone" and random.uniform() < 0.6:
                inside &= torch.sin(points[:, along : along + 1] * random.uniform(25.0, 60.0)) > 0
        label = torch.where(inside, float(len(roles) + 1), label)
        roles.append(extra)
    if lungs > 0 and random.uniform() < lungs:
        inside = _lung(random, mirrored if random.uniform() < 0.5 else points, middle, along)
        if in_air:
            inside &= body <= inner  # below ribs and fat
        label = torch.where(inside, float(len(roles) + 1), label)
        fields = random.smooth(2, random.integer(6, 13), shape)
        inside &= fields.square().sum(1, keepdim=True) < random.uniform(0.02, 0.08)
        label = torch.where(inside, float(len(roles) + 2), label)
        roles += ["lung", "lung vessel"]
    return torch.where(body <= 1, label, 0.0) if in_air else label, roles


def _lung(random: PairRandom, points: Tensor, middle: int, along: int) -> Tensor:
    """Return where a lung is: a large ellipsoid on a dome, the diaphragm; two of them where points are mirrored."""
    radii = random.uniforms(3, 0.28, 0.5)
    place = random.uniforms(3, -0.12, 0.12)
    place[middle] = place[middle].abs() + random.uniform(0.0, 0.25)
    offset = (points - column(place)) / column(radii)
    dome = offset + column(torch.eye(3)[along].to(points) * random.uniform(0.9, 1.5))
    return (offset.square().sum(1, keepdim=True) < 1) & (dome.square().sum(1, keepdim=True) > random.uniform(0.3, 0.9))


def tissues(kind: str, random: PairRandom, label: Tensor, roles: Sequence[str], texture: Tensor) -> Tensor:
    """Return the intensities, 0 to about 1, of an anatomy: one value and one strength of the texture a label."""
    count = len(roles)
    if kind == "mr":
        values, gains = random.uniforms(count, 0.05, 1.0), random.uniforms(count, 0.02, 0.12)
    else:
        odds = torch.tensor([_CT_ODDS[role] for role in roles])
        tissue = torch.multinomial(odds, 1, generator=random.small)[:, 0]
        low, high = torch.tensor(_CT_TISSUES)[tissue].to(random.device).unbind(1)
        weakest, strongest = torch.tensor(_CT_TEXTURES)[tissue].to(random.device).unbind(1)
        values = low + (high - low) * random.uniforms(count, 0.0, 1.0)
        gains = weakest + (strongest - weakest) * random.uniforms(count, 0.0, 1.0)
    values, gains = (F.pad(row, (1, 0))[label.long()] for row in (values, gains))  # air has neither
    return values + gains * texture


def column(values: Tensor) -> Tensor:
    """Return three numbers as (1, 3, 1, 1, 1)."""
    return values.view(1, 3, 1, 1, 1)
