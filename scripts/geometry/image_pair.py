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
"""A pair of images on the network's grid, with what belongs to it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, TypedDict

import torch
from torch import Tensor

from scripts.geometry.coordinates import identity_grid, resample_grid, sample
from scripts.geometry.smoothing import gaussian_shrink


class ImagePair(NamedTuple):
    """One pair; all images (1, 1, D, H, W) on one grid shape."""

    moving: Tensor
    """Intensities in [0, 1]."""
    fixed: Tensor
    """Intensities in [0, 1]."""
    moving_affine: Tensor
    """(4, 4), tensor index of ``moving`` -> world mm (RAS)."""
    fixed_affine: Tensor
    """(4, 4), tensor index of ``fixed`` -> world mm (RAS)."""
    moving_mask: Tensor | None = None
    """Where the similarity of the warped fixed image counts; everywhere by default."""
    fixed_mask: Tensor | None = None
    """Where the similarity of the warped moving image counts; everywhere by default."""
    moving_label: Tensor | None = None
    """Integer values."""
    fixed_label: Tensor | None = None
    """Integer values."""

    def shrink(self, shape: tuple[int, int, int]) -> ImagePair:
        """Return the pair on a coarser grid (D, H, W) over the same unit cube; images are blurred against aliasing."""
        return ImagePair(
            shrink_image(self.moving, shape),
            shrink_image(self.fixed, shape),
            regrid_affine(self.moving_affine, self.moving.shape[2:], shape),
            regrid_affine(self.fixed_affine, self.fixed.shape[2:], shape),
            *(_shrink_mask(mask, shape) for mask in (self.moving_mask, self.fixed_mask)),
            *(_shrink_label(label, shape) for label in (self.moving_label, self.fixed_label)),
        )

    def target_masks(self) -> Tensor | None:
        """Return the masks of both directions' targets, (2, 1, D, H, W), fixed first; None where there is none."""
        given = self.moving_mask if self.moving_mask is not None else self.fixed_mask
        if given is None:
            return None
        everywhere = torch.ones_like(given)
        return torch.cat([everywhere if mask is None else mask for mask in (self.fixed_mask, self.moving_mask)])


class Registration(TypedDict, total=False):
    """What an inferer returns for a pair; MONAI's engine takes off the batch axes, and the lists of ``terms``."""

    forward_ddf: Tensor
    """([1,] 3, D, H, W), voxels of its grid, fixed grid -> moving grid; it spans the field of view of the images."""
    inverse_ddf: Tensor
    """The other way round, if it was asked for."""
    terms: dict[str, Any]
    """Figures by name; in a batch each a list with one number or text."""
    forward_mm: Tensor
    """Of other methods, instead of ``forward_ddf``: ([1,] 3, I, J, K), RAS mm, on the fixed image's own grid."""
    inverse_mm: Tensor
    """On the moving image's own grid, if the method gives it."""


def shrink_image(image: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Blur against aliasing and evaluate (B, C, D, H, W) on a coarser grid over the same unit cube."""
    ratio = max(n / m for n, m in zip(image.shape[2:], shape, strict=True))
    return gaussian_shrink(image, shape, 0.45 * ratio) if ratio > 1.2 else resample_grid(image, shape)


def _shrink_mask(mask: Tensor | None, shape: tuple[int, int, int]) -> Tensor | None:
    # a quarter of a voxel is enough: thin masks must not vanish on a coarse grid
    return None if mask is None else (shrink_image((mask != 0).float(), shape) > 0.25).float()


def _shrink_label(label: Tensor | None, shape: tuple[int, int, int]) -> Tensor | None:
    return None if label is None else sample(label.float(), identity_grid(shape, label.device), mode="nearest")


def regrid_affine(affine: Tensor, old: Sequence[int], new: Sequence[int]) -> Tensor:
    """Return the affine (4, 4) of a grid of another shape whose first and last voxel centers stay where they were."""
    scale = torch.tensor([(n - 1) / (m - 1) for n, m in zip(old, new, strict=True)] + [1.0], dtype=affine.dtype)
    return affine * scale.to(affine.device)
