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
"""The affine stage: turns, shifts, other fields of view; the answer is known, and checked in the world."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from scripts.data.itk_images import Volume, to_itk_image
from scripts.transforms.prealign import Prealignd, Prealignment, prealign, right_angle_turns, turn_text
from scripts.utils.errors import InputError
from tests.helpers.known_pair import CENTER, FIXED, FIXED_SHAPE, MOVING, MOVING_SHAPE, anatomy, grid_points

SIGNS = np.array([-1.0, -1.0, 1.0])


def image_of(grid: dict[str, Any], shape: tuple[int, int, int], to_anatomy: np.ndarray) -> MetaTensor:
    """Return the anatomy (1, I, J, K) in [0, 1], seen through a (4, 4) map of the world, LPS mm, on an oblique grid."""
    points = grid_points(grid, shape) @ to_anatomy[:3, :3].T + to_anatomy[:3, 3]
    affine = np.eye(4)
    affine[:3, :3] = SIGNS[:, None] * np.asarray(grid["direction"]) * np.array(grid["spacing"])
    affine[:3, 3] = SIGNS * np.array(grid["origin"])
    values = torch.from_numpy(np.ascontiguousarray(anatomy(points)[0] / 1000)).float().clamp(0, 1)
    return MetaTensor(values[None], affine=affine)


def about_center(matrix: np.ndarray, shift: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> np.ndarray:
    whole = np.eye(4)
    whole[:3, :3] = matrix
    whole[:3, 3] = CENTER - matrix @ CENTER + np.array(shift)
    return whole


def rotation(axis: int, degrees: float) -> np.ndarray:
    first, second = [other for other in range(3) if other != axis]
    matrix, angle = np.eye(3), np.radians(degrees)
    matrix[first, first] = matrix[second, second] = np.cos(angle)
    matrix[first, second], matrix[second, first] = -np.sin(angle), np.sin(angle)
    return matrix


def moved_pair(truth: np.ndarray) -> tuple[MetaTensor, MetaTensor]:
    """Return fixed and moving whose true transform, fixed -> moving, is ``truth`` (4, 4), LPS mm."""
    corner = truth @ [*grid_points(FIXED, FIXED_SHAPE).reshape(-1, 3).mean(0), 1.0]
    half = (np.asarray(MOVING["direction"]) * np.array(MOVING["spacing"])) @ ((np.array(MOVING_SHAPE) - 1) / 2)
    moving_grid = {**MOVING, "origin": tuple(corner[:3] - half)}
    return image_of(FIXED, FIXED_SHAPE, np.eye(4)), image_of(moving_grid, MOVING_SHAPE, np.linalg.inv(truth))


def error_mm_and_degrees(found: torch.Tensor, truth: np.ndarray) -> tuple[float, float]:
    matrix = np.diag([*SIGNS, 1]) @ found.numpy() @ np.diag([*SIGNS, 1])
    points = np.concatenate([grid_points(FIXED, FIXED_SHAPE)[::8, ::8, ::8].reshape(-1, 3), np.ones((125, 1))], axis=1)
    points = points[np.linalg.norm(points[:, :3] - CENTER, axis=1) < 45]
    gap = np.linalg.norm((points @ (matrix - truth).T)[:, :3], axis=1)
    u, _, v = np.linalg.svd(matrix[:3, :3] @ np.linalg.inv(truth[:3, :3]))
    return float(gap.max()), float(np.degrees(np.arccos(np.clip((np.trace(u @ v) - 1) / 2, -1, 1))))


def assert_found(found: Prealignment, truth: np.ndarray) -> None:
    """Within 5 mm and 5 degrees."""
    assert found.matrix_ras is not None
    gap, degrees = error_mm_and_degrees(found.matrix_ras, truth)
    assert gap < 5
    assert degrees < 5


@pytest.mark.parametrize("mode", ["rigid", "affine"])
@pytest.mark.parametrize(
    "truth",
    [
        *(about_center(rotation(axis, 90)) for axis in range(3)),
        about_center(rotation(2, 180)),
        about_center(rotation(0, -90), (60.0, -70.0, 50.0)),
        about_center(np.eye(3), (55.0, 0.0, 0.0)),  # half the field of view
        about_center(np.eye(3), (0.0, -60.0, 65.0)),
        about_center(rotation(1, 30) @ rotation(2, 20), (10.0, 5.0, -8.0)),
    ],
    ids=["x90", "y90", "z90", "z180", "x-90 and far", "shift x", "shift y z", "oblique"],
)
def test_misalignments_are_found_within_5_mm_and_5_degrees(truth: np.ndarray, mode: str) -> None:
    fixed, moving = moved_pair(truth)
    assert_found(prealign(moving, fixed, mode), truth)


def test_a_part_of_the_field_of_view_is_found_in_the_whole() -> None:
    """Fixed is the upper half of what moving shows, which is turned and shifted."""
    truth = about_center(rotation(2, 90), (20.0, -15.0, 10.0))
    fixed, moving = moved_pair(truth)
    half = MetaTensor(fixed.as_tensor()[..., 14:].contiguous(), affine=fixed.affine.clone())
    half.affine[:3, 3] += half.affine[:3, 2] * 14
    assert_found(prealign(moving, half, "rigid"), truth)


def test_an_image_stored_left_to_right_is_the_same_image() -> None:
    """Voxels stored backwards along the first axis, and the affine says so: the world, and the answer, are the same."""
    truth = about_center(rotation(1, 90), (15.0, 0.0, 5.0))
    fixed, moving = moved_pair(truth)
    flipped = MetaTensor(moving.as_tensor().flip(1).contiguous(), affine=moving.affine.clone())
    flipped.affine[:3, 3] += flipped.affine[:3, 0] * (moving.shape[1] - 1)
    flipped.affine[:3, 0] *= -1
    assert torch.linalg.det(flipped.affine[:3, :3]) * torch.linalg.det(moving.affine[:3, :3]) < 0
    assert_found(prealign(flipped, fixed, "rigid"), truth)


def test_auto_acts_on_turned_images_only_and_says_so() -> None:
    for turn, acts in ((np.eye(3), False), (rotation(0, 8), False), (rotation(0, 90), True)):
        fixed, moving = moved_pair(about_center(turn, (4.0, -3.0, 2.0)))
        found = prealign(moving, fixed, "auto")
        assert (found.matrix_ras is not None) == acts
        assert found.description.startswith("affine" if acts else "off: ")
        assert "turned" in found.description
        assert "overlap" in found.description


def test_the_resampled_image_lies_on_the_fixed_grid_and_its_affine_tells_where_it_came_from() -> None:
    truth = about_center(rotation(0, 90))
    fixed, moving = moved_pair(truth)
    label = MetaTensor((moving.as_tensor() > 0.6).float(), affine=moving.affine)
    data = {"fixed_image": fixed, "moving_image": moving, "moving_network_label": label}
    result = Prealignd("rigid")(data)
    warped = result["moving_image"]
    assert warped.shape == fixed.shape
    assert float((warped.as_tensor() - fixed.as_tensor()).abs()[:, 8:-8, 8:-8, 8:-8].mean()) < 0.02
    lps = np.diag([*SIGNS, 1])
    expected = lps @ truth @ lps @ fixed.affine.numpy()
    np.testing.assert_allclose(warped.affine.numpy()[:3, :3], expected[:3, :3], atol=0.1)
    assert set(torch.unique(result["moving_network_label"].as_tensor()).tolist()) == {0.0, 1.0}
    assert data["moving_image"] is moving
    assert result["prealign"].startswith("rigid")


def test_the_same_images_give_the_same_transform() -> None:
    fixed, moving = moved_pair(about_center(rotation(1, 30) @ rotation(2, 20), (10.0, 5.0, -8.0)))
    first, second = (prealign(moving, fixed, "affine") for _ in range(2))
    assert first.matrix_ras is not None
    assert second.matrix_ras is not None
    assert torch.equal(first.matrix_ras, second.matrix_ras)


def test_off_changes_nothing_and_other_words_are_refused() -> None:
    data = {"fixed_image": 1, "moving_image": 2}
    assert Prealignd("off")(data) == data
    assert Prealignd(False)(data) == data
    with pytest.raises(InputError, match="expected one of off, auto, rigid"):
        Prealignd("rigidly")


def test_the_turns_are_the_24_rotations_of_a_cube() -> None:
    turns = right_angle_turns()
    assert len({turn.tobytes() for turn in turns}) == 24
    assert all(np.isclose(np.linalg.det(turn), 1) for turn in turns)
    assert turn_text(turns[0]) == "L>L P>P S>S"
    assert turn_text(rotation(2, 90).round()) == "L>P P>R S>S"


def test_itk_sees_the_grid_that_we_see(tmp_path: Path) -> None:
    fixed, _ = moved_pair(np.eye(4))
    image = to_itk_image(Volume(fixed.as_tensor()[0], fixed.affine.double()))
    point = np.array(list(image.TransformIndexToPhysicalPoint([3, 4, 5])))
    np.testing.assert_allclose(point, grid_points(FIXED, FIXED_SHAPE)[3, 4, 5], atol=1e-3)
