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
"""The whole pipeline as its users see it: image files in, transform files out, which ITK evaluates."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations, product
from pathlib import Path
from typing import Any, NamedTuple

import itk
import numpy as np
from scipy.ndimage import gaussian_filter

from scripts.data.transform_files import read_transform
from tests.helpers.chain import write
from tests.helpers.inference import run_inference
from tests.helpers.known_pair import FIXED, FIXED_SHAPE, QUICK, grid_points, write_known_pair
from tools.benchmarks.pairs import reorder_axes

NO_OTHER_FILES = {f"save::{name}": False for name in ("displacement", "warped", "jacobian", "confidence", "overview")}
ORDERS = tuple(permutations((0, 1, 2)))
FLIPS = tuple(product((False, True), repeat=3))
ORIENTATIONS = tuple(product(ORDERS, FLIPS))  # all 48: order of the axes, and which are flipped
POINTS = grid_points(FIXED, FIXED_SHAPE)[3:-3:6, 3:-3:6, 3:-3:5].reshape(-1, 3)  # of the known pair's fixed image


class Registered(NamedTuple):
    """What one registration wrote."""

    forward: Any
    """``itk.CompositeTransform``, LPS mm, read from ``forward_transform.h5``."""
    inverse: Any
    """Likewise."""
    report: dict[str, Any]
    """Content of ``report.json``."""


def register(folder: Path, fixed: str | Path, moving: str | Path, **options: Any) -> Registered:
    """Register two files with short settings, training-free unless told otherwise."""
    given = {**QUICK, **NO_OTHER_FILES, "overlap": False, "summary": False, **options}
    report = run_inference(folder, fixed=str(fixed), moving=str(moving), **given)
    forward, inverse = (read_transform(str(folder / f"{name}_transform.h5")) for name in ("forward", "inverse"))
    return Registered(forward, inverse, report)


def known_images(folder: Path) -> tuple[str, str]:
    """Write the known pair and return the paths of fixed and moving image."""
    options = write_known_pair(folder)
    return options["fixed"], options["moving"]


def textured_image(folder: Path) -> str:
    """Write an image on the known pair's fixed grid with contrast everywhere and return its path."""
    texture = gaussian_filter(np.random.default_rng(2).standard_normal(FIXED_SHAPE), 1.5)
    return write(folder / "textured.nii.gz", (400 + 800 * texture).astype(np.float32), **FIXED)


def carry(transform: Any, points: np.ndarray) -> np.ndarray:
    """Return where a transform of ITK takes points (N, 3), LPS mm."""
    return np.array([transform.TransformPoint(point) for point in points.tolist()])


def farthest(first: np.ndarray, second: np.ndarray) -> float:
    """Return the largest distance between points (N, 3) of the same row."""
    return float(np.linalg.norm(first - second, axis=1).max())


def place(path: str | Path, out: Path, linear: np.ndarray | None = None, shift: Sequence[float] = (0, 0, 0)) -> Path:
    """Write an image whose header places every voxel x, LPS mm, at ``linear @ x + shift``; the voxels stay as they are.

    Args:
        path: of the image.
        out: where it goes.
        linear: (3, 3), a rotation or reflection times a scale; the identity by default.
        shift: mm.
    """
    matrix = np.eye(3) if linear is None else np.asarray(linear, dtype=float)
    scale = abs(np.linalg.det(matrix)) ** (1 / 3)
    image = itk.imread(str(path))
    image.SetOrigin((matrix @ np.array(image.GetOrigin()) + np.array(shift)).tolist())
    image.SetSpacing((scale * np.array(image.GetSpacing())).tolist())
    image.SetDirection(itk.matrix_from_array(matrix / scale @ itk.array_from_matrix(image.GetDirection())))
    out.parent.mkdir(parents=True, exist_ok=True)
    itk.imwrite(image, str(out))
    return out


def store(path: str | Path, out: Path, orientation: tuple[Sequence[int], Sequence[bool]]) -> Path:
    """Write an image with its voxels in another order, every voxel where it was: one of :data:`ORIENTATIONS`."""
    reorder_axes(Path(path), out, *orientation)
    return out
