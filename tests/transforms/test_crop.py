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
"""Cropping to the foreground: the world stays, and transforms go on smoothly outside the box."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from scripts.geometry.extension import extend
from scripts.geometry.grid_transform import GridTransform
from scripts.transforms.crop import CropToForegroundd, foreground_box
from scripts.utils.errors import InputError
from tests.helpers.registered import smooth_ddf

AFFINE = torch.tensor([[0.0, -2, 0, 5], [1.5, 0, 0, -7], [0, 0, 3, 9], [0, 0, 0, 1]], dtype=torch.float64)


def image(shape: tuple[int, int, int], first: tuple[int, ...], last: tuple[int, ...]) -> MetaTensor:
    values = torch.zeros(1, *shape)
    values[(0, *(slice(a, b) for a, b in zip(first, last, strict=True)))] = 0.8
    values[0, first[0], first[1], first[2]] = 1.0
    return MetaTensor(values, affine=AFFINE)


def test_the_box_has_the_foreground_its_margin_and_its_place_in_the_world() -> None:
    whole = image((40, 50, 30), (10, 20, 5), (30, 30, 15))
    label = MetaTensor((whole.as_tensor() > 0.9).float() * 3, affine=AFFINE)
    data = {
        "fixed_image": whole,
        "moving_image": image((20, 20, 20), (0, 0, 0), (20, 20, 20)),
        "fixed_network_label": label,
    }
    result = CropToForegroundd("auto")(data)
    cropped = result["fixed_image"]
    assert tuple(cropped.shape[1:]) == (24, 14, 14)  # 20 + 2 * 2, 10 + 2 * 2
    assert tuple(result["moving_image"].shape[1:]) == (20, 20, 20)
    for volume, value in ((cropped, 1.0), (result["fixed_network_label"], 3.0)):
        voxel = torch.nonzero(volume.as_tensor()[0] == value)[0].double()
        world = volume.affine.double()[:3, :3] @ voxel + volume.affine.double()[:3, 3]
        expected = AFFINE[:3, :3] @ torch.tensor([10.0, 20, 5], dtype=torch.float64) + AFFINE[:3, 3]
        torch.testing.assert_close(world, expected)
    assert tuple(data["fixed_image"].shape[1:]) == (40, 50, 30)


def test_a_box_that_is_nearly_the_whole_or_nothing_is_not_cropped_to() -> None:
    assert foreground_box(image((20, 20, 20), (1, 1, 1), (19, 19, 19))) is None
    assert foreground_box(MetaTensor(torch.zeros(1, 9, 9, 9), affine=AFFINE)) is None


def test_off_is_off_and_other_words_are_refused() -> None:
    data = {"fixed_image": image((40, 50, 30), (10, 20, 5), (30, 30, 15))}
    assert CropToForegroundd("off")(data) == data
    with pytest.raises(InputError, match="off or auto"):
        CropToForegroundd("yes")


def test_a_transform_of_a_box_reaches_over_the_image_without_a_jump() -> None:
    shift = torch.eye(4, dtype=torch.float64)
    shift[:3, 3] = torch.tensor([4.0, 5.0, -6.0])
    box_affine = AFFINE.clone()
    box_affine[:3, 3] += AFFINE[:3, :3] @ torch.tensor([8.0, 12.0, 4.0], dtype=torch.float64)
    inner = GridTransform(smooth_ddf((12, 14, 10), 1.5, 3), box_affine, shift @ box_affine)
    whole = MetaTensor(torch.zeros(1, 30, 40, 25), affine=AFFINE)
    outer = extend(inner, whole)
    points = inner.grid_points(1)
    torch.testing.assert_close(outer(points), inner(points))
    # along a line through the border of the box nothing jumps, and all corners of the image are reached
    voxels = torch.stack(
        [torch.linspace(0, 29, 600), torch.full((600,), 18.0), torch.full((600,), 9.0)], dim=1
    ).double()
    line = voxels @ AFFINE[:3, :3].T + AFFINE[:3, 3]
    steps = torch.linalg.vector_norm(torch.diff(outer(line), dim=0), dim=1)
    assert float(steps.max()) < 3 * float(steps.median())
    corners = torch.tensor([[0.0, 0, 0], [29, 39, 24]], dtype=torch.float64) @ AFFINE[:3, :3].T + AFFINE[:3, 3]
    assert bool(outer.reaches(corners).all())
    assert not bool(inner.reaches(corners).any())


def test_a_transform_that_covers_its_image_is_left_alone() -> None:
    same = GridTransform(torch.zeros(3, 30, 40, 25), AFFINE, AFFINE)
    assert extend(same, MetaTensor(torch.zeros(1, 30, 40, 25), affine=AFFINE)) is same
    finer = AFFINE.clone()
    finer[:3, :3] /= 2
    finer[:3, 3] -= AFFINE[:3, :3] @ torch.full((3,), 0.25, dtype=torch.float64)
    assert extend(same, MetaTensor(torch.zeros(1, 60, 80, 50), affine=finer)) is same
    assert np.isfinite(same.ddf.numpy()).all()
