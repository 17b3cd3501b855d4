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
"""Whether a step of optimization keeps its activations or computes them again in the backward pass."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import nn

from scripts.networks.registration_network import RegistrationNetwork
from scripts.networks.unet import UNet
from scripts.utils.errors import InputError
from scripts.utils.memory import available_memory

logger = logging.getLogger(__name__)

# Bytes that a step keeps for each voxel and each channel of the finest level, of a UNet of full size, both directions,
# float32, as measured (docs/performance.md).
_BYTES = {"running": 20, "batch": 35}
_LARGEST_SHARE = 1 / 4  # of the free memory: a laptop runs other programs, too


def step_bytes(network: nn.Module, shape: Sequence[int], batch_size: int = 1, batch_statistics: bool = False) -> int:
    """Estimate what one step of optimization needs beside weights, when activations are kept.

    Args:
        network: :class:`scripts.networks.registration_network.RegistrationNetwork`.
        shape: grid of the images (D, H, W).
        batch_size: pairs of a step.
        batch_statistics: batch norms normalize by the batch, as in training, and not by running statistics.
    """
    unets = cast(nn.ModuleList, network.unets)
    first = cast(UNet, unets[0])
    channels = sum(int(cast(nn.Conv3d, layer).out_channels) for layer in (first.down[0], first.up[-1]))
    sizes = (len(unets) - 2) + 1 / 8 + 1 / 64  # in UNets of full size
    per_voxel = _BYTES["batch" if batch_statistics else "running"] * channels * sizes
    return int(per_voxel * math.prod(shape) * batch_size)


def choose_recomputing(
    wanted: bool | str,
    network: nn.Module,
    shape: Sequence[int],
    device: torch.device | str,
    batch_size: int = 1,
    batch_statistics: bool = False,
) -> bool:
    """Return whether activations are to be computed again: less memory, more time (docs/performance.md).

    Args:
        wanted: True, False, or "auto": where keeping them would take more than a quarter of the free memory.
        network: see :func:`step_bytes`, as are ``shape``, ``batch_size`` and ``batch_statistics``.
        shape: likewise.
        device: where the step is computed.
        batch_size: likewise.
        batch_statistics: likewise.

    Raises:
        InputError: any other ``wanted``.
    """
    if isinstance(wanted, bool):
        return wanted
    if wanted != "auto":
        raise InputError(f"activation_checkpointing: expected True, False or auto, got '{wanted}'")
    if not isinstance(network, RegistrationNetwork):
        return False
    needed, free = step_bytes(network, shape, batch_size, batch_statistics), available_memory(device)
    recomputing = needed > _LARGEST_SHARE * free
    logger.info(
        "activations: %s (they need about %.1f of %.1f GB)",
        "computed twice" if recomputing else "kept",
        needed / 1e9,
        free / 1e9,
    )
    return recomputing
