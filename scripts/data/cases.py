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
"""From options or a datalist to cases: which files are registered, under which name, into which folder.

Reads lists, not images (headers are looked at, to refuse what can't work before anything heavy starts).
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from scripts.data.case import (
    LANDMARKS,
    SIDES,
    CaseFiles,
    FrameKey,
    Modality,
    ModalityKey,
    PathKey,
    RegionKey,
    SeriesKey,
    frame_of,
    series_of,
)
from scripts.data.csv_lists import read_csv, read_text
from scripts.data.header_checks import check_header, check_one_volume
from scripts.data.image_file import ImageFile
from scripts.data.landmarks import check_same_points, check_space, open_landmarks
from scripts.data.learn2reg import is_learn2reg, learn2reg_entries
from scripts.data.opened_files import OPENED, Kept
from scripts.utils.errors import InputError
from scripts.utils.paths import check_output_dir, existing_path, is_absent, stem
from scripts.utils.suggestions import did_you_mean

MODALITIES: dict[str, Modality] = {"ct": "ct", "mr": "mr", "mri": "mr"}
MODALITY_KEYS: tuple[ModalityKey, ...] = ("fixed_modality", "moving_modality")
REGIONS: tuple[RegionKey, ...] = ("fixed_mask", "moving_mask", "fixed_label", "moving_label")
PATHS: tuple[PathKey, ...] = (*SIDES, *REGIONS, *LANDMARKS)
SERIES: tuple[SeriesKey, ...] = ("fixed_series", "moving_series")  # UID of a DICOM series
FRAMES: tuple[FrameKey, ...] = ("frame", "fixed_frame", "moving_frame")  # of one image where they differ
CASE_KEYS = ("case", *SIDES, *MODALITY_KEYS, *REGIONS, *LANDMARKS, "landmark_space", *FRAMES, *SERIES)
LONGEST_NAME = 200  # bytes of a case's name: file systems take 255, and "_2" or the like may be added


def load_cases(
    fixed: Any = None,
    moving: Any = None,
    datalist: Any = None,
    output_dir: Any = None,
    fixed_modality: str | None = None,
    moving_modality: str | None = None,
    fixed_mask: Any = None,
    moving_mask: Any = None,
    fixed_label: Any = None,
    moving_label: Any = None,
    fixed_landmarks: Any = None,
    moving_landmarks: Any = None,
    landmark_space: str = "LPS",
    frame: int | None = None,
    fixed_series: str | None = None,
    moving_series: str | None = None,
    split: str = "validation",
    required: bool = True,
) -> list[CaseFiles]:
    """Return the cases to register, all checked as far as that is cheap.

    Args:
        fixed: image to align to: a file, or a folder with one DICOM series.
        moving: image to be aligned.
        datalist: instead of the pair, a JSON file (list of objects) or a CSV file with a header; names as here plus
            ``case``; paths relative to the list's folder. Or Learn2Reg's ``*_dataset.json``.
        output_dir: where results go: directly here for a pair, in ``output_dir/<case>`` for a datalist; False writes
            none, for a pair.
        fixed_modality: ct or mr (mri); for a datalist, of the cases that don't say.
        moving_modality: the same for the moving image.
        fixed_mask: region of the fixed image.
        moving_mask: region of the moving image.
        fixed_label: anatomy of the fixed image, integers.
        moving_label: anatomy of the moving image.
        fixed_landmarks: CSV with header x,y,z in world mm.
        moving_landmarks: the same for the moving image.
        landmark_space: LPS, RAS or voxel; of cases that do not say.
        frame: volume to take of 4-D files, from 0.
        fixed_series: UID of the DICOM series, where the folder holds several.
        moving_series: the same for the moving image.
        split: which pairs of a Learn2Reg data set: validation or test.
        required: False returns [] when neither pair nor datalist is given, so that a workflow can be built and
            inspected without data; :func:`require_cases` then refuses to run.

    Raises:
        InputError: one line that names option, value and what to do.
    """
    options = {
        "fixed": fixed,
        "moving": moving,
        "fixed_modality": fixed_modality,
        "moving_modality": moving_modality,
        "fixed_mask": fixed_mask,
        "moving_mask": moving_mask,
        "fixed_label": fixed_label,
        "moving_label": moving_label,
        "fixed_landmarks": fixed_landmarks,
        "moving_landmarks": moving_landmarks,
        "landmark_space": landmark_space,
        "frame": frame,
        "fixed_series": fixed_series,
        "moving_series": moving_series,
    }
    given = {key: value for key, value in options.items() if not is_absent(value)}
    pair = [key for key in PATHS if key in given]
    if is_absent(datalist) and not pair:
        if not required:
            return []
        raise InputError("nothing to register: give --fixed FILE and --moving FILE, or --datalist FILE")
    if not is_absent(datalist) and pair:
        raise InputError(f"--datalist and --{pair[0]} exclude each other; give a pair or a datalist")
    folder = Path() if output_dir is False and is_absent(datalist) else check_output_dir(output_dir)
    if is_absent(datalist):
        cases = [_case(given, "", Path())]
        cases[0]["case"] = _default_name(cases[0])
        if output_dir is not False:
            cases[0]["case_dir"] = str(folder)
    else:
        cases = _cases_of_list(existing_path("datalist", datalist, Path()), given, folder, split)
    known: dict[Any, Kept] = {}
    for case in cases:
        case[OPENED] = _check_case(case, "" if is_absent(datalist) else f"case '{case['case']}': ", known)
    return cases


def require_cases(cases: Sequence[CaseFiles]) -> None:
    """Refuse to run without a case; for workflows whose cases are loaded with ``required=False``."""
    if not cases:
        load_cases(required=True)


def _cases_of_list(path: str, defaults: Mapping[str, Any], output_dir: Path, split: str) -> list[CaseFiles]:
    rows = read_datalist(path, split)
    return cases_of_rows(rows, f"datalist '{path}', ", Path(path).resolve().parent, defaults, output_dir)


def cases_of_rows(
    rows: Sequence[Mapping[str, Any]],
    where_from: str,
    base: Path,
    defaults: Mapping[str, Any],
    output_dir: Path,
    isolate: bool = False,
    opened: Sequence[ImageFile] = (),
) -> list[CaseFiles]:
    """Return the cases of a list's rows, each with its name and folder.

    Args:
        rows: of :func:`read_datalist`, or made likewise.
        where_from: begins messages.
        base: folder that relative paths start from.
        defaults: entries of rows that lack them.
        output_dir: holds the cases' folders.
        isolate: a row that can't be used becomes a case with ``error`` and no files, instead of ending the whole.
        opened: files of the rows whose headers were read before.
    """
    cases: list[CaseFiles] = []
    names: dict[str, int] = {}
    known: dict[Any, Kept] = {(file.path, file.series): Kept.of(file) for file in opened}
    for number, row in enumerate(rows, start=1):
        where = f"{where_from}case {number}: "
        try:
            case = _case({**defaults, **row}, where, base)
        except InputError as error:
            if not isolate:
                raise
            case = {"error": str(error)}
        name = (
            _given_name(row["case"], where) if "case" in row else _default_name({**defaults, **row}, f"case_{number}")
        )
        if name in names:
            if "case" in row:
                raise InputError(f"{where}the name '{name}' is also that of case {names[name]}; names must differ")
            count = 2
            while f"{name}_{count}" in names:
                count += 1
            name = f"{name}_{count}"
        names[name] = number
        case |= {"case": name, "case_dir": str(output_dir / name)}
        if isolate and "error" not in case:
            try:
                case[OPENED] = _check_case(case, "", known)
            except InputError as error:
                case["error"] = str(error)
        cases.append(case)
    return cases


def read_datalist(path: str, split: str = "validation") -> list[dict[str, Any]]:
    """Read the rows of a datalist; empty cells and nulls are left out.

    Args:
        path: JSON or CSV file.
        split: which pairs of a Learn2Reg data set.

    Raises:
        InputError: not a list of objects, no rows, or a column that is not a case entry.
    """
    if not path.lower().endswith((".json", ".csv")):
        raise InputError(f"datalist '{path}' must end in .json or .csv")
    try:
        if path.lower().endswith(".json"):
            rows = json.loads(read_text(path))
            if is_learn2reg(rows):
                rows = learn2reg_entries(rows, Path(path), split)
        else:
            rows = read_csv(path)
    except InputError as error:
        raise type(error)(f"datalist: {error}") from error
    except (json.JSONDecodeError, csv.Error) as error:
        raise InputError(f"datalist '{path}' can't be read as JSON or CSV: {error}") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise InputError(f'datalist \'{path}\' must be a list of objects, such as [{{"fixed": ..., "moving": ...}}]')
    if not rows:
        raise InputError(f"datalist '{path}' has no cases")
    for row in rows:
        for column in row:
            if column not in CASE_KEYS:
                hint = did_you_mean(column, CASE_KEYS)
                if len(row) == 1 and path.lower().endswith(".csv"):
                    hint = "; columns are separated by commas, semicolons or tabs, and this list has one column"
                raise InputError(f"datalist '{path}': unknown entry '{column}'{hint}; known: {', '.join(CASE_KEYS)}")
    return [{key: value for key, value in row.items() if not is_absent(value)} for row in rows]


def _case(values: Mapping[str, Any], where: str, base: Path) -> CaseFiles:
    """Return the entries of one case, in their final types, with existing absolute or given paths."""
    case: CaseFiles = {}
    for side in SIDES:
        if side not in values:
            raise InputError(f"{where}{side} is missing; give --{side} FILE (or '{side}' in the datalist)")
    for key in PATHS:
        if key in values:
            in_memory = isinstance(values[key], Tensor)
            case[key] = values[key] if in_memory else existing_path(f"{where}{key}", values[key], base)
    for modality_key in MODALITY_KEYS:
        if modality_key not in values:
            raise InputError(f"{where}{modality_key} is missing; give --{modality_key} ct or mr")
        modality = str(values[modality_key]).strip().lower()
        if modality not in MODALITIES:
            raise InputError(f"{where}{modality_key} '{values[modality_key]}' is unknown; give ct or mr")
        case[modality_key] = MODALITIES[modality]
    if str(values.get("landmark_space", "LPS")).upper() != "LPS":
        case["landmark_space"] = check_space(values["landmark_space"])
    for series in SERIES:
        if isinstance(values.get(series), float):
            raise InputError(
                f"{where}{series}: '{values[series]}' was read as a number, which drops zeros; write --{series}"
                " \"'UID'\" in two pairs of quotes, or the whole UID"
            )
        if series in values:
            case[series] = str(values[series]).strip()
    for frame in FRAMES:
        if frame in values:
            case[frame] = frame_number(frame, values[frame], where)
    return case


def _check_case(case: CaseFiles, where: str, known: dict[Any, Kept]) -> dict[str, Kept]:
    """Check the files of a case and return them, opened, by their keys.

    Args:
        case: one of a list.
        where: begins messages.
        known: files that were opened for other cases of the list; gets those of this one.

    Raises:
        InputError: a file can't be used.
    """
    opened: dict[str, Kept] = {}
    for key in (*SIDES, *REGIONS):
        if key not in case:
            continue
        path, frame, series = case[key], frame_of(case, key), series_of(case, key)
        if not isinstance(path, str):
            continue  # a volume in memory was checked when it was made
        if (path, series) in known:
            check_one_volume(where + key, path, known[path, series].opened.header, frame)
        else:
            known[path, series] = Kept.of(check_header(where + key, path, frame, series))
        opened[key] = known[path, series]
    space = case.get("landmark_space", "LPS")
    marks = {name: open_landmarks(case[name], space) for name in LANDMARKS if name in case}
    if len(marks) == len(LANDMARKS):
        check_same_points(*(marks[name] for name in LANDMARKS))
    opened |= {name: Kept.of(file) for name, file in marks.items() if isinstance(case[name], str)}
    case_dir = Path(case["case_dir"]) if "case_dir" in case else None
    if case_dir is not None and case_dir.exists() and not case_dir.is_dir():
        raise InputError(f"{where}'{case_dir}' is a file where the case's folder must go; give another output_dir")
    return opened


def frame_number(key: str, value: Any, where: str = "") -> int:
    """Return the volume of a 4-D image that is meant.

    Raises:
        InputError: it is no whole number from 0.
    """
    text = str(value).strip()
    if not text.isdecimal() or isinstance(value, bool):
        raise InputError(f"{where}{key} must be a whole number from 0, got '{value}'")
    return int(text)


def _default_name(values: Mapping[str, Any], otherwise: str = "case") -> str:
    if not all(side in values for side in SIDES):
        return otherwise
    moving, fixed = (
        side if isinstance(values[side], Tensor) else stem(str(values[side])) for side in ("moving", "fixed")
    )
    name = f"{moving}_to_{fixed}"
    return shortened(re.sub(r"[^\w.+-]+", "_", name).lstrip(".")) or otherwise


def shortened(name: str) -> str:
    """Return a name that fits a folder: of a longer one the beginning and a number that is made from the whole."""
    if len(os.fsencode(name)) <= LONGEST_NAME:
        return name
    number = hashlib.sha256(name.encode()).hexdigest()[:8]
    return os.fsencode(name)[: LONGEST_NAME - 9].decode(errors="ignore") + f"_{number}"


def _given_name(name: Any, where: str) -> str:
    text = str(name).strip()
    if text in (".", "..") or re.search(r"[/\\:\0]", text):
        raise InputError(f"{where}the name '{name}' can't be a folder's name; leave out / \\ : and do not use . or ..")
    if len(os.fsencode(text)) > LONGEST_NAME:
        raise InputError(
            f"{where}the name '{name}' has {len(os.fsencode(text))} bytes; give one of {LONGEST_NAME} at most"
        )
    return text
