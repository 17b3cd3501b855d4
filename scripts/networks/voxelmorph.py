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
"""The paper's baseline: VoxelMorph-SVF (MONAI's ``VoxelMorph``) trained as a universal model on the same data.

(Balakrishnan et al., IEEE TMI 2019; Dalca et al., MedIA 2019, for the stationary velocity field.) Both directions are
trained, as the network here, with a diffusion penalty instead of GradICON.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from monai.networks.nets import VoxelMorph
from torch import Tensor, nn

from scripts.geometry.composition import CompositeTransform
from scripts.geometry.coordinates import extent
from scripts.utils.errors import InputError

DIVISOR = 32  # MONAI's VoxelMorph halves the grid five times


class VoxelMorphNetwork(nn.Module):
    """MONAI's VoxelMorph with the interface of :class:`scripts.networks.registration_network.RegistrationNetwork`.

    Args:
        spatial_shape: (D, H, W) of the grid; any multiple is made by repeating the border.
        integration_steps: squarings of the velocity field; 0 predicts displacements.
    """

    def __init__(self, spatial_shape: Sequence[int], integration_steps: int = 7) -> None:
        super().__init__()
        self.spatial_shape = [int(n) for n in spatial_shape]
        if len(self.spatial_shape) != 3 or min(self.spatial_shape) < DIVISOR:
            raise InputError(
                f"network_shape must have three axes of at least {DIVISOR} voxels for VoxelMorph,"
                f" got {self.spatial_shape}"
            )
        self.voxelmorph = VoxelMorph(integration_steps=integration_steps)
        # an untrained network is near the identity
        last = [module for module in self.voxelmorph.backbone.modules() if isinstance(module, nn.Conv3d)][-1]
        nn.init.normal_(last.weight, std=1e-5)
        if last.bias is not None:
            nn.init.zeros_(last.bias)

    def forward(self, image: Tensor) -> Tensor:
        """Return the ddf (B, 3, D, H, W), voxels, of a pair (B, 2, D, H, W), moving then fixed."""
        shape = image.shape[2:]
        padding = [pad for size in reversed(shape) for pad in (0, -size % DIVISOR)]
        moving, fixed = F.pad(image, padding, mode="replicate").split(1, dim=1)
        _, ddf = self.voxelmorph(moving, fixed)
        return ddf[:, :, : shape[0], : shape[1], : shape[2]]

    def displacements(self, moving: Tensor, fixed: Tensor) -> list[Tensor]:
        """Return one field (B, 3, D, H, W), normalized units; both images (B, 1, D, H, W)."""
        ddf = self.forward(torch.cat([moving, fixed], dim=1))
        return [ddf / extent(ddf)]

    def register(self, moving: Tensor, fixed: Tensor) -> CompositeTransform:
        """Return the transform with moving(transform(x)) ~ fixed(x), a function on normalized points."""
        return CompositeTransform(self.displacements(moving, fixed))
