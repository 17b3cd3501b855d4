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
"""The network with its UNets compiled by TensorRT, through MONAI's ``trt_compile``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from monai.networks import trt_compile
from torch import nn

from scripts.networks.published_weights import bundle_folder
from scripts.networks.registration_network import RegistrationNetwork
from scripts.utils.errors import InputError

PRECISIONS = ("fp32", "tf32", "fp16", "bf16")


def compile_unets(
    network: nn.Module,
    weights: Mapping[str, str | None],
    precision: str = "fp32",
    engines: str | Path | None = None,
    bundle_root: str | Path = ".",
) -> nn.Module:
    """Let TensorRT compute the UNets of a network; sampling stays PyTorch's, as TensorRT has none of volumes.

    Engines are built at the first pass, for minutes, and kept in files whose names tell weights, shape, precision and
    GPU: MONAI takes whatever lies under a name. Without TensorRT or a GPU it warns, and the network stays as it is.

    Args:
        network: with its weights, on its device.
        weights: of :func:`scripts.networks.checkpoints.describe_weights`.
        precision: one of :data:`PRECISIONS`.
        engines: beginning of the engines' file names, whose folder is made; None: ``models/trt`` of the bundle.
        bundle_root: see :func:`scripts.networks.published_weights.bundle_folder`.

    Raises:
        InputError: no registration network, or an unknown precision.
    """
    if not isinstance(network, RegistrationNetwork):
        raise InputError("TensorRT needs a network: choose --model default, unigradicon, multigradicon or --ckpt_path")
    if precision not in PRECISIONS:
        raise InputError(f"trt_precision: expected one of {', '.join(PRECISIONS)}, got '{precision}'")
    if engines is None:
        engines = bundle_folder(bundle_root) / "models" / "trt"
    gpu = torch.cuda.get_device_name().replace(" ", "_") if torch.cuda.is_available() else "cpu"
    shape = "x".join(map(str, network.spatial_shape))
    base = f"{engines}-{str(weights['sha256'])[:12]}-{shape}-{precision}-{gpu}"
    Path(base).parent.mkdir(parents=True, exist_ok=True)
    unets = [f"unets.{n}" for n in range(len(network.unets))]
    return trt_compile(network, base, {"precision": precision}, submodule=unets)
