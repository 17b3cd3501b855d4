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
"""Random pairs and random weights for the tests of the network, and the reference network with the same weights."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from scripts.geometry.smoothing import gaussian_blur
from scripts.networks.checkpoint_files import translate_keys
from scripts.networks.registration_network import RegistrationNetwork

SMALL = {"down_channels": (2, 4, 6, 8), "up_channels": (3, 4, 6)}  # three levels: at least 17 voxels an axis


def random_pair(shape: Sequence[int], batch: int = 1, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return smooth random images moving and fixed (B, 1, D, H, W) in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    noise = gaussian_blur(torch.randn(2 * batch, 1, *shape, generator=generator), 2.0)
    low, high = noise.amin((1, 2, 3, 4), keepdim=True), noise.amax((1, 2, 3, 4), keepdim=True)
    moving, fixed = ((noise - low) / (high - low)).split(batch)
    return moving, fixed


def random_network(seed: int = 0, size: float = 0.04, **arguments: Any) -> RegistrationNetwork:
    """Return a network in eval mode with random weights and batch-norm statistics.

    Args:
        seed: of the weights.
        size: largest displacement of each UNet, normalized, on a random pair.
        arguments: of the network; by default a small one.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = RegistrationNetwork(**{"spatial_shape": (17, 17, 17), **SMALL, **arguments}).eval()
        pair = random_pair([network.minimum_size] * 3)
        with torch.no_grad():
            for unet in network.unets:
                for norm in unet.norm:
                    norm.weight.uniform_(0.5, 1.5)
                    norm.bias.normal_(std=0.2)
                    norm.running_mean.normal_(std=0.2)
                    norm.running_var.uniform_(0.5, 1.5)
                unet.last.weight.normal_(std=0.05)
                unet.last.bias.normal_(std=0.05)
            for n, unet in enumerate(network.unets):
                factor = size / float(network.displacements(*pair)[n].abs().max())
                unet.last.weight.mul_(factor)
                unet.last.bias.mul_(factor)
    return network


def published_state(network: RegistrationNetwork) -> dict[str, Tensor]:
    """Return the weights under the keys of the published checkpoints."""
    layers = [
        *(f"{kind}.{n}.{name}" for kind in ("downConvs", "upConvs") for n in range(9) for name in ("weight", "bias")),
        *(
            f"batchNorms.{n}.{name}"
            for n in range(9)
            for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
        ),
        *("lastConv.weight", "lastConv.bias"),
    ]
    levels = network.unets[0].levels
    prefixes = ("netPhi.net.netPhi.net.net.", "netPhi.net.netPsi.net.", "netPsi.net.")
    if len(network.unets) == 4:
        prefixes = (*(f"netPhi.{prefix}" for prefix in prefixes), "netPsi.net.")
    keys = [prefix + layer for prefix in prefixes for layer in layers]
    keys = [key for key in keys if not any(f".{n}." in key for n in range(levels, 9))]
    ours = network.state_dict()
    translated = translate_keys(dict.fromkeys(keys, torch.empty(0)))
    return {key: ours[name] for key, name in zip(keys, translated, strict=True)}


def import_reference(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Return the modules of the reference implementation, on the CPU, or skip."""
    reason = (
        "the reference is a test-only dependency: pip install --no-deps unigradicon==1.0.6 icon_registration==1.1.9"
    )
    icon = pytest.importorskip("icon_registration", reason=reason)
    unigradicon = pytest.importorskip("unigradicon", reason=reason)
    monkeypatch.setattr(icon.config, "device", torch.device("cpu"))
    return SimpleNamespace(icon=icon, networks=icon.networks, unigradicon=unigradicon)


def reference_network(
    reference: SimpleNamespace, network: RegistrationNetwork, shape: Sequence[int], **loss: Any
) -> Any:
    """Return the reference's network and objective with the weights of ``network``, for images of ``shape``.

    Args:
        reference: of :func:`import_reference`.
        network: gives channels, stage and weights.
        shape: (D, H, W).
        loss: arguments of the reference's objective (``similarity``, ``dice_loss_weight``, ...).
    """
    icon, unet = reference.icon, network.unets[0]
    down = [2, *(layer.out_channels for layer in unet.down)]
    up = [layer.out_channels for layer in unet.up][::-1]

    def field() -> Any:
        return icon.FunctionFromVectorField(reference.networks.UNet2(len(up), [down, up], 3))

    inner = field()
    for _ in range(2):
        inner = icon.TwoStepRegistration(icon.DownsampleRegistration(inner, dimension=3), field())
    if len(network.unets) == 4:
        inner = icon.TwoStepRegistration(inner, field())
    inner.load_state_dict(published_state(network))
    loss = {"similarity": icon.LNCC(sigma=5), **loss}
    model = reference.unigradicon.GradientICONSparse(inner, lmbda=1.5, **loss)
    model.assign_identity_map([1, 1, *shape])
    return model.eval()
