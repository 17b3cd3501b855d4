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
"""The objective of the paper's VoxelMorph baseline: similarity and diffusion of both directions' displacements."""

from __future__ import annotations

import torch
from monai.losses import DiffusionLoss
from torch import Tensor, nn

from scripts.geometry.coordinates import Transform, extent, identity_grid_like
from scripts.losses.gradicon import GradICONLoss


class DiffusionRegularizedLoss(GradICONLoss):
    """The objective with VoxelMorph's regularity: the mean squared gradient of the displacement, in voxels.

    Args:
        similarity: as for :class:`scripts.losses.gradicon.GradICONLoss`.
        lambda_diffusion: weight of the regularity, which is the mean of both directions.
        dice_weight: as there.
        require_labels: as there.
    """

    def __init__(
        self,
        similarity: nn.Module,
        lambda_diffusion: float = 1.0,
        dice_weight: float = 0.0,
        require_labels: bool = True,
    ) -> None:
        super().__init__(similarity, lambda_diffusion, dice_weight=dice_weight, require_labels=require_labels)
        self.diffusion = DiffusionLoss()

    def _regularity(
        self,
        transforms: tuple[Transform, Transform],
        points: tuple[Tensor, Tensor],
        noise: Tensor | None,
        generator: torch.Generator | None,
    ) -> Tensor:
        grid = identity_grid_like(points[0])
        terms = [self.diffusion((mapped - grid) * extent(mapped)) for mapped in points]
        return (terms[0] + terms[1]) / 2
