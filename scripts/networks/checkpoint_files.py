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
"""Files of weights: what they hold, in the names of the network here.

Accepted: a plain state dict of the network here (also inside {"model": ...}, as a checkpoint handler saves it) and the
published ``Step_1_final.trch`` and ``Step_2_final.trch`` of uniGradICON and multiGradICON, whose keys are translated.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from scripts.utils.errors import InputError, InputFileError

# prefixes of the published step-2 keys, U1 (quarter size) to U4; a step-1 file lacks U4 and the leading "netPhi."
_PUBLISHED_PREFIXES = (
    "netPhi.netPhi.net.netPhi.net.net.",
    "netPhi.netPhi.net.netPsi.net.",
    "netPhi.netPsi.net.",
    "netPsi.net.",
)
_PUBLISHED_LAYER = re.compile(r"(downConvs|upConvs|batchNorms)\.(\d+)\.(\w+)|lastConv\.(\w+)")


class Checkpoint(NamedTuple):
    """What a file of weights holds."""

    state: dict[str, Tensor]
    """State dict with the keys of the network here, on the CPU."""
    spatial_shape: list[int] | None
    """(D, H, W) that the weights are made for, where the file tells it."""
    preprocessing: dict[str, Any]
    """What the file records of the preprocessing that the weights are made for: any fields of
    :class:`scripts.networks.weights_preprocessing.Preprocessing`."""


def read_checkpoint(path: Path) -> Checkpoint:
    """Read weights with ``weights_only=True``: a state dict, also inside ``{"model": state_dict}``, any known keys.

    Raises:
        InputFileError: the file can't be read.
        InputError: it holds no state dict.
    """
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a file that is no checkpoint
        reason = str(error).strip().split("\n")[0][:200]
        if "weights_only" in reason:  # PyTorch's advice, to run whatever the file holds
            reason = "it holds something else than tensors and plain values"
        raise InputFileError(f"weights: {path} can't be read as a PyTorch checkpoint of tensors ({reason})") from error
    facts: Any = None
    if isinstance(content, Mapping) and isinstance(content.get("model"), Mapping):
        facts, content = content.get("network"), content["model"]
    elif isinstance(content, Mapping):
        metadata = getattr(content, "_metadata", None)  # of the weights that come with the bundle
        facts = metadata.get("") if isinstance(metadata, Mapping) else None
    facts = facts if isinstance(facts, Mapping) else {}
    if not isinstance(content, Mapping) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        found = (
            f"keys {first_names(map(str, content))}" if isinstance(content, Mapping) else f"a {type(content).__name__}"
        )
        raise InputError(f'weights: {path} must hold a state dict of tensors (or {{"model": state dict}}), got {found}')
    # "module." comes from DistributedDataParallel
    state = {str(key).removeprefix("module."): value for key, value in content.items()}
    return Checkpoint(translate_keys(state), _spatial_shape(facts, path), _preprocessing(facts, path))


def _preprocessing(facts: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Return what a file records of the preprocessing."""
    found: dict[str, Any] = {}
    if facts.get("match_orientation") is not None:
        if not isinstance(facts["match_orientation"], bool):
            raise InputError(
                f"weights: {path} must record match_orientation as True or False, got {facts['match_orientation']!r}"
            )
        found["match_orientation"] = facts["match_orientation"]
    for name in ("ct_window", "mr_percentiles"):
        ends = facts.get(name)
        if ends is None:
            continue
        if not isinstance(ends, list) or len(ends) != 2 or not all(type(end) in (int, float) for end in ends):
            raise InputError(f"weights: {path} must record {name} as two numbers, got {ends!r}")
        found[name] = ends
    return found


def _spatial_shape(facts: Mapping[str, Any], path: Path) -> list[int] | None:
    """Return the shape that a checkpoint of the training here, or the default weights, tell."""
    shape = facts.get("spatial_shape")
    if shape is not None and not (isinstance(shape, list) and len(shape) == 3 and all(type(n) is int for n in shape)):
        raise InputError(f"weights: {path} must tell its network's spatial_shape as three whole numbers, got {shape!r}")
    return shape


def translate_keys(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the keys of a published checkpoint to those of the network here.

    See :class:`scripts.networks.registration_network.RegistrationNetwork`.
    Keys that are not of the published form stay as they are.
    """
    is_step_2 = any(key.startswith(_PUBLISHED_PREFIXES[0]) for key in state)
    prefixes = _PUBLISHED_PREFIXES if is_step_2 else tuple(p.removeprefix("netPhi.") for p in _PUBLISHED_PREFIXES[:3])
    levels = sum(key.startswith(prefixes[0] + "batchNorms.") and key.endswith(".weight") for key in state)
    return {_translate(key, prefixes, levels): value for key, value in state.items()}


def _translate(key: str, prefixes: tuple[str, ...], levels: int) -> str:
    for n, prefix in enumerate(prefixes):
        layer = _PUBLISHED_LAYER.fullmatch(key[len(prefix) :]) if key.startswith(prefix) else None
        if layer is None:
            continue
        kind, level, name, last = layer.groups()
        if last is not None:
            return f"unets.{n}.last.{last}"
        if kind == "downConvs":
            return f"unets.{n}.down.{level}.{name}"
        # on the way up the published lists begin with the finest level, ours with the coarsest
        return f"unets.{n}.{'up' if kind == 'upConvs' else 'norm'}.{levels - 1 - int(level)}.{name}"
    return key


def first_names(names: Any, count: int = 3) -> str:
    """Return a short text of a few names."""
    names = list(names)
    return f"({', '.join(names[:count])}{', ...' if len(names) > count else ''})"
