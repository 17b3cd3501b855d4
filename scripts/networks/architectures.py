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
"""Make the network that a file of weights needs: its widths and stage follow from the tensors' shapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from scripts.networks.checkpoint_files import read_checkpoint
from scripts.networks.checkpoints import find_weights
from scripts.networks.registration_network import (
    DOWN_CHANNELS,
    SPATIAL_SHAPE,
    UP_CHANNELS,
    IdentityNetwork,
    RegistrationNetwork,
)
from scripts.utils.paths import is_absent


class Architecture(NamedTuple):
    """What a network is made from; None where it is not known.

    See :class:`scripts.networks.registration_network.RegistrationNetwork`.
    """

    spatial_shape: Sequence[int] | None = None
    """(D, H, W) that the weights are made for; only checkpoints written here tell it."""
    down_channels: Sequence[int] | None = None
    up_channels: Sequence[int] | None = None
    stage: int | None = None


PUBLISHED = Architecture(SPATIAL_SHAPE, DOWN_CHANNELS, UP_CHANNELS, 2)


def read_architecture(path: Path) -> Architecture:
    """Return what a file of weights tells.

    Args:
        path: any checkpoint that :func:`scripts.networks.checkpoints.load_weights` takes.

    Raises:
        InputError: the file holds no state dict; the same as when its weights are loaded.
    """
    checkpoint = read_checkpoint(path)
    return architecture_of(checkpoint.state)._replace(spatial_shape=checkpoint.spatial_shape)


def architecture_of(state: Mapping[str, Tensor]) -> Architecture:
    """Return the widths and the stage of a state dict of the network here; nothing if it is of another one."""
    unets = {key.split(".")[1] for key in state if key.startswith("unets.")}
    down, up = [2], list[int]()
    while (key := f"unets.0.down.{len(down) - 1}.weight") in state:
        down.append(state[key].shape[0])
    while (key := f"unets.0.up.{len(up)}.weight") in state:
        up.insert(0, state[key].shape[1])  # kept from the coarsest level on
    if len(unets) not in (3, 4) or len(down) != len(up) + 1 or not up:
        return Architecture()
    return Architecture(None, down, up, len(unets) - 2)


def create_registration_network(
    model: str = "none",
    ckpt_path: str | Path | None = None,
    bundle_root: str | Path = ".",
    spatial_shape: Sequence[int] | None = None,
    down_channels: Sequence[int] | None = None,
    up_channels: Sequence[int] | None = None,
    stage: int | None = None,
    default_shape: Sequence[int] = SPATIAL_SHAPE,
) -> RegistrationNetwork:
    """Return a network for weights, without loading them (:func:`scripts.networks.checkpoints.load_weights` does).

    What is None is that of the weights, or as published where their file does not tell or is missing (which loading
    will say).

    Args:
        model: see :func:`scripts.networks.checkpoints.find_weights`.
        ckpt_path: likewise.
        bundle_root: likewise.
        spatial_shape: (D, H, W) that the network works at.
        down_channels: see :class:`scripts.networks.unet.UNet`.
        up_channels: likewise.
        stage: 1 (three UNets) or 2 (four).
        default_shape: (D, H, W) for weights that do not tell theirs, as the published ones.

    Raises:
        InputError: the file holds no state dict, or see
            :class:`scripts.networks.registration_network.RegistrationNetwork`.
    """
    given = Architecture(spatial_shape, down_channels, up_channels, stage)
    found = Architecture()
    if None in given:
        try:
            path = find_weights(model, ckpt_path, bundle_root)
            found = found if path is None else read_architecture(path)
        except FileNotFoundError:
            pass  # a bundle can be inspected without its weights
    choices = zip(given, found, PUBLISHED._replace(spatial_shape=default_shape), strict=True)
    chosen = (next(value for value in values if value is not None) for values in choices)
    return RegistrationNetwork(*chosen)  # type: ignore[arg-type]


def create_network(
    model: str, ckpt_path: str | Path | None = None, bundle_root: str | Path = ".", **arguments: Any
) -> RegistrationNetwork | IdentityNetwork:
    """Return :func:`create_registration_network`; for ``model`` "none" without own weights the training-free stand-in.

    Args:
        model: "none", or see :func:`scripts.networks.checkpoints.find_weights`.
        ckpt_path: own weights; they win over ``model``.
        bundle_root: folder of the bundle.
        arguments: further ones of :func:`create_registration_network`.
    """
    if model == "none" and is_absent(ckpt_path):
        return IdentityNetwork()
    return create_registration_network(model, ckpt_path, bundle_root, **arguments)
