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
"""Learn2Reg's ``*_dataset.json``, as the challenge hands it out: its images and pairs as entries of our lists.

Training takes ``training_paired_images`` if there are any, else ``training`` (random pairs); whatever belongs to
``registration_val`` or ``registration_test`` is left out. Validation takes ``registration_val``, test
``registration_test``. Labels, masks and
keypoints that the file does not name are found by the challenge's folders (labelsTr, masksTr, keypointsTr).
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scripts.utils.errors import InputError
from scripts.utils.paths import stem

FOLDERS = {"label": "labels", "mask": "masks", "landmarks": "keypoints"}
PAIR_LISTS = {"validation": "registration_val", "test": "registration_test"}
HELD_OUT = tuple(PAIR_LISTS.values())
SPLITS = ("training", *PAIR_LISTS)
_CASE = re.compile(r"(.+)_(\d{4})")  # the last number tells the modality (or the time point)


def is_learn2reg(content: Any) -> bool:
    """Tell whether a JSON file's content has the form of a Learn2Reg data set."""
    return isinstance(content, dict) and bool({"training", "registration_val", "training_paired_images"} & set(content))


def learn2reg_entries(content: Mapping[str, Any], path: Path, split: str) -> list[dict[str, Any]]:
    """Return image entries or pair entries, with paths relative to the folder of ``path``.

    Args:
        content: of the JSON file.
        path: the file.
        split: "training", "validation" or "test".

    Raises:
        InputError: a part is malformed, or nothing is left to train on or to validate with.
    """
    named = {_normal(item["image"]): item for item in _list(content, "training", path) if isinstance(item, dict)}
    named |= {_normal(item): {"image": item} for item in _list(content, "training", path) if isinstance(item, str)}
    held_out = [pair for key in HELD_OUT for pair in _pairs(content, key, path)]
    if split not in SPLITS:
        raise InputError(f"split: expected one of {', '.join(SPLITS)}, got '{split}'")
    if split != "training":
        pairs = _pairs(content, PAIR_LISTS[split], path)
        if not pairs:
            raise InputError(f"'{path}' has no {PAIR_LISTS[split]} pairs; give another list or split")
        return [_pair_entry(pair, named, content, path) for pair in pairs]
    # by subject: another scan of a held-out patient is held out, too
    held_out_subjects = {_subject(image) for pair in held_out for image in pair}
    pairs = [
        pair
        for pair in _pairs(content, "training_paired_images", path)
        if not {_subject(image) for image in pair} & held_out_subjects
    ]
    if pairs:
        return [_pair_entry(pair, named, content, path) for pair in pairs]
    images = [image for image in named if _subject(image) not in held_out_subjects]
    if not images:
        raise InputError(f"'{path}' has no training images besides those of {' and '.join(HELD_OUT)}")
    return [{"subject": _subject(image), **_image(image, named, content, path)} for image in images]


def _list(content: Mapping[str, Any], key: str, path: Path) -> list[Any]:
    items = content.get(key) or []
    if not isinstance(items, list):
        raise InputError(f"'{path}': {key} must be a list, got {type(items).__name__}")
    return items


def _pairs(content: Mapping[str, Any], key: str, path: Path) -> list[tuple[str, str]]:
    """Return (fixed, moving) of each pair."""
    pairs = _list(content, key, path)
    for pair in pairs:
        if not isinstance(pair, dict) or not {"fixed", "moving"} <= set(pair):
            raise InputError(f"'{path}': each entry of {key} must name fixed and moving, got {pair!r}")
    return [(_normal(pair["fixed"]), _normal(pair["moving"])) for pair in pairs]


def _normal(name: str) -> str:
    return posixpath.normpath(str(name))


def _subject(image: str) -> str:
    found = _CASE.fullmatch(stem(image))
    return found.group(1) if found else stem(image)


def _pair_entry(
    pair: tuple[str, str], named: Mapping[str, Any], content: Mapping[str, Any], path: Path
) -> dict[str, Any]:
    entry: dict[str, Any] = {"landmark_space": "voxel"}
    for side, image in zip(("fixed", "moving"), pair, strict=True):
        for key, value in _image(image, named, content, path).items():
            if key != "landmark_space":
                entry[side if key == "image" else f"{side}_{key}"] = value
    return entry


def _image(image: str, named: Mapping[str, Any], content: Mapping[str, Any], path: Path) -> dict[str, Any]:
    given = named.get(image, {})
    entry: dict[str, Any] = {"image": image, "landmark_space": "voxel"}
    modality = _modality(image, content, path)
    if modality:
        entry["modality"] = modality
    for key, folder in FOLDERS.items():
        name = given.get("keypoints" if key == "landmarks" else key)
        derived = re.sub(r"(^|/)images(T[rs])/", rf"\g<1>{folder}\g<2>/", image)
        if key == "landmarks":
            derived = posixpath.join(posixpath.dirname(derived), stem(image) + ".csv")
        if name:
            entry[key] = _normal(name)
        elif derived != image and (path.parent / derived).is_file():
            entry[key] = derived
    return entry


def _modality(image: str, content: Mapping[str, Any], path: Path) -> str | None:
    """Return ct or mr by the file's ``modality`` table, or None where there is no table."""
    table = {str(key): _known(str(value).lower()) for key, value in (content.get("modality") or {}).items()}
    found = _CASE.fullmatch(stem(image))
    number = str(int(found.group(2))) if found else ""
    if number in table:
        return table[number]
    kinds = set(table.values())
    if len(kinds) > 1:
        raise InputError(f"'{path}': its modality table has no entry '{number}' for '{image}'; add it")
    return kinds.pop() if kinds else None


def _known(text: str) -> str | None:
    return "mr" if "mr" in text else "ct" if "ct" in text else None
