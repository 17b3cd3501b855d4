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
"""The registration network: three or four UNets, coarse to fine, whose displacements are composed.

Contract: ``moving(phi(x)) ~ fixed(x)`` for every point x of the fixed grid, phi = ``network.register(moving, fixed)``.
(Tian et al., uniGradICON, MICCAI 2024; the same numbers as ``unigradicon.make_network``.)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scripts.geometry.composition import CompositeTransform, apply_on_grid
from scripts.geometry.coordinates import (
    Transform,
    extent,
    identity_grid_like,
    identity_transform,
    sample,
)
from scripts.networks.unet import DOWN_CHANNELS, UP_CHANNELS, UNet
from scripts.utils.errors import InputError

SPATIAL_SHAPE = (175, 175, 175)


def _halve(image: Tensor) -> Tensor:
    return F.avg_pool3d(image, 2, ceil_mode=True)


class RegistrationNetwork(nn.Module):
    """The multi-resolution network: UNets at a quarter, half and full size, and in stage 2 once more at full size.

    Args:
        spatial_shape: grid (D, H, W) that the weights are made for. Any other shape of at least ``minimum_size`` an
            axis works as well.
        down_channels: see :class:`scripts.networks.unet.UNet`.
        up_channels: likewise.
        stage: training stage of the weights: 1 (three UNets) or 2 (four).

    Raises:
        InputError: channels that do not fit together, an unknown stage, or a shape that is too small.
    """

    def __init__(
        self,
        spatial_shape: Sequence[int] = SPATIAL_SHAPE,
        down_channels: Sequence[int] = DOWN_CHANNELS,
        up_channels: Sequence[int] = UP_CHANNELS,
        stage: int = 2,
    ) -> None:
        super().__init__()
        if stage not in (1, 2):
            raise InputError(f"stage must be 1 (three UNets) or 2 (four UNets), got {stage}")
        self.unets = nn.ModuleList([UNet(down_channels, up_channels) for _ in range(2 + stage)])
        # each level of the coarsest UNet, at a quarter of the size, must get a grid of at least 2
        self.minimum_size = 4 * 2 ** (len(up_channels) - 1) + 1
        self.spatial_shape = [int(n) for n in spatial_shape]
        if len(self.spatial_shape) != 3 or min(self.spatial_shape) < self.minimum_size:
            raise InputError(
                f"network_shape must have three axes of at least {self.minimum_size} voxels for a network of"
                f" {len(up_channels)} levels, got {self.spatial_shape}"
            )

    def forward(self, image: Tensor) -> Tensor:
        """Register a pair.

        Args:
            image: (B, 2, D, H, W), channel 0 moving, channel 1 fixed, in [0, 1].

        Returns:
            ddf (B, 3, D, H, W), voxels of this grid, from a voxel of the fixed image to its place in the moving one.
        """
        if image.dim() != 5 or image.shape[1] != 2:
            raise ValueError(f"network: expected a pair (B, 2, D, H, W), moving then fixed, got {list(image.shape)}")
        fields = self.displacements(image[:, :1], image[:, 1:])
        return (apply_on_grid(fields, image) - identity_grid_like(image)) * extent(image)

    @torch.jit.export
    def displacements(self, moving: Tensor, fixed: Tensor) -> list[Tensor]:
        """Return the displacement field of each UNet, coarse to fine.

        They are composed by :func:`scripts.geometry.composition.apply_displacements`.

        Args:
            moving: (B, 1, D, H, W) in [0, 1].
            fixed: same shape.

        Returns:
            three or four fields (B, 3, d, h, w), normalized units, at a quarter, half, full and full size.

        Raises:
            ValueError: shapes that differ or are too small.
        """
        if moving.shape != fixed.shape or moving.dim() != 5 or moving.shape[1] != 1:
            raise ValueError(
                "network: moving and fixed must have one shape (B, 1, D, H, W),"
                f" got {list(moving.shape)} and {list(fixed.shape)}"
            )
        if min(moving.shape[2:]) < self.minimum_size:
            raise ValueError(
                f"network: each axis must have at least {self.minimum_size} voxels, got {list(moving.shape[2:])};"
                " set a larger network_shape"
            )
        moving_half, fixed_half = _halve(moving), _halve(fixed)
        images_moving = [_halve(moving_half), moving_half, moving, moving]
        images_fixed = [_halve(fixed_half), fixed_half, fixed, fixed]
        fields: list[Tensor] = []
        for n, unet in enumerate(self.unets):
            warped = images_moving[n]
            if n > 0:
                warped = sample(warped, apply_on_grid(fields, warped))
            # under autocast the network is in half precision; coordinates are not
            fields.append(unet(warped, images_fixed[n]).to(moving.dtype))
        return fields

    @torch.jit.unused
    def register(self, moving: Tensor, fixed: Tensor) -> CompositeTransform:
        """Return the transform with moving(transform(x)) ~ fixed(x), a function on normalized points.

        Differentiable with respect to the weights and the images. Arguments as in :meth:`displacements`.
        """
        return CompositeTransform(self.displacements(moving, fixed))


class IdentityNetwork(nn.Module):
    """Stands in for the network in the training-free mode (``model: none``): every pair is mapped by the identity."""

    def forward(self, image: Tensor) -> Tensor:
        """Return a ddf of zeros (B, 3, D, H, W) for a pair (B, 2, D, H, W)."""
        return torch.zeros_like(image[:, :1]).expand(-1, 3, -1, -1, -1).contiguous()

    @torch.jit.export
    def displacements(self, moving: Tensor, fixed: Tensor) -> list[Tensor]:
        """Return one field of zeros (B, 3, D, H, W)."""
        return [self.forward(torch.cat([moving, fixed], dim=1))]

    @torch.jit.unused
    def register(self, moving: Tensor, fixed: Tensor) -> Transform:
        """Return the identity."""
        return identity_transform
