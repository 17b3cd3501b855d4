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
"""A synthetic pair of CT-like volumes with a known transform: ``python -m scripts example_pair OUT``.

One anatomy (a closed torso with lungs, heart, liver, spleen, kidneys, spine and ribs, textured) is a function on points
of space. The fixed image evaluates it on an oblique grid; the moving image evaluates it, through the exact inverse of
the transform, on a grid of other spacing, shape and orientation. Nothing is interpolated, so that
``moving(true_forward(p)) = fixed(p)`` holds up to rounding, and landmarks correspond exactly.

All points are world LPS mm.
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from scripts.geometry.world_axes import LPS_RAS, SIGNS

Points = NDArray[np.float64]  # (..., 3)

FIXED_CENTER = np.array([12.0, -31.0, -140.0])  # mm: where the torso's center lies in each image
MOVING_CENTER = np.array([-8.0, -14.0, 95.0])
SCALE = np.array([1.06, 0.96, 1.04])
# three shears, one after the other: axis ``a`` += amplitude * sin(2 pi (point . frequency) + phase), with frequency
# zero along ``a`` itself: smooth, and undone exactly by subtracting them in reverse order
SHEARS = (
    (0, 7.0, (0.0, 1 / 170, 1 / 150), 0.4),
    (1, 6.5, (1 / 160, 0.0, 1 / 180), 1.9),
    (2, 8.0, (1 / 160, 1 / 190, 0.0), -0.7),
)
HU_STEP = 10  # intensities are rounded to multiples of it: the images stay small, and differ by rounding as by noise
LABELS = {
    1: "left lung",
    2: "right lung",
    3: "heart",
    4: "liver",
    5: "spleen",
    6: "left kidney",
    7: "right kidney",
    8: "spine",
}


@dataclass(frozen=True)
class Grid:
    """An image grid: voxel (i, j, k) lies at origin + direction @ (spacing * voxel), LPS mm."""

    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    direction: NDArray[np.float64]
    center: NDArray[np.float64]

    @property
    def affine(self) -> NDArray[np.float64]:
        """Voxel -> LPS mm, 4 x 4."""
        affine = np.eye(4)
        affine[:3, :3] = self.direction * np.array(self.spacing)
        affine[:3, 3] = self.center - affine[:3, :3] @ ((np.array(self.shape) - 1) / 2)
        return affine

    def points(self) -> Points:
        """All voxel centers, (I, J, K, 3)."""
        voxels = np.stack(np.meshgrid(*(np.arange(n) for n in self.shape), indexing="ij"), axis=-1)
        return voxels @ self.affine[:3, :3].T + self.affine[:3, 3]


def _oblique(degrees_z: float, degrees_x: float) -> NDArray[np.float64]:
    cz, sz = np.cos(np.radians(degrees_z)), np.sin(np.radians(degrees_z))
    cx, sx = np.cos(np.radians(degrees_x)), np.sin(np.radians(degrees_x))
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    return about_z @ about_x


FIXED_GRID = Grid((100, 88, 80), (1.5, 1.5, 2.5), _oblique(9, -6), FIXED_CENTER + np.array([1.0, -2.0, 3.0]))
MOVING_GRID = Grid((94, 90, 104), (1.7, 1.6, 2.0), np.diag(SIGNS), MOVING_CENTER + np.array([-2, 2, -3]))


def true_forward(points: Points) -> Points:
    """Carry fixed points to the moving points they correspond to, LPS mm -> LPS mm, (..., 3)."""
    local = np.array(points, dtype=np.float64) - FIXED_CENTER
    for axis, amplitude, frequency, phase in SHEARS:
        local[..., axis] += amplitude * np.sin(2 * np.pi * (local @ np.array(frequency)) + phase)
    return local * SCALE + MOVING_CENTER


def true_inverse(points: Points) -> Points:
    """Carry moving points to fixed points: the exact inverse of :func:`true_forward`."""
    local = (np.array(points, dtype=np.float64) - MOVING_CENTER) / SCALE
    for axis, amplitude, frequency, phase in reversed(SHEARS):
        local[..., axis] -= amplitude * np.sin(2 * np.pi * (local @ np.array(frequency)) + phase)
    return local + FIXED_CENTER


def anatomy(points: Points) -> tuple[NDArray[np.float64], NDArray[np.uint8]]:
    """Evaluate the anatomy at fixed points (..., 3), LPS mm: intensities (HU-like, unrounded) and labels."""
    x, y, z = np.moveaxis(points - FIXED_CENTER, -1, 0)
    hu = np.full(x.shape, -1000.0)
    label = np.zeros(x.shape, dtype=np.uint8)

    def paint(depth_mm: NDArray[np.float64], value: NDArray[np.float64] | float, number: int | None = None) -> None:
        """Mix a structure in where its depth below the surface is positive, with a 1 mm soft edge."""
        weight = 1 / (1 + np.exp(-np.clip(depth_mm / 0.7, -30, 30)))
        np.copyto(hu, hu + weight * (value - hu))
        if number is not None:
            label[depth_mm > 0] = number

    def ellipsoid(center: tuple[float, float, float], radii: tuple[float, float, float]) -> NDArray[np.float64]:
        r = np.sqrt(sum(((p - c) / a) ** 2 for p, c, a in zip((x, y, z), center, radii, strict=True)))
        return (1 - r) * min(radii)

    tissue, vessels = _texture(x, y, z)
    skin = (1 - (np.abs(x / 60) ** 2.6 + np.abs(y / 47) ** 2.6 + np.abs(z / 84) ** 4) ** (1 / 2.6)) * 47
    wall = np.abs(skin - 10)  # ribs run in a shell 10 mm below the skin
    paint(skin, -90 + 0.3 * tissue)
    paint(skin - 6, 40 + 0.6 * tissue)
    ribs = 3.2 - np.hypot(wall, 6.0 * np.sin(np.pi * (z + 0.25 * y) / 22))
    paint(np.where(z > -30, ribs, -9.0), 380.0)
    paint(ellipsoid((31, -2, 33), (19, 27, 36)), -830 + vessels, 1)
    paint(ellipsoid((-31, -2, 33), (20, 28, 38)), -830 + vessels, 2)
    paint(ellipsoid((7, -10, 26), (15, 17, 20)), 150 + 0.8 * tissue, 3)
    paint(ellipsoid((-19, -5, -25), (30, 28, 22)), 105 + tissue, 4)
    paint(ellipsoid((22, -16, -24), (14, 12, 17)), -40 + 1.5 * tissue)  # stomach
    paint(ellipsoid((38, 15, -24), (10, 12, 17)), 130 + tissue, 5)
    paint(ellipsoid((24, 19, -50), (9, 10, 18)), 190 + tissue, 6)
    paint(ellipsoid((-24, 19, -54), (9, 10, 18)), 190 + tissue, 7)
    paint(np.minimum(6.0 - np.hypot(x - 8, y - 14), 76 - np.abs(z)), 230.0)  # aorta
    bone = 420 + 130 * np.sin(2 * np.pi * z / 24) + tissue
    paint(np.minimum(10.5 - np.hypot(x, y - 29), 76 - np.abs(z)), bone, 8)
    return hu, label


def _texture(
    x: NDArray[np.float64], y: NDArray[np.float64], z: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return two smooth random patterns: tissue (HU around 0) and vessels in the lungs (HU above 0)."""
    random = np.random.default_rng(2024)
    patterns = []
    for waves, shortest, longest in ((14, 16, 36), (10, 14, 24)):
        total = np.zeros_like(x)
        for _ in range(waves):
            axis = random.normal(size=3)
            frequency = axis / np.linalg.norm(axis) / random.uniform(shortest, longest)
            total += np.sin(2 * np.pi * (frequency[0] * x + frequency[1] * y + frequency[2] * z + random.uniform()))
        patterns.append(total / np.sqrt(waves / 2))
    return 40 * patterns[0], 260 / (1 + np.exp(-6 * (patterns[1] - 0.9)))


def landmarks(count: int = 40) -> Points:
    """Return fixed landmarks (count, 3), LPS mm, spread through the torso, at least 8 mm below the skin."""
    random = np.random.default_rng(7)
    found: list[Points] = []
    while len(found) < count:
        local = random.uniform(-1, 1, size=3) * np.array([52, 39, 72])
        inside = np.abs(local[0] / 52) ** 2.6 + np.abs(local[1] / 39) ** 2.6 + np.abs(local[2] / 76) ** 4 < 1
        if inside and all(np.linalg.norm(local + FIXED_CENTER - other) > 12 for other in found):
            found.append(local + FIXED_CENTER)
    return np.array(found)


def write_example(folder: str | os.PathLike[str]) -> list[Path]:
    """Write the pair, its labels, landmarks and a description of its transform; the same bytes each time.

    Returns:
        the files written.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    fixed_points = landmarks()
    contents = {
        "fixed_landmarks.csv": _csv(fixed_points),
        "moving_landmarks.csv": _csv(true_forward(fixed_points)),
        "ground_truth.json": (json.dumps(_description(), indent=4) + "\n").encode(),
    }
    for name, grid, to_fixed in (("fixed", FIXED_GRID, None), ("moving", MOVING_GRID, true_inverse)):
        points = grid.points()
        hu, label = anatomy(points if to_fixed is None else to_fixed(points))
        rounded = (np.round(hu / HU_STEP) * HU_STEP).astype(np.int16)
        contents[f"{name}.nii.gz"] = _nifti(rounded, grid)
        contents[f"{name}_label.nii.gz"] = _nifti(label, grid)
    files = []
    for name, content in contents.items():
        temporary = folder / f".{name}.part"
        temporary.write_bytes(content)
        os.replace(temporary, folder / name)
        files.append(folder / name)
    return files


def _nifti(values: NDArray, grid: Grid) -> bytes:
    affine_ras = LPS_RAS.numpy() @ grid.affine  # NIfTI's world is RAS
    image = nib.Nifti1Image(values, affine_ras)
    image.header.set_xyzt_units("mm")
    image.set_sform(affine_ras, code="scanner")
    image.set_qform(affine_ras, code="scanner")
    buffer = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", fileobj=buffer, mtime=0) as file:
        file.write(image.to_bytes())
    return buffer.getvalue()


def _csv(points: Points) -> bytes:
    return ("x,y,z\n" + "".join(",".join(f"{value:.6f}" for value in point) + "\n" for point in points)).encode()


def _description() -> dict:
    return {
        "description": "Synthetic torso, CT-like (HU), generated analytically; fixed and moving show the same anatomy.",
        "space": "world LPS mm",
        "forward_transform": "fixed point -> moving point: q = p - fixed_center; for each shear in order"
        " q[axis] += amplitude * sin(2 pi (q . frequency) + phase); result = q * scale + moving_center",
        "fixed_center": FIXED_CENTER.tolist(),
        "moving_center": MOVING_CENTER.tolist(),
        "scale": SCALE.tolist(),
        "shears": [
            {"axis": axis, "amplitude_mm": amplitude, "frequency_per_mm": list(frequency), "phase": phase}
            for axis, amplitude, frequency, phase in SHEARS
        ],
        "landmarks": "row n of moving_landmarks.csv = forward_transform(row n of fixed_landmarks.csv), LPS mm",
        "labels": {str(number): name for number, name in LABELS.items()},
        "modality": "ct",
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the example pair into the folder named on the command line."""
    parser = argparse.ArgumentParser(
        "python -m scripts example_pair", description="Write a synthetic pair of volumes with a known transform."
    )
    parser.add_argument("out", help="folder for the files; made if missing")
    for file in write_example(parser.parse_args(arguments).out):
        print(f"{file} ({file.stat().st_size / 1024:.0f} KiB)")
