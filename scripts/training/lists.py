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
"""From training lists to records: which images there are, of which subject, and which pairs are given.

A list is a JSON list of images, a JSON or CSV list of pairs (as inference takes them), Learn2Reg's own
``*_dataset.json``, or a composite ``{"datasets": [...]}`` of these. docs/data.md shows each.

A record is a plain dict, one of
    image: ``set, subject, images {contrast: path}, modalities {contrast: ct|mr}`` and, where given, ``mask``,
        ``label``, ``landmarks``, ``landmark_space``, ``frame``
    pair: ``set, fixed, moving``, both images as above
    synthetic: ``set, synthetic``, the options of :class:`scripts.data.synthetic.SyntheticPairs`
and carries its set's ``pairing`` and ``pairs_per_epoch`` where those were given.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scripts.data.cases import CASE_KEYS, MODALITIES, read_datalist
from scripts.data.learn2reg import is_learn2reg, learn2reg_entries
from scripts.utils.errors import InputError
from scripts.utils.paths import existing_path, is_absent, stem
from scripts.utils.suggestions import did_you_mean

PAIRINGS = ("inter_subject", "intra_subject")
SPLITS = ("training", "validation")
SET_KEYS = ("name", "list", "images", "pairs", "synthetic", "pairs_per_epoch", "pairing", "modality")
SOURCES = ("list", "images", "pairs", "synthetic")
IMAGE_KEYS = ("subject", "image", "images", "modality", "mask", "label", "landmarks", "landmark_space", "frame")
REGIONS = ("mask", "label", "landmarks")
Record = dict[str, Any]


def load_records(datalist: Any = None, split: str = "training", modality: str = "mr", required: bool = True) -> list:
    """Return the records of one list or of several.

    Args:
        datalist: path of a list, or several paths.
        split: "training" or "validation": which part of a Learn2Reg data set is meant.
        modality: of images that do not say.
        required: False returns [] when no list is given, so that a workflow can be built and inspected without data.

    Raises:
        InputError: one line that names the list, the entry and what to do.
    """
    if split not in SPLITS:
        raise InputError(f"split: expected one of {', '.join(SPLITS)}, got '{split}'")
    option = "train_datalist" if split == "training" else "val_datalist"
    if is_absent(datalist):
        if required:
            raise InputError(f"nothing to train on: give --{option} FILE; docs/data.md shows the forms it may have")
        return []
    paths = list(datalist) if isinstance(datalist, (list, tuple)) else [datalist]
    records: list[Record] = []
    for path in paths:
        path = existing_path(option, path, Path())
        found = _read(Path(path), stem(Path(path).with_suffix("").name), split, modality)
        taken = {record["set"] for record in records}
        twice = sorted(taken & {record["set"] for record in found})
        if twice:
            raise InputError(f"{option}: '{path}' has a data set '{twice[0]}' like an earlier one; names must differ")
        records += found
    return records


def require_records(records: Sequence[Any], option: str = "train_datalist") -> None:
    """Refuse to train without data; for workflows whose records are loaded with ``required=False``."""
    if not records:
        raise InputError(f"no data: give --{option} FILE; docs/data.md shows the forms it may have")


def _read(path: Path, name: str, split: str, modality: str) -> list[Record]:
    """Return the records of one file; ``name`` is that of its set unless the file says otherwise."""
    if path.suffix.lower() == ".csv":
        return _entries(read_datalist(str(path)), path, name, modality)
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"'{path}' can't be read as JSON: {error}") from error
    if is_learn2reg(content):
        return _entries(learn2reg_entries(content, path, split), path, name, modality)
    if isinstance(content, dict) and "datasets" in content:
        return _composite(content["datasets"], path, split, modality)
    if isinstance(content, list):
        return _entries(content, path, name, modality)
    raise InputError(
        f"'{path}' must hold a list of images or pairs, {{\"datasets\": [...]}}, or a Learn2Reg data set; see"
        " docs/data.md"
    )


def _composite(sets: Any, path: Path, split: str, modality: str) -> list[Record]:
    if not isinstance(sets, list) or not sets or not all(isinstance(item, dict) for item in sets):
        raise InputError(f"'{path}': datasets must be a list of objects with name and one of {', '.join(SOURCES)}")
    records: list[Record] = []
    names: set[str] = set()
    for number, item in enumerate(sets, start=1):
        where = f"'{path}', data set {number}"
        _check_keys(item, SET_KEYS, where)
        sources = [key for key in SOURCES if key in item]
        if len(sources) != 1 or not isinstance(item.get("name"), str):
            raise InputError(f"{where} must have a name and one of {', '.join(SOURCES)}; got {', '.join(item)}")
        name = item["name"]
        if name in names:
            raise InputError(f"{where}: the name '{name}' occurs twice; names must differ")
        names.add(name)
        settings = _settings(item, f"{where} ('{name}')")
        default = _modality(item.get("modality", modality), where)
        if "synthetic" in item:
            options = item["synthetic"]
            if not isinstance(options, dict):
                raise InputError(f"{where}: synthetic must be an object of options, {{}} for the defaults")
            found = [{"set": name, "synthetic": options}]
        elif "list" in item:
            inner = Path(existing_path(f"{where} list_datalist", item["list"], path.parent))
            found = [{**record, "set": name} for record in _read(inner, name, split, default)]
        else:
            found = _entries(item[sources[0]], path, name, default)
        records += [{**record, **settings} for record in found]
    return records


def _settings(item: Mapping[str, Any], where: str) -> Record:
    settings = {key: item[key] for key in ("pairs_per_epoch", "pairing") if key in item}
    count = settings.get("pairs_per_epoch", 1)
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise InputError(f"{where}: pairs_per_epoch must be a whole number above 0, got {count!r}")
    if settings.get("pairing", PAIRINGS[0]) not in PAIRINGS:
        raise InputError(f"{where}: pairing must be one of {', '.join(PAIRINGS)}, got '{settings['pairing']}'")
    return settings


def _entries(entries: Any, path: Path, name: str, modality: str) -> list[Record]:
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
        raise InputError(f"'{path}', data set '{name}': expected a list of images or pairs that is not empty")
    records = []
    for number, entry in enumerate(entries, start=1):
        where = f"'{path}', data set '{name}', entry {number}"
        given = {key: value for key, value in entry.items() if not is_absent(value)}
        if "fixed" in given or "moving" in given:
            record = {side: _side(given, side, path.parent, where, modality) for side in ("fixed", "moving")}
        else:
            record = image_record(given, path.parent, where, modality)
        records.append({"set": name, **record})
    return records


def _side(entry: Record, side: str, base: Path, where: str, modality: str) -> Record:
    """Return the record of one image of a pair in inference's form (``fixed``, ``fixed_label``, ...)."""
    _check_keys(entry, (*CASE_KEYS, "landmark_space"), where)
    if side not in entry:
        raise InputError(f"{where}: '{side}' is missing; a pair needs fixed and moving")
    image = {"image": entry[side]}
    for key in ("modality", *REGIONS):
        if f"{side}_{key}" in entry:
            image[key] = entry[f"{side}_{key}"]
    image |= {key: entry[key] for key in ("frame", "landmark_space") if key in entry}
    return image_record(image, base, f"{where}, {side}", modality)


def image_record(entry: Mapping[str, Any], base: Path, where: str, modality: str = "mr") -> Record:
    """Return the record of one image entry, with existing paths.

    Args:
        entry: ``image`` or ``images``, and any other of :data:`IMAGE_KEYS`.
        base: folder that its paths are relative to.
        where: names the entry in errors.
        modality: if the entry does not say: ct or mr; an object {contrast: modality} for several contrasts.
    """
    _check_keys(entry, IMAGE_KEYS, where)
    if ("image" in entry) == ("images" in entry):
        raise InputError(f"{where} must have either image or images (several contrasts); got {', '.join(entry)}")
    images = entry.get("images", {"image": entry.get("image")})
    if not isinstance(images, dict) or not images:
        raise InputError(f'{where}: images must be an object such as {{"t1": "a_t1.nii.gz", "t2": "a_t2.nii.gz"}}')
    paths = {str(key): existing_path(f"{where}: {key}", value, base) for key, value in images.items()}
    given = entry.get("modality", modality)
    by_contrast = given if isinstance(given, dict) else dict.fromkeys(paths, given)
    record: Record = {
        "subject": str(entry.get("subject", stem(next(iter(paths.values()))))),
        "images": paths,
        "modalities": {key: _modality(by_contrast.get(key, modality), where) for key in paths},
    }
    record |= {key: existing_path(f"{where}: {key}", entry[key], base) for key in REGIONS if key in entry}
    return record | {key: entry[key] for key in ("landmark_space", "frame") if key in entry}


def _modality(value: Any, where: str) -> str:
    name = str(value).strip().lower()
    if name not in MODALITIES:
        raise InputError(f"{where}: modality '{value}' is unknown; give ct or mr")
    return MODALITIES[name]


def _check_keys(entry: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    for key in entry:
        if key not in known:
            raise InputError(
                f"{where}: unknown entry '{key}'{did_you_mean(str(key), known)}; known: {', '.join(known)}"
            )
