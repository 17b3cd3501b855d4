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
"""Real development pairs for benchmarks: a folder with ``pairs.json`` as the options of the bundle want it.

``pairs.json`` holds, by name, the images, modalities, masks and labels of each pair, and landmark files in the formats
of their data sets (VTK point sets, elastix point lists; world mm, LPS), which are turned into CSV files here.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import itk
import numpy as np


def read_pairs(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the pairs of ``folder/pairs.json`` by name."""
    pairs: dict[str, dict[str, Any]] = json.loads((folder / "pairs.json").read_text())
    return pairs


def bundle_options(folder: Path, pair: dict[str, Any], work_dir: Path) -> dict[str, str]:
    """Return the bundle's options of one pair; landmark CSV files are written into ``work_dir``. Masks are left out."""
    options = {key: value for key, value in pair.items() if key.endswith("_modality")}
    options |= {
        key: str(folder / pair[key]) for key in ("fixed", "moving", "fixed_label", "moving_label") if key in pair
    }
    for key in ("fixed_landmarks", "moving_landmarks"):
        if key in pair:
            points = np.concatenate([read_points(folder / name) for name in pair[key]])
            options[key] = str(write_points(work_dir / f"{key}.csv", points))
    return options


VARIANTS = {"flipped": ((0, 1, 2), (True, True, True)), "permuted": ((2, 0, 1), (False, False, False))}


def vary(options: dict[str, str], variant: str, work_dir: Path) -> dict[str, str]:
    """Return the options of the same pair, posed differently; the right answer is the same in world space.

    Args:
        options: of :func:`bundle_options`.
        variant: "backwards" swaps the images; "flipped" and "permuted" store the voxels of both in another order.
        work_dir: where changed images go.
    """
    if variant == "backwards":
        other = {"fixed": "moving", "moving": "fixed"}
        roles = {key: key.partition("_") for key in options}
        return {other[role] + line + rest: options[key] for key, (role, line, rest) in roles.items()}
    changed = dict(options)
    for key in ("fixed", "moving", "fixed_label", "moving_label"):
        if key in options:
            changed[key] = str(work_dir / f"{key}.nii.gz")
            reorder_axes(Path(options[key]), Path(changed[key]), *VARIANTS[variant])
    return changed


def reorder_axes(path: Path, out: Path, order: Sequence[int], flip: Sequence[bool]) -> None:
    """Write an image with its voxels in another order and every voxel where it was in the world.

    Args:
        path: image file.
        out: file to write.
        order: of the axes (i, j, k), i the fastest.
        flip: for each axis of ``path``.
    """
    image = itk.imread(str(path))
    size, spacing = np.array(itk.size(image)), np.array(image.GetSpacing())
    direction, origin = itk.array_from_matrix(image.GetDirection()), np.array(image.GetOrigin())
    values = itk.array_from_image(image).transpose()  # i, j, k
    for axis in range(3):
        if flip[axis]:
            values = np.flip(values, axis)
            origin = origin + direction[:, axis] * spacing[axis] * (size[axis] - 1)
            direction[:, axis] *= -1
    result = itk.image_from_array(np.ascontiguousarray(values.transpose(order).transpose()))
    result.SetSpacing(spacing[list(order)].tolist())
    result.SetOrigin(origin.tolist())
    result.SetDirection(itk.matrix_from_array(np.ascontiguousarray(direction[:, list(order)])))
    out.parent.mkdir(parents=True, exist_ok=True)
    itk.imwrite(result, str(out))


def read_points(path: Path) -> np.ndarray:
    """Return the points (N, 3), world mm, LPS, of a VTK ASCII point set or an elastix point list."""
    lines = path.read_text().splitlines()
    if path.suffix == ".vtk":
        first = next(n for n, line in enumerate(lines) if line.startswith("POINTS"))
        count, first = int(lines[first].split()[1]), first + 1
    else:
        count, first = int(lines[1]), 2
    numbers = " ".join(lines[first:]).split()[: 3 * count]
    return np.array(numbers, dtype=float).reshape(count, 3)


def write_points(path: Path, points: np.ndarray) -> Path:
    """Write points (N, 3) as CSV with the header x,y,z."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("x", "y", "z"), *points.tolist()])
    return path


def add_motion(moving: Path, landmarks: np.ndarray, out: Path, largest_mm: float, seed: int) -> np.ndarray:
    """Warp an image by a smooth random displacement and return its landmarks, moved with it.

    Args:
        moving: image file.
        landmarks: (N, 3), world mm, LPS, of that image.
        out: where the warped image goes.
        largest_mm: length of the longest displacement.
        seed: of the displacement: a Gaussian field with a standard deviation of a fifth of the longest extent.

    Returns:
        (N, 3): the points y with y + displacement(y) = landmark.
    """
    image = itk.imread(str(moving), itk.F)
    size, spacing = np.array(itk.size(image)), np.array(image.GetSpacing())
    noise = np.random.default_rng(seed).standard_normal((*size[::-1], 3)).astype(np.float32)
    field = itk.image_from_array(noise, is_vector=True)
    field.CopyInformation(image)
    components = []
    for axis in range(3):
        part = itk.vector_index_selection_cast_image_filter(field, index=axis)
        smooth = itk.recursive_gaussian_image_filter
        for direction in range(3):
            part = smooth(part, sigma=float((size * spacing).max() / 5), direction=direction)
        components.append(itk.array_from_image(part))
    vectors = np.stack(components, axis=-1)
    vectors *= largest_mm / np.linalg.norm(vectors, axis=-1).max()
    displacement = itk.image_from_array(vectors.astype(np.float64), is_vector=True)
    displacement.CopyInformation(image)
    transform = itk.DisplacementFieldTransform[itk.D, 3].New()
    transform.SetDisplacementField(displacement)
    low = float(itk.array_view_from_image(image).min())
    warped = itk.resample_image_filter(
        image, transform=transform, use_reference_image=True, reference_image=image, default_pixel_value=low
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    itk.imwrite(warped, str(out))
    points = landmarks.copy()
    for _ in range(100):  # a contraction: the displacement is smooth
        moved = np.array([transform.TransformPoint(point) for point in points.tolist()])
        points = points + landmarks - moved
    return points
