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
"""Augmentation of pairs, as in the paper: axes permuted and flipped alike, and an affine noise for each image.

MONAI-style randomizable transforms on dicts of tensors (1, D, H, W), on whatever device these are.
(Reference: ``augment`` of uniGradICON's training, with ``affine_grid`` and ``grid_sample`` at align_corners=False.)
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.transforms import RandomizableTransform
from torch import Tensor

from scripts.geometry.coordinates import sample

SIDES = ("fixed", "moving")
PARTS = ("image", "similarity", "mask", "label")
NEAREST = ("mask", "label")
AFFINE_NOISE = 0.05  # standard deviation added to each of the 12 entries (uniGradICON)


def _volumes(data: Mapping[Hashable, Any], side: str) -> list[str]:
    return [f"{side}_{part}" for part in PARTS if f"{side}_{part}" in data]


class RandPairAxesd(RandomizableTransform):
    """Permute and flip the axes of all volumes of a pair in the same random way.

    On a grid whose axes differ in size, only axes of equal size change places, so that the shape stays.

    Args:
        prob: probability of doing anything.
    """

    def __init__(self, prob: float = 1.0) -> None:
        super().__init__(prob)
        self.order: tuple[int, ...] = (0, 1, 2)
        self.flipped: tuple[int, ...] = ()

    def randomize(self, data: Sequence[int]) -> None:
        """Draw an order and the axes to flip for volumes of shape ``data`` (D, H, W)."""
        super().randomize(None)
        shape = tuple(data)
        orders = [o for o in itertools.permutations(range(3)) if tuple(shape[axis] for axis in o) == shape]
        self.order = orders[self.R.randint(len(orders))]
        self.flipped = tuple(axis for axis in range(3) if self.R.randint(2))

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the pair with turned volumes."""
        result = dict(data)
        self.randomize(result["fixed_image"].shape[1:])
        if self._do_transform:
            for key in (name for side in SIDES for name in _volumes(result, side)):
                turned = result[key].permute(0, *(axis + 1 for axis in self.order))
                result[key] = turned.flip([axis + 1 for axis in self.flipped]).contiguous()
        return result


class RandPairAffineNoised(RandomizableTransform):
    """Deform each image of a pair by its own affine map: the identity with noise on its 12 entries.

    Intensities are interpolated linearly, masks and labels take the nearest voxel; outside, the border value is
    repeated.

    Args:
        std: standard deviation of the noise; coordinates run from -1 to 1 over the field of view, so 0.05 moves by
            2.5 % of it.
        prob: probability of doing anything.
    """

    def __init__(self, std: float = AFFINE_NOISE, prob: float = 1.0) -> None:
        super().__init__(prob)
        self.std = float(std)
        self.noise = torch.zeros(2, 3, 4)

    def randomize(self, data: Any = None) -> None:
        """Draw the noise of both maps."""
        super().randomize(None)
        self.noise = torch.from_numpy(self.R.standard_normal((2, 3, 4))).float() * self.std

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the pair with deformed volumes."""
        result = dict(data)
        self.randomize()
        if self._do_transform and self.std > 0:
            for side, noise in zip(SIDES, self.noise, strict=True):
                image = result[f"{side}_image"]
                points = affine_points(torch.eye(3, 4) + noise, image.shape[1:], image.device)
                for key in _volumes(result, side):
                    mode = "nearest" if key.endswith(NEAREST) else "bilinear"
                    warped = sample(result[key][None].float(), points, mode=mode)[0]
                    result[key] = warped.to(result[key].dtype)
        return result


def affine_points(matrix: Tensor, shape: Sequence[int], device: torch.device | str = "cpu") -> Tensor:
    """Return where an affine map takes the voxels of a grid, as ``affine_grid(align_corners=False)`` does.

    Args:
        matrix: (3, 4), on coordinates from -1 to 1 between the outer faces of the grid, in the order (W, H, D).
        shape: (D, H, W).
        device: where the points are made.

    Returns:
        (1, 3, D, H, W), normalized.
    """
    axes = [(2 * torch.arange(n, device=device, dtype=torch.float32) + 1) / n - 1 for n in shape]
    d, h, w = torch.meshgrid(*axes, indexing="ij")
    matrix = matrix.to(device)
    moved = [row[0] * w + row[1] * h + row[2] * d + row[3] for row in matrix]
    # faces at -1 and 1 -> voxel centers at 0 and 1
    points = [((value + 1) * n - 1) / (2 * (n - 1)) for value, n in zip(reversed(moved), shape, strict=True)]
    return torch.stack(points)[None]
