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
"""Point files that name their own space: ``.fcsv`` and ``.mrk.json`` of 3D Slicer, ``.vtk``; read, and written again.

Everything in a file but its points is kept when it is written with other points.
"""

from __future__ import annotations

import csv
import io
import json
import logging
import re
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import itk
import numpy as np

from scripts.geometry.world_axes import signs_to_lps
from scripts.utils.atomic import replacing
from scripts.utils.errors import InputError, InputFileError
from scripts.utils.itk_messages import itk_reason

logger = logging.getLogger(__name__)

_LEAST_POINT = 6  # bytes of a point in VTK: three numbers and what parts them
_SLICER_SPACES = {"LPS": "LPS", "1": "LPS", "RAS": "RAS", "0": "RAS"}
_TO_LPS = {space: signs_to_lps(space) for space in ("LPS", "RAS")}  # and back
_MM = ("mm", "millimeter", "millimeters", "millimetre", "millimetres")


class PointFile(NamedTuple):
    """Points of a file, and how to write the file with other ones."""

    points: np.ndarray
    """(N, 3), world LPS mm; in markups only the points that were placed."""
    stated: str | None
    """LPS or RAS, if the file states its space."""
    extra: tuple[dict[str, str], ...]
    """For each point, its label and description."""
    not_placed: tuple[str, ...]
    """Labels of the points of markups that have no position."""
    write: Callable[[Path, np.ndarray], None]
    """Write the file, at this path, with other points (N, 3), world LPS mm."""


def read_point_file(path: str, landmark_space: str = "LPS") -> PointFile | None:
    """Read points and their space; what a file states is followed, with a warning if ``landmark_space`` differs.

    Args:
        path: ``.fcsv``, ``.mrk.json``, ``.json`` or ``.vtk``.
        landmark_space: LPS or RAS, the world of VTK files that do not say; for the others, VOXEL too, only compared.

    Returns:
        None for a file of another ending.

    Raises:
        InputError: the file holds no points, or points that can't be used.
    """
    name = path.lower()
    for suffix, read in ((".fcsv", _read_fcsv), (".json", _read_markups), (".vtk", _read_vtk)):
        if name.endswith(suffix):
            found = read(path, landmark_space)
            if not len(found.points):
                raise InputError(f"landmarks '{path}' holds no points")
            if not np.isfinite(found.points).all():
                raise InputError(f"landmarks '{path}' has coordinates that are not finite numbers")
            if found.stated and found.stated != landmark_space:
                _warn_once(
                    f"landmarks '{path}' states the space {found.stated}; landmark_space {landmark_space} is not used"
                )
            return found
    return None


@lru_cache(maxsize=1024)
def _warn_once(line: str) -> None:
    """Warn, if this line was not said before: a file is read for checks, for measuring and for writing."""
    logger.warning(line)


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputFileError(f"landmarks '{path}' can't be read as text: {error}") from error
    except OSError as error:
        raise InputFileError(f"landmarks '{path}' can't be read ({error.strerror})") from error


def write_text(out: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    with replacing(out) as temporary:
        temporary.write_text(text, encoding="utf-8")


def as_text(point: Any) -> list[str]:
    """Return the coordinates of a point as they are written."""
    return [f"{value:.6f}" for value in point]


def _slicer_space(path: str, named: object) -> str:
    """Return LPS or RAS for the name or number that 3D Slicer writes."""
    space = _SLICER_SPACES.get(str(named).strip().upper())
    if space is None:
        raise InputError(f"landmarks '{path}' are in the coordinate system '{named}'; give LPS or RAS")
    return space


def _read_fcsv(path: str, landmark_space: str) -> PointFile:
    text = _text(path)
    named = re.search(r"^#\s*CoordinateSystem\s*=\s*(\S+)", text, re.MULTILINE | re.IGNORECASE)
    stated = _slicer_space(path, named[1].strip(",")) if named else None
    if stated is None:
        _warn_once(f"landmarks '{path}' states no CoordinateSystem; it is read as RAS, as 3D Slicer does")
    columns = re.search(r"^#\s*columns\s*=\s*(.+)$", text, re.MULTILINE)
    names = [name.strip() for name in columns[1].split(",")] if columns else ["id", "x", "y", "z"]
    if any(axis not in names for axis in "xyz"):
        raise InputError(f"landmarks '{path}' names no columns x, y and z")
    at = [names.index(axis) for axis in "xyz"]
    lines = text.splitlines()
    rows = {n: next(csv.reader([line])) for n, line in enumerate(lines) if line.strip() and not line.startswith("#")}
    try:
        points = np.array([[float(row[n]) for n in at] for row in rows.values()]).reshape(-1, 3)
    except (ValueError, IndexError) as error:
        raise InputError(f"landmarks '{path}' has a line without three numbers: {error}") from error
    signs = _TO_LPS[stated or "RAS"]

    def cell(row: list[str], name: str) -> str:
        return row[names.index(name)].strip() if name in names and names.index(name) < len(row) else ""

    def write(out: Path, points_lps: np.ndarray) -> None:
        written = list(lines)
        for (number, row), point in zip(rows.items(), points_lps * signs, strict=True):
            cells = list(row)
            for column, value in zip(at, as_text(point), strict=True):
                cells[column] = value
            line = io.StringIO()
            csv.writer(line, lineterminator="").writerow(cells)
            written[number] = line.getvalue()
        write_text(out, "\n".join(written) + "\n")

    extra = tuple({"label": cell(row, "label"), "description": cell(row, "desc")} for row in rows.values())
    return PointFile(points * signs, stated, extra, (), write)


def _read_markups(path: str, landmark_space: str) -> PointFile:
    text = _text(path)
    try:
        content = json.loads(text)
        lists = [(markup["controlPoints"], markup) for markup in content["markups"]]
        placed = [[p for p in listed if _is_placed(p)] for listed, _ in lists]
        points = [np.array([p["position"] for p in listed], dtype=float).reshape(-1, 3) for listed in placed]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"landmarks '{path}' are not markups of 3D Slicer ({type(error).__name__}: {error})"
        ) from error
    spaces = [_slicer_space(path, markup.get("coordinateSystem", "LPS")) for _, markup in lists]
    for _, markup in lists:
        _check_units(path, markup.get("coordinateUnits", "mm"))

    def write(out: Path, points_lps: np.ndarray) -> None:
        rest = iter(points_lps)
        for listed, space in zip(placed, spaces, strict=True):
            for control_point in listed:
                control_point["position"] = [round(value, 6) for value in (next(rest) * _TO_LPS[space]).tolist()]
        write_text(out, json.dumps(content, indent=4) + "\n")

    stated = {space for space, (_, markup) in zip(spaces, lists, strict=True) if "coordinateSystem" in markup}
    extra = tuple(
        {"label": str(p.get("label", "")), "description": str(p.get("description", ""))}
        for part in placed
        for p in part
    )
    missing = tuple(str(p.get("label", "")) for listed, _ in lists for p in listed if not _is_placed(p))
    in_lps = [part * _TO_LPS[space] for part, space in zip(points, spaces, strict=True)]
    all_points = np.concatenate(in_lps) if in_lps else np.empty((0, 3))
    return PointFile(all_points, stated.pop() if len(stated) == 1 else None, extra, missing, write)


def _is_placed(control_point: dict[str, Any]) -> bool:
    return str(control_point.get("positionStatus", "defined")) == "defined"


def _check_units(path: str, units: Any) -> None:
    """Refuse coordinates of markups that are not in mm; the unit is a word, or a list of code, scheme and meaning."""
    word = str(units[0] if isinstance(units, list) and units else units).strip()
    if word.lower() not in _MM:
        raise InputError(f"landmarks '{path}' has coordinateUnits '{word}'; give points in mm")


def _read_vtk(path: str, landmark_space: str) -> PointFile:
    try:
        with open(path, "rb") as file:
            start = file.read(4096)
    except OSError as error:
        raise InputFileError(f"landmarks '{path}' can't be read ({error.strerror})") from error
    title, claim = start.split(b"\n")[1:2], re.search(rb"POINTS\s+(\d+)", start)
    size = Path(path).stat().st_size
    if claim and int(claim[1]) * _LEAST_POINT > size:  # memory would be taken for them
        raise InputFileError(f"landmarks '{path}' says it has {int(claim[1])} points, but has only {size} bytes")
    named = re.search(rb"SPACE=(LPS|RAS)", title[0]) if title else None
    try:
        mesh = itk.meshread(path)
    except MemoryError:
        raise
    except Exception as error:  # of many kinds: the library's, and those of its wrapping
        raise InputFileError(f"landmarks '{path}' can't be read: {itk_reason(error)}") from error
    if mesh.GetNumberOfPoints() == 0:
        raise InputError(f"landmarks '{path}' holds no points")
    stated = named[1].decode() if named else None
    if stated is None and landmark_space not in _TO_LPS:
        raise InputError(f"landmarks '{path}': landmark_space {landmark_space} is for CSV files; give LPS or RAS")
    signs = _TO_LPS[stated or landmark_space]
    points = itk.array_from_vector_container(mesh.GetPoints()).astype(np.float64).reshape(-1, 3) * signs

    def write(out: Path, points_lps: np.ndarray) -> None:
        values = np.ascontiguousarray(points_lps * signs, dtype=np.float32)
        mesh.SetPoints(itk.vector_container_from_array(values.ravel()))
        with replacing(out) as temporary:
            itk.meshwrite(mesh, str(temporary))
            if named:  # ITK's writer has a title of its own
                text = temporary.read_bytes().split(b"\n", 2)
                temporary.write_bytes(b"\n".join([text[0], title[0].rstrip(b"\r"), text[2]]))

    return PointFile(points, stated, tuple({} for _ in points), (), write)
