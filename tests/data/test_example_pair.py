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
"""The example pair: deterministic, small, and what its description says."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from scripts.data import example_pair
from scripts.data.example_pair import anatomy, landmarks, true_forward, true_inverse, write_example

RAS_TO_LPS = np.array([-1, -1, 1])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("example")
    write_example(folder)
    return folder


def read_points(path: Path) -> np.ndarray:
    return np.loadtxt(path, delimiter=",", skiprows=1)


def voxels_of(image: nib.Nifti1Image, points_lps: np.ndarray) -> np.ndarray:
    return nib.affines.apply_affine(np.linalg.inv(image.affine), points_lps * RAS_TO_LPS)


def test_is_the_same_bytes_each_time_and_small(folder: Path, tmp_path: Path) -> None:
    again = write_example(tmp_path)
    assert all(path.read_bytes() == (folder / path.name).read_bytes() for path in again)
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in again}  # no temporary file is left
    assert sum(path.stat().st_size for path in again) < 700_000


def test_inverse_undoes_the_transform() -> None:
    points = np.random.default_rng(0).uniform(-90, 90, (500, 3)) + example_pair.FIXED_CENTER
    assert np.abs(true_inverse(true_forward(points)) - points).max() < 1e-9


def test_transform_does_not_fold() -> None:
    points = np.random.default_rng(0).uniform(-90, 90, (2000, 3)) + example_pair.FIXED_CENTER
    steps = [(true_forward(points + 1e-4 * unit) - true_forward(points)) / 1e-4 for unit in np.eye(3)]
    assert np.linalg.det(np.stack(steps, axis=-1)).min() > 0.5


def test_grids_differ_in_shape_spacing_and_orientation(folder: Path) -> None:
    fixed, moving = (nib.load(folder / f"{name}.nii.gz") for name in ("fixed", "moving"))
    assert nib.aff2axcodes(fixed.affine) == ("L", "P", "S")
    assert nib.aff2axcodes(moving.affine) == ("R", "A", "S")
    assert fixed.shape != moving.shape
    assert fixed.header.get_zooms() != moving.header.get_zooms()
    assert fixed.get_data_dtype() == moving.get_data_dtype() == np.int16
    for name in ("fixed", "moving"):
        label, image = nib.load(folder / f"{name}_label.nii.gz"), nib.load(folder / f"{name}.nii.gz")
        assert label.shape == image.shape
        np.testing.assert_array_equal(label.affine, image.affine)
        assert set(np.unique(label.dataobj)) == set(range(len(example_pair.LABELS) + 1))


def test_landmarks_correspond_by_the_described_transform(folder: Path) -> None:
    truth = json.loads((folder / "ground_truth.json").read_text())
    fixed, moving = (read_points(folder / f"{name}_landmarks.csv") for name in ("fixed", "moving"))
    local = fixed - truth["fixed_center"]
    for shear in truth["shears"]:
        phase = 2 * np.pi * local @ shear["frequency_per_mm"] + shear["phase"]
        local[:, shear["axis"]] += shear["amplitude_mm"] * np.sin(phase)
    assert len(fixed) == 40
    np.testing.assert_allclose(local * truth["scale"] + truth["moving_center"], moving, atol=1e-5)


def test_landmarks_lie_inside_both_images_and_start_far_apart(folder: Path) -> None:
    images = [nib.load(folder / f"{name}.nii.gz") for name in ("fixed", "moving")]
    points = [read_points(folder / f"{name}_landmarks.csv") for name in ("fixed", "moving")]
    fractions = []
    for image, marks in zip(images, points, strict=True):
        voxels = voxels_of(image, marks)
        assert np.all(voxels > 3)
        assert np.all(voxels < np.array(image.shape) - 4)
        fractions.append((voxels + 0.5) / image.shape)
    # field of view onto field of view, x and y turned: LPS against RAS
    start = np.where([True, True, False], 1 - fractions[0], fractions[0]) * images[1].shape - 0.5
    start_lps = nib.affines.apply_affine(images[1].affine, start) * RAS_TO_LPS
    distance = np.linalg.norm(start_lps - points[1], axis=1).mean()
    assert 8 < distance < 16


def test_images_show_the_same_intensities_at_corresponding_points(folder: Path) -> None:
    """Voxels of the moving image against the anatomy at the fixed points they correspond to, and labels as well."""
    moving, label = nib.load(folder / "moving.nii.gz"), nib.load(folder / "moving_label.nii.gz")
    voxels = np.random.default_rng(1).integers(0, moving.shape, (5000, 3))
    world = nib.affines.apply_affine(moving.affine, voxels) * RAS_TO_LPS
    expected, expected_label = anatomy(true_inverse(world))
    got = np.asarray(moving.dataobj)[tuple(voxels.T)]
    assert np.abs(got - expected).max() <= example_pair.HU_STEP / 2 + 1e-3
    assert np.mean(np.asarray(label.dataobj)[tuple(voxels.T)] == expected_label) > 0.999


def test_fixed_image_is_the_anatomy_on_its_grid(folder: Path) -> None:
    fixed = nib.load(folder / "fixed.nii.gz")
    voxels = np.random.default_rng(2).integers(0, fixed.shape, (5000, 3))
    expected, _ = anatomy(nib.affines.apply_affine(fixed.affine, voxels) * RAS_TO_LPS)
    assert np.abs(np.asarray(fixed.dataobj)[tuple(voxels.T)] - expected).max() <= example_pair.HU_STEP / 2 + 1e-2


def test_landmarks_are_apart() -> None:
    points = landmarks()
    gaps = np.linalg.norm(points[:, None] - points[None], axis=-1) + 1e9 * np.eye(len(points))
    assert gaps.min() > 12
