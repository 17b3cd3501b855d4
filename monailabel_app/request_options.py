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
"""What a client may ask of a registration: names, defaults, choices and ranges, all checked before any work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from monailabel_app.request_errors import RequestError, check_id
from scripts.data.cases import MODALITIES
from scripts.losses.similarity import SIMILARITIES

AUTO, FUSE = "auto", "fuse"
RESULTS = ("label", "warped", "displacement", "transform")
CHOICES: dict[str, tuple[str, ...]] = {  # the first one is the default
    "result": RESULTS,
    "preset": ("default", "fast", "accurate"),
    "optimization": ("field", "network", "off"),
    "similarity": SIMILARITIES,
    "vote": ("local", "majority"),
    "result_extension": (".nii.gz", ".nrrd", ".nii", ".mha"),
}
RANGES = {"steps": (50, 1, 500), "atlases": (3, 2, 10)}  # default, lowest, highest
LABEL_TYPES = ("uint8", "int16", "uint16", "int32")  # of result_dtype


@dataclass(frozen=True)
class InferOptions:
    """A checked request."""

    moving: str
    """Id of a study, ``auto`` or ``fuse``."""
    result: str
    weights: str
    preset: str
    optimization: str
    steps: int
    similarity: str
    atlases: int
    vote: str
    fixed_modality: str | None
    moving_modality: str | None
    result_extension: str
    result_dtype: str | None
    result_compress: bool


def read_options(request: Mapping[str, Any], weights: Sequence[str]) -> InferOptions:
    """Return the options of a request; those that it does not name have their defaults.

    A list is what the options' panel of a client may send back untouched: its first entry counts.

    Args:
        request: parameters as the client sent them, names that are not ours among them.
        weights: names that may be asked for, the default first.

    Raises:
        RequestError: one line on the first value that can't be used.
    """
    given = single(request)
    chosen = {name: _choice(given, name, choices) for name, choices in CHOICES.items()}
    moving = check_id("moving", given.get("moving") or AUTO)
    if moving == FUSE and chosen["result"] != "label":
        raise RequestError(
            f"result: '{chosen['result']}' is of one pair; with moving 'fuse' only 'label' can be asked for"
        )
    dtype = str(given.get("result_dtype") or "") or None
    if dtype is not None and dtype not in LABEL_TYPES:
        raise RequestError(f"result_dtype: expected one of {', '.join(LABEL_TYPES)}, got {dtype!r}")
    return InferOptions(
        moving=moving,
        weights=_choice(given, "weights", weights),
        steps=_number(given, "steps"),
        atlases=_number(given, "atlases"),
        fixed_modality=_modality(given, "fixed_modality"),
        moving_modality=_modality(given, "moving_modality"),
        result_dtype=dtype,
        result_compress=str(given.get("result_compress", True)).lower() not in ("false", "0", "no"),
        **chosen,  # type: ignore[arg-type]
    )


def single(request: Mapping[str, Any]) -> dict[str, Any]:
    """Return a request with the first entry of each list that stands for one value; ``images`` stays a list."""
    return {
        name: value[0] if isinstance(value, list) and value and name != "images" else value
        for name, value in request.items()
    }


def panel(moving: Sequence[str], weights: Sequence[str]) -> dict[str, Any]:
    """Return the options as a client's panel shows them (3D Slicer: lists are menus, the first entry chosen).

    Args:
        moving: ids of the studies that can be asked for.
        weights: names of weights.
    """
    shown = {name: list(CHOICES[name]) for name in ("result", "preset", "optimization", "similarity", "vote")}
    return {
        "moving": [AUTO, FUSE, *moving],
        **shown,
        "steps": RANGES["steps"][0],
        "atlases": RANGES["atlases"][0],
        "weights": list(weights),
    }


def _choice(given: Mapping[str, Any], name: str, choices: Sequence[str]) -> str:
    value = given.get(name)
    if value is None or value == "":
        return choices[0]
    if not isinstance(value, str) or value not in choices:
        raise RequestError(f"{name}: expected one of {', '.join(choices)}, got {str(value)[:60]!r}")
    return value


def _number(given: Mapping[str, Any], name: str) -> int:
    default, lowest, highest = RANGES[name]
    value = given.get(name)
    if value is None or value == "":
        return default
    text = str(value).strip()
    # panels send numbers as texts, or as 50.0
    whole = text.removesuffix(".0")
    if isinstance(value, bool) or not whole.isascii() or not whole.isdigit() or len(whole) > 6:
        raise RequestError(f"{name}: expected a whole number from {lowest} to {highest}, got {text[:60]!r}")
    if not lowest <= int(whole) <= highest:
        raise RequestError(f"{name}: expected {lowest} to {highest}, got {whole}")
    return int(whole)


def _modality(given: Mapping[str, Any], name: str) -> str | None:
    value = given.get(name)
    if value is None or value == "":
        return None
    if str(value).lower() not in MODALITIES:
        raise RequestError(f"{name}: expected ct or mr, got {str(value)[:60]!r}")
    return MODALITIES[str(value).lower()]
