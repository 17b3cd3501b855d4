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
"""Landmarks: points of the world in a file, read, carried from one image to the other, and written.

A CSV file has a header line with the columns x, y, z (mm) in any order, and any other columns, which are kept. Its
world is LPS (ITK, DICOM) or RAS (NIfTI, 3D Slicer's display), named by ``landmark_space``; in memory it is RAS.
Files of 3D Slicer (``.fcsv``, ``.mrk.json``) and ``.vtk`` state their world themselves. Space "voxel" is that of
Learn2Reg's keypoints: lines i,j,k without a header, in voxels of their image.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scripts.data.opened_files import opened_file
from scripts.data.point_formats import read_point_file
from scripts.data.volumes import FROM_MEMORY
from scripts.geometry.grid_transform import GridTransform
from scripts.geometry.world_axes import flip_lps_ras
from scripts.utils.atomic import replacing
from scripts.utils.errors import InputError, InputFileError
from scripts.utils.regular_files import file_state
from scripts.utils.tensors import plain

SPACES = ("LPS", "RAS", "VOXEL")
AXES = ("x", "y", "z")
CARRIED = ("warped_x", "warped_y", "warped_z")


@dataclass(frozen=True, eq=False)
class Landmarks:
    """Points with what else their file says about them.

    Args:
        points_ras_mm: (N, 3), float64, world RAS mm.
        extra: for each point, the other columns by name, as text.
    """

    points_ras_mm: Tensor
    extra: tuple[dict[str, str], ...]


def check_space(landmark_space: str) -> str:
    """Return "LPS", "RAS" or "VOXEL".

    Raises:
        InputError: anything else.
    """
    space = str(landmark_space).strip().upper()
    if space not in SPACES:
        raise InputError(
            f"landmark_space '{landmark_space}' is unknown; give LPS (ITK, the default), RAS, or voxel (Learn2Reg)"
        )
    return space


@dataclass(frozen=True, eq=False)
class LandmarkFile:
    """A landmark file that was read, before its points are placed in the world."""

    path: str
    landmark_space: str
    """That was asked for: LPS, RAS or VOXEL."""
    points: np.ndarray
    """(N, 3), float64, world RAS mm; for ``in_voxels`` voxels (i, j, k)."""
    in_voxels: bool
    extra: tuple[dict[str, str], ...]
    state: str
    """Of :func:`scripts.utils.regular_files.file_state`, before the file was read."""

    def is_current(self) -> bool:
        """Tell whether the file is still the one that was read."""
        return file_state(self.path) == self.state

    def landmarks(self, affine_ras: Tensor | None = None) -> Landmarks:
        """Return the points in the world.

        Args:
            affine_ras: (4, 4), voxel (i, j, k) of the landmarks' image -> world RAS mm; needed for "voxel".
        """
        points = torch.from_numpy(self.points)
        if not self.in_voxels:
            return Landmarks(points, self.extra)
        if affine_ras is None:
            raise ValueError("read_landmarks: landmark_space 'voxel' needs the affine of the image")
        affine = torch.as_tensor(affine_ras, dtype=torch.float64).cpu()
        return Landmarks(points @ affine[:3, :3].T + affine[:3, 3], self.extra)


def open_landmarks(path: str | os.PathLike[str] | Tensor, landmark_space: str = "LPS") -> LandmarkFile:
    """Read a landmark file; the space that it states itself goes before ``landmark_space``.

    Args:
        path: see :func:`read_landmarks`; or the points in memory, (N, 3).
        landmark_space: see :func:`read_landmarks`.

    Raises:
        InputError: as :func:`read_landmarks`.
    """
    space = check_space(landmark_space)
    if isinstance(path, Tensor):
        return _in_memory(path, space)
    name = str(path)
    state = file_state(name) if os.path.exists(name) else ""  # what reads it tells that it is not there
    found = read_point_file(name, space)
    if found is not None:
        if found.not_placed:
            raise InputError(
                f"landmarks '{path}': the point '{found.not_placed[0]}' was not placed (positionStatus); place it,"
                " or delete it in both files"
            )
        points, extra = flip_lps_ras(torch.from_numpy(found.points)), found.extra
    elif space == "VOXEL":
        points = _read_voxels(path)
        extra = ({},) * len(points)
    else:
        points, extra = (landmarks := read_csv_landmarks(path)).points_ras_mm, landmarks.extra
        points = flip_lps_ras(points) if space == "LPS" else points
    return LandmarkFile(name, space, points.numpy(), found is None and space == "VOXEL", extra, state)


def _in_memory(points: Tensor, space: str) -> LandmarkFile:
    """Return points in memory as those of a file.

    Raises:
        InputError: the shape is not (N, 3), or a coordinate is not a finite number.
    """
    points = plain(points).double()
    if points.ndim != 2 or points.shape[1] != 3 or not len(points) or not bool(points.isfinite().all()):
        raise InputError(
            f"landmarks '{FROM_MEMORY}' must be finite numbers of the shape (N, 3), got the shape {tuple(points.shape)}"
        )
    placed = flip_lps_ras(points) if space == "LPS" else points
    return LandmarkFile(FROM_MEMORY, space, placed.numpy(), space == "VOXEL", ({},) * len(points), "")


def read_landmarks(
    path: str | os.PathLike[str], landmark_space: str = "LPS", affine_ras: Tensor | None = None
) -> Landmarks:
    """Read a landmark file; the space that it states itself goes before ``landmark_space``.

    Args:
        path: CSV file with the columns x, y, z in mm, for "voxel" lines i,j,k without a header; or ``.fcsv``,
            ``.mrk.json`` or ``.vtk``.
        landmark_space: "LPS" or "RAS", the world of a file that does not state it, or "voxel".
        affine_ras: (4, 4), voxel (i, j, k) of the landmarks' image -> world RAS mm; needed for "voxel".

    Raises:
        InputError: unknown space, no such columns, no points, a point that was not placed, or a coordinate that is not
            a finite number.
    """
    return open_landmarks(path, landmark_space).landmarks(affine_ras)


def case_landmarks(case: Mapping[Any, Any], key: str, landmark_space: str = "LPS") -> LandmarkFile:
    """Return the landmark file of a case entry: as it was read when the case was checked, if it was.

    Raises:
        InputError: as :func:`read_landmarks`.
    """
    space = check_space(landmark_space)
    if isinstance(case[key], Tensor):
        return open_landmarks(case[key], space)
    opened = opened_file(case, key, str(case[key]))
    return opened if opened is not None and opened.landmark_space == space else open_landmarks(case[key], space)


def read_csv_landmarks(path: str | os.PathLike[str]) -> Landmarks:
    """Read a CSV file with the columns x, y, z in mm, as if it were in RAS.

    Raises:
        InputError: as :func:`read_landmarks`.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            rows = [row for row in csv.reader(file, skipinitialspace=True) if any(cell.strip() for cell in row)]
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"landmarks '{path}' can't be read as CSV: {error}") from error
    except OSError as error:
        raise InputFileError(f"landmarks '{path}' can't be read ({error.strerror})") from error
    header = [name.strip() for name in rows[0]] if rows else []
    columns = [name.lower() if name.lower() in AXES else name for name in header]
    if any(columns.count(axis) != 1 for axis in AXES):
        other = next((name for sign, name in ((";", "semicolons"), ("\t", "tabs")) if sign in "".join(header)), None)
        hint = "" if other is None else f", separated by {other}: separate by commas, with points in the decimals"
        raise InputError(
            f"landmarks '{path}' must begin with a line that names the columns x,y,z (mm), once each; got"
            f" '{','.join(header)}'{hint}"
        )
    if len(rows) < 2:
        raise InputError(f"landmarks '{path}' has a header and no points")
    points, extra = [], []
    for number, row in enumerate(rows[1:], start=1):
        if len(row) != len(columns):
            raise InputError(
                f"landmarks '{path}', point {number}: {len(row)} cells for {len(columns)} columns (separate them by"
                " commas; decimals have points)"
            )
        cells = dict(zip(columns, (cell.strip() for cell in row), strict=True))
        points.append([_number(cells.pop(axis), axis, number, path) for axis in AXES])
        extra.append(cells)
    return Landmarks(torch.tensor(points, dtype=torch.float64), tuple(extra))


def check_same_points(fixed: LandmarkFile, moving: LandmarkFile) -> None:
    """Refuse the landmarks of a pair that differ in their number of points.

    Raises:
        InputError: naming both files.
    """
    if len(fixed.points) != len(moving.points):
        raise InputError(
            f"fixed_landmarks '{fixed.path}' has {len(fixed.points)} points and moving_landmarks '{moving.path}'"
            f" {len(moving.points)}; give the same landmarks in the same order"
        )


def _read_voxels(path: str | os.PathLike[str]) -> Tensor:
    """Return the points (N, 3), float64, of a file without a header."""
    try:
        points = np.loadtxt(path, delimiter=",", ndmin=2, dtype=np.float64)
    except (OSError, ValueError) as error:
        raise InputError(f"landmarks '{path}' can't be read as lines of three voxel coordinates: {error}") from error
    if points.shape[1:] != (3,) or not len(points) or not np.isfinite(points).all():
        raise InputError(f"landmarks '{path}' must have lines of three finite voxel coordinates i,j,k")
    return torch.from_numpy(points)


def _number(text: str, axis: str, number: int, path: str | os.PathLike[str]) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not abs(value) < float("inf"):
        raise InputError(
            f"landmarks '{path}', point {number}: {axis} is '{text}'; give a finite number in mm, such as 12.5"
        )
    return value


def write_warped_landmarks(
    path: str | os.PathLike[str],
    groups: Sequence[tuple[str, Landmarks, GridTransform]],
    landmark_space: str = "LPS",
) -> None:
    """Carry landmarks and write them, one row a point.

    Columns: ``image`` (where the point was marked: fixed or moving), ``x,y,z`` (as marked), ``warped_x, warped_y,
    warped_z`` (the corresponding point of the other image), then the input's other columns; mm in ``landmark_space``.

    Args:
        path: the file.
        groups: image name, its landmarks, and the transform that carries them: fixed landmarks by the forward
            transform, moving landmarks by the inverse one.
        landmark_space: "LPS" or "RAS"; "voxel", which belongs to one image only, is written as LPS.

    Raises:
        InputError: the file can't be written.
    """
    space = "RAS" if check_space(landmark_space) == "RAS" else "LPS"
    taken = {"image", *AXES, *CARRIED}
    names = list(dict.fromkeys(name for _, landmarks, _ in groups for name in landmarks.extra[0] if name not in taken))
    text = io.StringIO()
    writer = csv.DictWriter(text, ["image", *AXES, *CARRIED, *names], lineterminator="\n", restval="")
    writer.writeheader()
    for image, landmarks, transform in groups:
        marked, carried = landmarks.points_ras_mm, transform(landmarks.points_ras_mm)
        if space == "LPS":
            marked, carried = flip_lps_ras(marked), flip_lps_ras(carried)
        for point, other, extra in zip(marked.tolist(), carried.tolist(), landmarks.extra, strict=True):
            row = {name: extra[name] for name in names if name in extra}
            row.update(zip((*AXES, *CARRIED), (f"{value:.6f}" for value in (*point, *other)), strict=True))
            writer.writerow({"image": image, **row})
    with replacing(path) as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8")
