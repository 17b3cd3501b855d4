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
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from scripts.data.landmarks import check_space, read_csv_landmarks
from scripts.data.point_formats import as_text, read_point_file, write_text
from scripts.geometry.world_axes import signs_to_lps
from scripts.utils.errors import InputError
from scripts.utils.paths import POINT_SUFFIXES

logger = logging.getLogger(__name__)

Points = np.ndarray  # (N, 3), world LPS mm
Carry = Callable[[Points], Points]


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
    if not path.lower().endswith(POINT_SUFFIXES):
        raise InputError(f"landmarks '{path}': give a file that ends in {', '.join(POINT_SUFFIXES)}")
    found = read_point_file(path, space)
    if found is None:
        return _csv(path, carry, out, space)
    if found.not_placed:
        logger.warning("landmarks '%s': %d points were not placed; they stay as they are", path, len(found.not_placed))
    found.write(out, carry(found.points))
    return len(found.points)


def check_world(landmark_space: str) -> str:
    """Return "LPS" or "RAS".

    Raises:
        InputError: anything else.
    """
    space = check_space(landmark_space)
    if space == "VOXEL":
        raise InputError("landmark_space voxel: voxel coordinates can't be carried; give points in world mm")
    return space


def _csv(path: str, carry: Carry, out: Path, space: str) -> int:
    landmarks = read_csv_landmarks(path)  # as written: the signs are those of `space`
    signs = signs_to_lps(space)
    carried = carry(landmarks.points_ras_mm.numpy() * signs) * signs
    text = io.StringIO()
    writer = csv.DictWriter(text, ["x", "y", "z", *landmarks.extra[0]], lineterminator="\n")
    writer.writeheader()
    for point, extra in zip(carried, landmarks.extra, strict=True):
        writer.writerow({**dict(zip("xyz", as_text(point), strict=True)), **extra})
    write_text(out, text.getvalue())
    return len(carried)
