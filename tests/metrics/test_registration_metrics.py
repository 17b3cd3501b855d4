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
"""Metrics against MONAI, ITK and cases whose answer is known."""

from __future__ import annotations

import itk
import numpy as np
import pytest
import torch
from monai.metrics import compute_dice

from scripts.geometry import grid_transform as transform_io
from scripts.geometry.grid_transform import GridTransform, displacement_field
from scripts.metrics import registration_metrics as metrics
from tests.helpers.chain import oblique
from tests.helpers.registered import smooth_ddf

SHAPE = (14, 16, 18)
LPS = np.array([-1.0, -1.0, 1.0])


def affine_of(spacing: tuple[float, ...], direction_lps: np.ndarray) -> torch.Tensor:
    """RAS affine of a grid."""
    affine = np.eye(4)
    affine[:3, :3] = np.diag(LPS) @ direction_lps @ np.diag(spacing)
    affine[:3, 3] = (4.0, -9.0, 30.0)
    return torch.tensor(affine)


def test_dice_is_that_of_monai() -> None:
    random = np.random.default_rng(0)
    fixed, warped = random.choice([0, 3, 70000, 2**24], (2, 9, 8, 7))
    labels = metrics.common_labels(fixed, warped)
    assert labels == [3, 70000, 2**24]
    scores = metrics.dice_per_label(fixed, warped, labels)
    for label in labels:
        one = compute_dice(*(torch.tensor(values == label)[None, None] for values in (warped, fixed)))
        assert scores[label] == pytest.approx(float(one), rel=1e-6)


def test_dice_leaves_out_the_background_and_labels_of_one_image_only() -> None:
    fixed, moving = np.array([[[0, 1, 2, 2]]]), np.array([[[0, 2, 3, 3]]])
    assert metrics.common_labels(fixed, moving) == [2]
    assert metrics.dice_per_label(fixed, np.array([[[0, 0, 3, 3]]]), [2]) == {2: 0.0}
    assert metrics.dice_per_label(fixed, fixed, [1, 2, 9]) == {1: 1.0, 2: 1.0, 9: 0.0}
    assert metrics.dice_per_label(fixed, fixed + 5, [2]) == {2: 0.0}  # no voxel agrees
    with pytest.raises(ValueError, match=r"one shape, got \(1, 1, 4\) and \(1, 1, 3\)"):
        metrics.dice_per_label(fixed, moving[..., :3], [2])


@pytest.mark.parametrize("labels", [[-3, 0, 5], [-3, 0, 70000], [70000, 0, 1]])
def test_labels_of_any_whole_number_are_counted(labels: list[int]) -> None:
    fixed = np.repeat(labels, [1, 2, 3])
    assert metrics.common_labels(fixed, fixed[::-1]) == sorted({*labels} - {0})
    assert metrics.dice_per_label(fixed, fixed[::-1], labels) == {labels[0]: 0.0, 0: 0.0, labels[2]: 0.0}
    assert metrics.dice_per_label(fixed, np.roll(fixed, 1), labels) == {labels[0]: 0.0, 0: 0.5, labels[2]: 2 / 3}


def test_tre_of_a_known_shift() -> None:
    affine = torch.eye(4)
    forward = GridTransform(torch.tensor([3.0, 0, 4.0]).view(3, 1, 1, 1).expand(3, 9, 9, 9), affine, affine)
    points = torch.tensor([[1.0, 2, 3], [4, 4, 4]])
    errors = metrics.target_registration_error_mm(forward, points, points)
    assert errors.tolist() == pytest.approx([5, 5])
    exact = metrics.target_registration_error_mm(forward, points, points + torch.tensor([3.0, 0, 4.0]))
    assert exact.tolist() == pytest.approx([0, 0], abs=1e-6)
    with pytest.raises(ValueError, match=r"^target_registration_error_mm: both .* got 2 fixed and 1 moving points$"):
        metrics.target_registration_error_mm(forward, points, points[:1])


def test_inconsistency_counts_points_that_stay_in_the_field_of_view() -> None:
    fixed, moving = torch.diag(torch.tensor([2.0, 2, 3, 1])), torch.diag(torch.tensor([1.0, 4, 2, 1]))
    ddf = torch.tensor([1.0, -2, 0]).view(3, 1, 1, 1).expand(3, *SHAPE)
    forward = GridTransform(ddf, fixed, moving)
    assert metrics.inconsistency_mm(forward, GridTransform(-ddf, moving, fixed)) == pytest.approx(0, abs=1e-6)
    half = metrics.inconsistency_mm(forward, GridTransform(-0.5 * ddf, moving, fixed))
    assert half == pytest.approx(np.hypot(0.5 * 2, 1.0 * 2), abs=1e-5)
    slope = torch.zeros(3, *SHAPE)
    slope[2] = 0.01 * torch.arange(SHAPE[2])  # voxels; 3 mm each at the points 0, 2, ..., 16 of 18
    still = GridTransform(torch.zeros(3, *SHAPE), fixed, fixed)
    assert metrics.inconsistency_mm(still, GridTransform(slope, fixed, fixed)) == pytest.approx(0.01 * 8 * 3, rel=1e-5)
    away = GridTransform(ddf + 100, fixed, moving)
    assert np.isnan(metrics.inconsistency_mm(away, GridTransform(-ddf, moving, fixed)))


def test_folding_of_a_mirror_and_of_nothing() -> None:
    axis = torch.arange(SHAPE[0], dtype=torch.float32).view(-1, 1, 1).expand(SHAPE)
    mirror = torch.stack([-2 * axis, torch.zeros(SHAPE), torch.zeros(SHAPE)])
    assert metrics.folding(GridTransform(mirror, torch.eye(4), torch.eye(4))) == pytest.approx(100)
    assert metrics.folding(GridTransform(0 * mirror, torch.eye(4), torch.eye(4))) == 0
    for kept in (0.5, 1e-9):  # of the size; far less than float32 resolves is still not folded
        pressed = (kept - 1) * torch.stack(torch.meshgrid(*(torch.arange(n).double() for n in SHAPE), indexing="ij"))
        assert metrics.folding(GridTransform(pressed, torch.eye(4), torch.eye(4))) == 0


@pytest.mark.parametrize("direction", [np.eye(3), np.diag([-1.0, 1, -1]), oblique(23)])
def test_jacobian_determinant_of_a_linear_map_is_its_volume_change_in_the_world(direction: np.ndarray) -> None:
    affine = affine_of((1.5, 2.0, 3.0), direction)
    matrix = torch.tensor([[1.1, 0.2, 0.0, 3], [-0.1, 0.9, 0.1, 4], [0.0, 0.3, 1.2, 5], [0, 0, 0, 1]]).double()
    transform = GridTransform(torch.zeros(3, *SHAPE), torch.eye(4), matrix)
    field = displacement_field(transform, SHAPE, affine)
    determinant = metrics.jacobian_determinant(field, affine)
    expected = torch.full_like(determinant, float(torch.linalg.det(matrix)))
    torch.testing.assert_close(determinant, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("direction", [np.eye(3), oblique(23)])
def test_jacobian_determinant_is_that_of_itk_inside(direction: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    spacing = (1.5, 2.0, 3.0)
    affine = affine_of(spacing, direction)
    grid = affine[:, [2, 1, 0, 3]]
    transform = GridTransform(smooth_ddf(SHAPE[::-1], 6.0, 1), grid, grid)
    field = displacement_field(transform, SHAPE, affine)
    # components along the axes of the grid, on a grid without direction: the filter of ITK 5.4 leaves it out
    along = torch.einsum("ab,bijk->aijk", torch.tensor(direction.T @ np.diag(LPS)).float(), field)
    image = itk.image_from_array(
        np.ascontiguousarray(along.permute(3, 2, 1, 0).numpy()), ttype=itk.Image[itk.Vector[itk.F, 3], 3]
    )
    image.SetSpacing(spacing)
    kind = itk.DisplacementFieldJacobianDeterminantFilter[itk.Image[itk.Vector[itk.F, 3], 3], itk.F]
    determinants = kind.New(image)
    determinants.Update()
    by_itk = itk.array_from_image(determinants.GetOutput()).T
    monkeypatch.setattr(transform_io, "SLAB_VOXELS", 1000)  # several slabs
    ours = metrics.jacobian_determinant(field, affine).numpy()
    assert ours.min() < 0.9
    assert ours.max() > 1.3
    inside = (slice(1, -1),) * 3
    np.testing.assert_allclose(ours[inside], by_itk[inside], atol=1e-4)
