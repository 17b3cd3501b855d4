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
"""Weights: find the file, read it safely, translate published keys, load it or say what does not fit."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from scripts.networks.checkpoint_files import first_names, read_checkpoint
from scripts.networks.published_weights import (
    PUBLISHED_FILES,
    bundle_folder,
    check_unchanged,
    download_command,
    sha256_of,
)
from scripts.networks.registration_network import IdentityNetwork
from scripts.utils.errors import InputError, InputFileError
from scripts.utils.paths import existing_path, is_absent
from scripts.utils.seeding import check_device

logger = logging.getLogger(__name__)

DEFAULT_MODEL = "default"  # comes with the bundle
MODEL_FILES = {DEFAULT_MODEL: "models/model.pt", **PUBLISHED_FILES}
CHECKSUMS = "SHA256SUMS"  # beside a file of weights that comes with the bundle, as sha256sum writes it

Network = TypeVar("Network", bound=nn.Module)


def find_weights(model: str, ckpt_path: str | Path | None = None, bundle_root: str | Path = ".") -> Path | None:
    """Return the weights' file, or None in the training-free mode.

    Args:
        model: "none" or a key of :data:`MODEL_FILES`.
        ckpt_path: own weights; they win over ``model``.
        bundle_root: folder that holds models/.

    Raises:
        InputError: an unknown model.
        InputFileError: the file is not there; for a published model with the command that fetches it.
    """
    if ckpt_path:
        return Path(existing_path("ckpt_path", ckpt_path, Path()))
    if model == "none":
        return None
    if model not in MODEL_FILES:
        raise InputError(f"model: expected one of none, {', '.join(MODEL_FILES)}, got '{model}'")
    path = bundle_folder(bundle_root) / MODEL_FILES[model]
    if model == DEFAULT_MODEL and not path.is_file():
        raise InputFileError(f"model: the default weights are not at {path}; restore them with: git checkout {path}")
    if not path.is_file():
        raise InputFileError(
            f"model: the weights of {model} are not at {path}; fetch them with: {download_command(model, bundle_root)}"
        )
    return path


def describe_weights(path: str | Path | None = None, name: str | None = None) -> dict[str, str | None]:
    """Return name, path and SHA-256 of a weights' file for logs and reports; without a file the last two are None.

    Args:
        path: the file, None in the training-free mode.
        name: of the model; by default the file's name.
    """
    if path is None:
        return {"name": name or "none", "path": None, "sha256": None}
    path = Path(path).resolve()
    stat = path.stat()
    return {"name": name or path.name, "path": str(path), "sha256": _sha256(path, stat.st_mtime_ns, stat.st_size)}


@lru_cache(maxsize=8)
def _sha256(path: Path, modified: int, size: int) -> str:
    """Hash a file; time and size only tell the cache when it changed."""
    return sha256_of(path)


def check_sum(path: Path) -> None:
    """Compare a file with its SHA-256 in the list beside it.

    Raises:
        InputFileError: they differ, or the file is not listed.
    """
    lines = (path.parent / CHECKSUMS).read_text().splitlines() if (path.parent / CHECKSUMS).is_file() else []
    expected = {name: digest for digest, name in (line.split() for line in lines if line.strip())}.get(path.name)
    found = describe_weights(path)["sha256"]
    if expected != found:
        raise InputFileError(
            f"weights: {path} is not the file that this version came with (SHA-256 {found},"
            f" {CHECKSUMS} says {expected}); fetch the repository again, or name your own weights with --ckpt_path"
        )


def load_weights(
    network: Network,
    model: str,
    ckpt_path: str | Path | None = None,
    bundle_root: str | Path = ".",
    device: torch.device | str = "cpu",
) -> Network:
    """Load the weights of ``model`` (or ``ckpt_path``) into a network; logs what was loaded, with its SHA-256.

    Weights of stage 1 also fit a network of stage 2, whose fourth UNet then starts as the identity.

    Args:
        network: of :func:`scripts.networks.architectures.create_network`.
        model: see :func:`find_weights`, as the next two.
        ckpt_path: likewise.
        bundle_root: likewise.
        device: where the network goes.

    Returns:
        the same network, in eval mode, on the device.

    Raises:
        InputError: the file is no state dict of this network; names the first keys or the shape that differ.
        InputFileError: see :func:`find_weights`, or the file can't be read.
    """
    device = check_device(device)
    path = find_weights(model, ckpt_path, bundle_root)
    if path is not None and not ckpt_path and model == DEFAULT_MODEL:
        check_sum(path)
    if path is None or isinstance(network, IdentityNetwork):
        logger.info(
            "model none: training-free mode, no network weights are used; the published weights, for model"
            " unigradicon or multigradicon, come with: %s",
            download_command("unigradicon", bundle_root),
        )
        return network.to(device).eval()
    facts = describe_weights(path, None if ckpt_path else model)
    if ckpt_path or model != DEFAULT_MODEL:  # of which check_sum told; a note is of another file
        check_unchanged(path, str(facts["sha256"]), None if ckpt_path else model, bundle_root)
    expected = network.state_dict()
    state = _complete_stage_1(read_checkpoint(path).state, expected)  # half precision becomes that of the network
    _check_fit(state, expected, path)
    network.load_state_dict(state)
    logger.info("weights %s from %s, SHA-256 %s", facts["name"], facts["path"], facts["sha256"])
    return network.to(device).eval()


def start_weights(
    network: Network,
    init_ckpt: str | Path | None = None,
    model: str = "none",
    bundle_root: str | Path = ".",
    device: torch.device | str = "cpu",
    required: bool = False,
) -> Network:
    """Return a network for training: with weights to start from, or as it was made, at random.

    Args:
        network: :class:`scripts.networks.registration_network.RegistrationNetwork`.
        init_ckpt: weights; they win over ``model``.
        model: see :func:`find_weights`.
        bundle_root: likewise.
        device: where the network goes.
        required: refuse to start at random.

    Raises:
        InputError: see :func:`load_weights`; or no weights where they are required.
    """
    if is_absent(init_ckpt) and model == "none":
        if required:
            raise InputError(
                "fine-tuning needs weights to start from: give --init_ckpt FILE, --model default, or --model"
                f" unigradicon (fetched with: {download_command('unigradicon', bundle_root)})"
            )
        logger.info("training from nothing: the weights are random, the transform is the identity at first")
        return network.to(device)
    path = None if is_absent(init_ckpt) else existing_path("init_ckpt", init_ckpt, Path())
    return load_weights(network, model, path, bundle_root, device)


def _complete_stage_1(state: dict[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Add a fourth UNet, the identity (a last layer of zeros), to the weights of three, where the network has four."""
    fourth = {key: value for key, value in expected.items() if key.startswith("unets.3.")}
    if not fourth or set(state) != set(expected) - set(fourth):
        return state
    logger.info("weights of stage 1 (three UNets) in a network of four: the fourth starts as the identity")
    added = {key: torch.zeros_like(value) if ".last." in key else value for key, value in fourth.items()}
    return {**state, **added}


def _check_fit(state: Mapping[str, Tensor], expected: Mapping[str, Tensor], path: Path) -> None:
    missing, unexpected = sorted(set(expected) - set(state)), sorted(set(state) - set(expected))
    if missing or unexpected:
        raise InputError(
            f"weights: {path} does not fit this network: {len(missing)} missing keys {first_names(missing)},"
            f" {len(unexpected)} unexpected keys {first_names(unexpected)}; check stage, down_channels and up_channels"
        )
    for key, value in expected.items():
        if state[key].shape != value.shape:
            raise InputError(
                f"weights: {path} does not fit this network: {key} has shape {tuple(state[key].shape)},"
                f" expected {tuple(value.shape)}; check down_channels and up_channels"
            )
