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
"""The network as it is trained: both directions of a pair in one call, as DistributedDataParallel needs it."""

from __future__ import annotations

from typing import Self, cast

import torch
from torch import Tensor, nn

from scripts.networks.registration_network import RegistrationNetwork
from scripts.networks.unet import UNet
from scripts.utils.errors import InputError


class PairNetwork(nn.Module):
    """Register a pair in both directions, one after the other, as the reference does.

    The weights are those of the network inside, which is what checkpoints hold.

    Args:
        network: :class:`scripts.networks.registration_network.RegistrationNetwork`, or another with the method
            ``displacements``.
        activation_checkpointing: compute each UNet's activations again in the backward pass instead of keeping them:
            less memory, more time, the same result.
        channels_last: keep images and weights with channels as the fastest axis, which processors and tensor cores
            prefer.
        freeze_batch_norm: normalize by the weights' running statistics also in training mode, and keep them: what is
            trained is what registers. With a pair or two in a batch, their own statistics lead to weights that only
            work with these.
        batch_norm_momentum: weight of a batch in the running statistics. Those of a few pairs scatter: the fewer pairs
            in a batch, the smaller this must be for what registers to be what was trained.
    """

    def __init__(
        self,
        network: nn.Module,
        activation_checkpointing: bool = False,
        channels_last: bool = False,
        freeze_batch_norm: bool = False,
        batch_norm_momentum: float = 0.1,
    ) -> None:
        super().__init__()
        self.network = network
        if not 0 < batch_norm_momentum <= 1:
            raise InputError(f"batch_norm_momentum must be in (0, 1], got {batch_norm_momentum}")
        self.freeze_batch_norm = freeze_batch_norm
        self.memory_format = torch.channels_last_3d if channels_last else torch.contiguous_format
        if channels_last:
            self.network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        for module in network.modules():
            if isinstance(module, UNet):
                module.recomputes = activation_checkpointing
            elif isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.momentum = batch_norm_momentum

    def train(self, mode: bool = True) -> Self:
        """Switch between training and evaluation, frozen batch norms stay in evaluation."""
        super().train(mode)
        if self.freeze_batch_norm:
            for module in self.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self

    def forward(self, image: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Return the displacement fields of the forward and of the inverse transform.

        Args:
            image: (B, 2, D, H, W) in [0, 1], channel 0 moving, channel 1 fixed.

        Returns:
            two lists of fields (B, 3, d, h, w), normalized units, coarse to fine, to be composed by
            :class:`scripts.geometry.composition.CompositeTransform`.
        """
        moving, fixed = (part.contiguous(memory_format=self.memory_format) for part in image.split(1, dim=1))
        displacements = cast(RegistrationNetwork, self.network).displacements
        return displacements(moving, fixed), displacements(fixed, moving)
