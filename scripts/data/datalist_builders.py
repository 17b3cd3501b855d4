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
"""Write the training list of a data set as its provider lays it out, or of a folder of your own.

    python -m scripts datalist KIND FOLDER OUT.json [--modality ct|mr] [--val_fraction 0.1] [--seed 0]

With ``--val_fraction`` the subjects are divided: OUT.json lists those to train on, OUT_val.json pairs of the others.
docs/data.md lists the kinds and what they expect.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
import sys
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from scripts.data.bratsreg import bratsreg_entries
from scripts.data.dirlab import convert_dirlab
from scripts.utils.atomic import replacing
from scripts.utils.errors import InputError
from scripts.utils.paths import IMAGE_SUFFIXES, POINT_SUFFIXES

logger = logging.getLogger(__name__)

Entry = dict[str, Any]
REGIONS = {"labels": "label", "masks": "mask", "landmarks": "landmarks"}
SUFFIXES = IMAGE_SUFFIXES[:6]  # of single files of a volume
SESSION = "__"  # what follows it in a file's name tells sessions of a subject apart


@dataclass(frozen=True)
class Layout:
    """How a data set names its files, and what becomes of them.

    Args:
        pattern: of an image's path below the folder; the group ``subject``, and ``part`` for several images of one.
        expected: the same in words, for errors.
        modality: of all images.
        fixed: for pairs within a subject: the part that is the fixed image; the other one is moving.
        contrasts: the parts, if they are aligned contrasts of one subject; the first ones validate.
    """

    pattern: str
    expected: str
    modality: str
    fixed: str = ""
    contrasts: tuple[str, ...] = ()


LAYOUTS = {
    "copdgene": Layout(
        r"(?:.*/)?(?P<subject>[^/_]+)_(?P<part>INSP|EXP)(?:_[^/]*)?\.nii(?:\.gz)?",
        "SUBJECT_INSP*.nii.gz and SUBJECT_EXP*.nii.gz, lung masks beside them with _mask or _label before the suffix",
        "ct",
        fixed="EXP",
    ),
    "oai": Layout(
        r"(?:.*/)?(?P<subject>\d{7})[^/]*\.nii(?:\.gz)?", "names that begin with the seven digits of a subject", "mr"
    ),
    "hcp": Layout(
        r"(?P<subject>\d{6})/(?:.*/)?(?P<part>T1w|T2w)_acpc_dc_restore_brain\.nii\.gz",
        "SUBJECT/T1w/T1w_acpc_dc_restore_brain.nii.gz and T2w_acpc_dc_restore_brain.nii.gz",
        "mr",
        contrasts=("T1w", "T2w"),
    ),
    "ixi": Layout(
        r"(?:.*/)?(?P<subject>IXI\d{3})-[^/]*-(?P<part>T1|T2|PD)\.nii\.gz",
        "IXI012-HH-1211-T1.nii.gz and likewise T2 and PD",
        "mr",
        contrasts=("T1", "T2", "PD"),
    ),
}
KINDS = ("folder", *LAYOUTS, "bratsreg", "dirlab")


def build_list(kind: str, folder: Path, modality: str | None = None, converted: Path | None = None) -> list[Entry]:
    """Return the entries of a data set, with absolute paths.

    Args:
        kind: one of :data:`KINDS`.
        folder: of the data set.
        modality: ct or mr, instead of the kind's; "folder" is MR unless told otherwise.
        converted: folder for the files that "dirlab" makes of its own ones; beside the data set's by default.

    Raises:
        InputError: an unknown kind or modality, no such folder, or nothing in it that fits.
    """
    if kind not in KINDS:
        raise InputError(f"kind: expected one of {', '.join(KINDS)}, got '{kind}'")
    if modality not in (None, "ct", "mr"):
        raise InputError(f"modality: expected ct or mr, got '{modality}'")
    folder = Path(folder).absolute()
    if not folder.is_dir():
        raise InputError(f"'{folder}' is not a folder; give the one that holds the data set")
    if kind == "bratsreg":
        return bratsreg_entries(folder)
    if kind == "dirlab":
        return convert_dirlab(folder, converted or folder.with_name(f"{folder.name}_converted"))
    if kind == "folder":
        return _own_folder(folder, modality or "mr")
    layout = LAYOUTS[kind]
    found: dict[str, dict[str, Path]] = {}
    for path in sorted(folder.rglob("*.nii*")):
        match = re.fullmatch(layout.pattern, path.relative_to(folder).as_posix())
        if match and not _is_region(path):
            parts = found.setdefault(match["subject"], {})
            parts.setdefault(match.groupdict().get("part") or str(path), path)
    if not found:
        raise InputError(f"'{folder}' holds no images of {kind}; expected {layout.expected}")
    entries = []
    for subject, parts in found.items():
        entries += _entries(layout, subject, parts, modality or layout.modality)
    if not entries:
        raise InputError(f"'{folder}' holds no pair of {kind}; expected {layout.expected}")
    if len(found) > len({entry["subject"] for entry in entries}):
        logger.warning("%d of %d subjects lack an image and are left out", len(found) - len(entries), len(found))
    unmasked = sum(not {"fixed_mask", "moving_mask"} <= set(entry) for entry in entries)
    if layout.fixed and unmasked:
        logger.warning("%d of %d pairs lack a mask; their images stay as they are", unmasked, len(entries))
    return entries


def _stem(path: Path) -> str:
    """Return a file's name without its image suffix; that of a link, whose target may be named anyhow."""
    return next((path.name[: -len(suffix)] for suffix in SUFFIXES if path.name.lower().endswith(suffix)), path.name)


def _is_region(path: Path) -> bool:
    return _stem(path).endswith(("_mask", "_label"))


def _entries(layout: Layout, subject: str, parts: dict[str, Path], modality: str) -> list[Entry]:
    if layout.contrasts:
        images = {part.lower(): str(parts[part]) for part in layout.contrasts if part in parts}
        return [{"subject": subject, "images": images, "modality": modality}]
    if not layout.fixed:
        return [{"subject": subject, "image": str(path), "modality": modality} for path in parts.values()]
    if len(parts) < 2:
        return []
    entry: Entry = {"subject": subject}
    for part, path in parts.items():
        side = "fixed" if part == layout.fixed else "moving"
        entry |= {side: str(path), f"{side}_modality": modality}
        for ending in ("_label", "_mask"):  # a mask goes before a label
            mask = path.with_name(path.name.replace(".nii", f"{ending}.nii"))
            if mask.is_file():
                entry[f"{side}_mask"] = str(mask)
    return [entry]


def _own_folder(folder: Path, modality: str) -> list[Entry]:
    """Return the images of ``folder/images``, or of the folder itself, with what lies in the folders beside."""
    images = folder / "images" if (folder / "images").is_dir() else folder
    visible = [path for path in sorted(images.iterdir()) if not path.name.startswith(".")]
    paths = [path for path in visible if path.name.lower().endswith(SUFFIXES)]
    if not paths:
        raise InputError(f"'{images}' holds no images; expected NIfTI, NRRD or MHA files in it or in its folder images")
    entries = []
    for path in paths:
        name = _stem(path)
        entry: Entry = {"subject": name.split(SESSION)[0], "image": str(path), "modality": modality}
        for beside, key in REGIONS.items():
            names = [f"{name}{suffix}" for suffix in POINT_SUFFIXES] if key == "landmarks" else [path.name]
            found = [folder / beside / one for one in names if (folder / beside / one).is_file()]
            if len(found) > 1:
                raise InputError(f"'{found[0]}' and '{found[1]}' are landmarks of the same image; keep one of them")
            if found:
                entry[key] = str(found[0])
        entries.append(entry)
    return entries


def split_list(entries: list[Entry], fraction: float, seed: int = 0) -> tuple[list[Entry], list[Entry]]:
    """Divide entries by subject into those to train on and pairs of the others to validate with.

    Of single images, the first one of each subject that is held out is paired with the next such subject's.

    Args:
        entries: of :func:`build_list`.
        fraction: of the subjects that is held out.
        seed: of the choice.

    Raises:
        InputError: a fraction that leaves too few on one side.
    """
    subjects = sorted({entry["subject"] for entry in entries})
    is_paired = any("fixed" in entry for entry in entries)
    count = max(1 if is_paired else 2, round(fraction * len(subjects)))
    if not 0 < fraction < 1 or len(subjects) - count < (1 if is_paired else 2):
        raise InputError(
            f"val_fraction {fraction} of {len(subjects)} subjects leaves too few to train on or to hold out;"
            " give another fraction or more subjects"
        )
    held_out = set(np.random.default_rng(seed).permutation(subjects)[:count].tolist())
    training = [entry for entry in entries if entry["subject"] not in held_out]
    others = [entry for entry in entries if entry["subject"] in held_out]
    if is_paired:
        return training, others
    firsts = {entry["subject"]: entry for entry in reversed(others)}
    neighbors = pairwise(firsts[subject] for subject in sorted(firsts))
    validation = [_pair(a, b) for a, b in neighbors if not _contrasts(a).isdisjoint(_contrasts(b))]
    if not validation:
        raise InputError("no two subjects that are held out share a contrast; give another val_fraction or seed")
    return training, validation


def _contrasts(entry: Entry) -> set[str]:
    return set(entry.get("images", ["image"]))


def _pair(fixed: Entry, moving: Entry) -> Entry:
    """Return the pair of two images, or of the first contrast that both have."""
    pair: Entry = {}
    for side, entry, other in (("fixed", fixed, moving), ("moving", moving, fixed)):
        for key, value in entry.items():
            if key == "images":
                pair[side] = next(path for contrast, path in value.items() if contrast in other["images"])
            elif key != "subject":
                pair[side if key == "image" else f"{side}_{key}"] = value
    return pair


def write_list(path: Path, entries: list[Entry]) -> None:
    """Write entries as JSON, paths relative to the file's folder, pairs without their subject, which lists lack."""

    def relative(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: relative(inner) for key, inner in value.items()}
        return os.path.relpath(value, path.parent.absolute()) if os.path.isabs(value) else value

    kept = [
        {key: relative(value) for key, value in entry.items() if key != "subject" or "fixed" not in entry}
        for entry in entries
    ]
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


def main(arguments: list[str] | None = None) -> None:
    """Write the list that the command line asks for."""
    parser = argparse.ArgumentParser("python -m scripts datalist", description="Write the training list of a data set.")
    parser.add_argument("kind", help=", ".join(KINDS))
    parser.add_argument("folder", type=Path, help="of the data set")
    parser.add_argument("out", type=Path, help="JSON file to write")
    parser.add_argument("--modality", help="ct or mr, instead of the kind's")
    parser.add_argument("--val_fraction", type=float, default=0.0, help="of the subjects, held out into OUT_val.json")
    parser.add_argument("--seed", type=int, default=0, help="of that choice")
    given = parser.parse_args(arguments)
    try:
        entries = build_list(given.kind, given.folder, given.modality, given.out.with_suffix(""))
        lists = {given.out: entries}
        if given.val_fraction:
            training, validation = split_list(entries, given.val_fraction, given.seed)
            lists = {given.out: training, given.out.with_name(f"{given.out.stem}_val.json"): validation}
        for path, part in lists.items():
            write_list(path, part)
            print(f"{path}: {len(part)} {'pairs' if 'fixed' in part[0] else 'images'}")
    except InputError as error:
        sys.exit(f"error: {error}")
