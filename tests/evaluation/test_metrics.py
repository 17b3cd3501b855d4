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
"""What an evaluation measures, on cases with known answers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK
import torch
from scipy import ndimage

from scripts.data.landmarks import read_landmarks
from scripts.evaluation.comparators import over_start
from scripts.evaluation.metrics import jacobian_figures
from scripts.geometry.grid_transform import GridTransform
from scripts.metrics.registration_metrics import dice_per_label, jacobian_determinant, target_registration_error_mm
from tests.helpers.chain import oblique
from tests.helpers.known_pair import write_points

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def oblique_affine() -> torch.Tensor:
    matrix = np.eye(4)
    matrix[:3, :3] = oblique(20) @ np.diag([1.5, 0.8, 2.5])
    matrix[:3, 3] = [-100, 40, 12]
    return torch.from_numpy(LPS_TO_RAS @ matrix)


def fold(amplitude: float, shape: tuple[int, int, int] = (64, 5, 6)) -> torch.Tensor:
    """Displacement along voxel axis 0 of ``amplitude`` * sin(2 pi i / 64) voxels, as RAS mm (3, I, J, K)."""
    along = amplitude * torch.sin(2 * torch.pi * torch.arange(shape[0]) / 64)
    voxels = torch.zeros(3, *shape)
    voxels[0] = along.view(-1, 1, 1)
    return torch.einsum("ab,bijk->aijk", oblique_affine()[:3, :3].float(), voxels)


def test_the_share_of_an_analytic_fold_and_the_spread_of_its_logarithm() -> None:
    amplitude = 16.0  # the slope of the central differences is 16 sin(2 pi / 64) cos(2 pi i / 64)
    determinant = jacobian_determinant(fold(amplitude), oblique_affine())
    expected = 1 + amplitude * np.sin(2 * np.pi / 64) * np.cos(2 * np.pi * np.arange(64) / 64)
    along = amplitude * np.sin(2 * np.pi * np.arange(64) / 64)
    expected[[0, -1]] = 1 + np.array([along[1] - along[0], along[-1] - along[-2]])  # one-sided at the border
    figures = jacobian_figures(determinant)
    assert 0.2 < (expected <= 0).mean() < 0.5
    assert figures["negative_percent"] == pytest.approx(100 * (expected <= 0).mean(), abs=1e-6)
    assert figures["sd_log"] == pytest.approx(np.log(expected.clip(1e-9, 1e9)).std(), rel=1e-4)


def test_no_fold_where_there_is_none() -> None:
    figures = jacobian_figures(jacobian_determinant(fold(5.0), oblique_affine()))
    assert figures["negative_percent"] == 0
    assert 0 < figures["sd_log"] < 1
    assert jacobian_figures(torch.full((4, 4, 4), 1.7)) == pytest.approx({"negative_percent": 0, "sd_log": 0}, abs=1e-9)


def test_the_error_of_a_known_affine_is_exact(tmp_path: Path) -> None:
    grid = oblique_affine()
    matrix = torch.tensor([[1.02, 0.1, 0, 3], [-0.08, 0.97, 0.05, -4], [0, 0.03, 1.1, 7], [0, 0, 0, 1]]).double()
    start = torch.tensor([[0.9, 0, 0.2, -1], [0, 1.2, 0, 5], [0, 0, 1, 2], [0, 0, 0, 1]]).double()
    shape = (12, 13, 14)
    voxels = torch.stack(torch.meshgrid(*(torch.arange(n).double() for n in shape), indexing="ij"))
    to_ddf = torch.linalg.inv(start @ grid) @ matrix @ grid
    ddf = torch.einsum("ab,bijk->aijk", to_ddf[:3, :3], voxels) + to_ddf[:3, 3].view(3, 1, 1, 1) - voxels
    exact = GridTransform(ddf, grid, start @ grid)
    points = voxels[:, 2:9, 3:10, 4:11].reshape(3, -1).T @ grid[:3, :3].T + grid[:3, 3]
    moved = points @ matrix[:3, :3].T + matrix[:3, 3]
    assert target_registration_error_mm(exact, points, moved).max() < 1e-9
    off = torch.tensor([1.0, -2.0, 2.0])
    torch.testing.assert_close(
        target_registration_error_mm(exact, points, moved + off), torch.full((len(points),), 3.0).double()
    )
    # the same as a dense displacement of single precision, measured from another start
    world = torch.einsum("ab,bijk->aijk", grid[:3, :3], voxels) + grid[:3, 3].view(3, 1, 1, 1)
    goal = torch.einsum("ab,bijk->aijk", matrix[:3, :3], world) + matrix[:3, 3].view(3, 1, 1, 1)
    dense = over_start((goal - world).float(), grid, start)
    assert target_registration_error_mm(dense, points, moved).max() < 1e-3
    at_start = points @ start[:3, :3].T + start[:3, 3]
    assert (dense.without_displacement()(points) - at_start).abs().max() < 1e-9


def test_landmarks_of_the_wrong_world_are_caught(tmp_path: Path) -> None:
    points = np.array([[10.0, 20.0, 30.0], [-7.0, 1.0, 12.0], [33.0, -8.0, 5.0]])
    shift = np.array([2.0, -3.0, 4.0])
    files = [write_points(tmp_path / name, p) for name, p in (("fixed.csv", points), ("moving.csv", points + shift))]
    affine = torch.eye(4).double()
    affine[:3, 3] = -45
    # the shift in RAS
    right = GridTransform(torch.tensor([-2.0, 3.0, 4.0]).view(3, 1, 1, 1).expand(3, 90, 90, 90), affine, affine)
    for space, error in (("LPS", 0.0), ("RAS", 2 * np.hypot(2, 3))):
        fixed, moving = (read_landmarks(file, space).points_ras_mm for file in files)
        found = target_registration_error_mm(right, fixed, moving)
        torch.testing.assert_close(found, torch.full((3,), error).double(), atol=1e-6, rtol=0)


def test_dice_is_that_of_simpleitk() -> None:
    images = [
        (30 * ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(20, 24, 22)), 2)).round().clip(0, 2)
        for seed in (0, 1)
    ]
    ours = dice_per_label(images[0].astype(np.int32), images[1].astype(np.int32), [1, 2])
    measure = SimpleITK.LabelOverlapMeasuresImageFilter()
    measure.Execute(*(SimpleITK.GetImageFromArray(image.astype(np.uint8)) for image in images))
    for label in (1, 2):
        assert 0 < ours[label] < 1
        assert ours[label] == pytest.approx(measure.GetDiceCoefficient(label), abs=1e-6)
