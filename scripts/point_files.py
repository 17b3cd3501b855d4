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
"""Carrying points through a transform, in the files of other tools: what else a file says stays as it is.

CSV (columns x, y, z and any others), ``.fcsv`` and ``.mrk.json`` of 3D Slicer (which name their space themselves), and
VTK meshes and point sets (``.vtk``, through ITK).
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import itk
import numpy as np

from .atomic import replacing
from .errors import InputError, InputFileError
from .landmarks import check_space, read_landmarks
from .reading import itk_reason

POINT_SUFFIXES = (".csv", ".fcsv", ".mrk.json", ".vtk")
Points = np.ndarray  # (N, 3), world LPS mm
Carry = Callable[[Points], Points]
_LEAST_POINT = 6  # bytes of a point in VTK: three numbers and what parts them
_SLICER_SPACES = {"LPS": "LPS", "1": "LPS", "RAS": "RAS", "0": "RAS"}


def carrier(transform: Any) -> Carry:
    """Return the function that carries points (N, 3), LPS mm, through an ITK transform."""
    return lambda points: np.array([list(transform.TransformPoint(point)) for point in points.tolist()]).reshape(-1, 3)


def carry_points(path: str, carry: Carry, out: Path, landmark_space: str = "LPS") -> int:
    """Write a point file with its points carried, in its own form.

    Args:
        path: ``.csv``, ``.fcsv``, ``.mrk.json`` or ``.vtk``.
        carry: of :func:`carrier`.
        out: file to write, with the same ending.
        landmark_space: LPS or RAS, the world of CSV and VTK files that do not say.

    Returns:
        the number of points.

    Raises:
        InputError: another ending, or a file that does not hold points.
    """
    space = check_world(landmark_space)
    name = path.lower()
    for suffix, work in ((".fcsv", _fcsv), (".mrk.json", _markups), (".vtk", _vtk), (".csv", _csv)):
        if name.endswith(suffix):
            return work(path, carry, out, space)
    raise InputError(f"landmarks '{path}': give a file that ends in {', '.join(POINT_SUFFIXES)}")


def check_world(landmark_space: str) -> str:
    """Return "LPS" or "RAS".

    Raises:
        InputError: anything else.
    """
    space = check_space(landmark_space)
    if space == "VOXEL":
        raise InputError("landmark_space voxel: voxel coordinates can't be carried; give points in world mm")
    return space


def _in_space(points: Points, carry: Carry, space: str, path: str) -> Points:
    """Carry points that are in LPS or RAS, and return them in the same space."""
    if not len(points):
        raise InputError(f"landmarks '{path}' holds no points")
    if not np.isfinite(points).all():
        raise InputError(f"landmarks '{path}' has coordinates that are not finite numbers")
    signs = np.array([1.0, 1.0, 1.0] if space == "LPS" else [-1.0, -1.0, 1.0])
    return carry(points * signs) * signs


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputFileError(f"landmarks '{path}' can't be read as text: {error}") from error


def _write(out: Path, text: str) -> None:
    with replacing(out) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _csv(path: str, carry: Carry, out: Path, space: str) -> int:
    landmarks = read_landmarks(path, "RAS")  # as written: the signs are those of `space`
    carried = _in_space(landmarks.points_ras_mm.numpy(), carry, space, path)
    text = io.StringIO()
    writer = csv.DictWriter(text, ["x", "y", "z", *landmarks.extra[0]], lineterminator="\n")
    writer.writeheader()
    for point, extra in zip(carried, landmarks.extra, strict=True):
        writer.writerow({**dict(zip("xyz", _numbers(point), strict=True)), **extra})
    _write(out, text.getvalue())
    return len(carried)


def _numbers(point: Sequence[float]) -> list[str]:
    return [f"{value:.6f}" for value in point]


def _fcsv(path: str, carry: Carry, out: Path, space: str) -> int:
    text = _text(path)
    named = re.search(r"^#\s*CoordinateSystem\s*=\s*(\w+)", text, re.MULTILINE)
    if named and named[1].upper() not in _SLICER_SPACES:
        raise InputError(f"landmarks '{path}' are in the coordinate system '{named[1]}'; give LPS or RAS")
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
    carried = _in_space(points, carry, _SLICER_SPACES[named[1].upper()] if named else "RAS", path)
    for (number, row), point in zip(rows.items(), carried, strict=True):
        for column, value in zip(at, _numbers(point), strict=True):
            row[column] = value
        cells = io.StringIO()
        csv.writer(cells, lineterminator="").writerow(row)
        lines[number] = cells.getvalue()
    _write(out, "\n".join(lines) + "\n")
    return len(carried)


def _markups(path: str, carry: Carry, out: Path, space: str) -> int:
    try:
        content = json.loads(_text(path))
        lists = [(markup["controlPoints"], markup.get("coordinateSystem", "LPS")) for markup in content["markups"]]
        points = [np.array([p["position"] for p in listed], dtype=float).reshape(-1, 3) for listed, _ in lists]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"landmarks '{path}' are not markups of 3D Slicer ({type(error).__name__}: {error})"
        ) from error
    if not sum(map(len, points)):
        raise InputError(f"landmarks '{path}' holds no points")
    for (listed, system), values in zip(lists, points, strict=True):
        if str(system).upper() not in _SLICER_SPACES:
            raise InputError(f"landmarks '{path}' are in the coordinate system '{system}'; give LPS or RAS")
        if len(values):
            for control_point, point in zip(
                listed, _in_space(values, carry, _SLICER_SPACES[str(system).upper()], path), strict=True
            ):
                control_point["position"] = [round(value, 6) for value in point.tolist()]
    _write(out, json.dumps(content, indent=4) + "\n")
    return sum(map(len, points))


def _vtk(path: str, carry: Carry, out: Path, space: str) -> int:
    with open(path, "rb") as file:
        start = file.read(4096)
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
    points = itk.array_from_vector_container(mesh.GetPoints()).astype(np.float64).reshape(-1, 3)
    carried = _in_space(points, carry, named[1].decode() if named else space, path)
    mesh.SetPoints(itk.vector_container_from_array(np.ascontiguousarray(carried, dtype=np.float32).ravel()))
    with replacing(out) as temporary:
        itk.meshwrite(mesh, str(temporary))
        if named:  # ITK's writer has a title of its own
            text = temporary.read_bytes().split(b"\n", 2)
            temporary.write_bytes(b"\n".join([text[0], title[0].rstrip(b"\r"), text[2]]))
    return len(carried)
