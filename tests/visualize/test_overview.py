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
"""The overview: it is drawn for any orientation, in true proportions and radiological display."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.image import imread
from monai.data import MetaTensor

from scripts.transforms.postprocessing import AddMetricsd, AddTransformsd, AddWarpedLabeld
from scripts.visualize import overview
from scripts.visualize.overview import draw_overview
from tests.helpers.registered import registered_case


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> dict[Any, Any]:
    return AddMetricsd()(AddWarpedLabeld()(AddTransformsd()(registered_case(tmp_path_factory.mktemp("pair")))))


def half_space(axis: int, signs: tuple[int, int, int], order: tuple[int, int, int]) -> dict[Any, Any]:
    """A case whose fixed image is bright where the world's axis is positive, on a grid of any orientation."""
    affine = torch.zeros(4, 4, dtype=torch.float64)
    for native, (world, sign) in enumerate(zip(order, signs, strict=True)):
        affine[world, native] = sign * 2.0
    affine[3, 3] = 1
    shape = (8, 10, 12)
    affine[:3, 3] = -affine[:3, :3] @ ((torch.tensor(shape, dtype=torch.float64) - 1) / 2)
    voxels = torch.stack(torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in shape), indexing="ij"), -1)
    world = voxels @ affine[:3, :3].T + affine[:3, 3]
    fixed = MetaTensor((world[..., axis] > 0).float()[None], affine=affine)
    network = MetaTensor(torch.zeros(1, 6, 6, 6), affine=affine[:, [2, 1, 0, 3]])
    zero = torch.zeros(3, 6, 6, 6)
    data = {"fixed": fixed, "moving": fixed, "fixed_image": network, "moving_image": network}
    return AddTransformsd()({**data, "pred": {"forward_ddf": zero, "inverse_ddf": zero}})


@pytest.mark.parametrize(
    ("signs", "order"), [((1, 1, 1), (0, 1, 2)), ((-1, -1, 1), (0, 1, 2)), ((1, -1, -1), (2, 0, 1))]
)
def test_the_letters_tell_where_the_patient_is(signs: tuple[int, int, int], order: tuple[int, int, int]) -> None:
    for axis, letter in enumerate("RAS"):
        data = half_space(axis, signs, order)
        for name, (_, _, _, letters) in overview.PLANES.items():
            if letter not in letters:
                continue
            shown = overview._panels(data, name, {"fixed": (0, 1), "moving": (0, 1)}).fixed
            rows, columns = shown.shape
            sides = {
                0: shown[:, : columns // 2],
                1: shown[:, (columns + 1) // 2 :],
                2: shown[(rows + 1) // 2 :],  # the first row is at the bottom
                3: shown[: rows // 2],
            }
            bright = max(sides, key=lambda side: float(sides[side].mean()))
            assert letters[bright] == letter, (name, letters)


def test_picture_is_written_whole_and_its_panels_show_the_pair(tmp_path: Path, case: dict[Any, Any]) -> None:
    draw_overview(case, tmp_path / "overview.png")
    assert [path.name for path in tmp_path.iterdir()] == ["overview.png"]
    picture = imread(tmp_path / "overview.png")
    assert picture.shape[1] > 1500
    assert picture[..., :3].std() > 0.1
    assert not plt.get_fignums()  # nothing of pyplot's global state is used


def test_proportions_are_those_of_the_world(case: dict[Any, Any]) -> None:
    sizes = [n * s for n, s in zip((30, 33, 21), (2.0, 2.2, 3.0), strict=True)]
    windows = {"fixed": (-1000.0, 200.0), "moving": (-1000.0, 200.0)}
    expected = {"axial": (0, 1), "coronal": (0, 2), "sagittal": (1, 2)}
    for name, (across, up) in expected.items():
        shown = overview._panels(case, name, windows)
        assert shown.size_mm == pytest.approx((sizes[across], sizes[up]), rel=1e-4)
        assert shown.before.shape == shown.after.shape == shown.fixed.shape == shown.determinant.shape


def test_a_folded_constant_and_unmeasured_case_is_drawn(tmp_path: Path, case: dict[Any, Any]) -> None:
    bare = {key: value for key, value in case.items() if key not in ("metrics", "pred", "case")}
    bare["moving"] = MetaTensor(torch.zeros_like(case["moving"].as_tensor()), affine=case["moving"].affine)
    wild = 40 * torch.randn_like(case["transforms"].displacement_mm)
    bare["transforms"] = dataclasses.replace(case["transforms"], displacement_mm=wild)
    draw_overview(bare, tmp_path / "overview.png")
    picture = imread(tmp_path / "overview.png")[..., :3]
    green = np.abs(picture - np.array([0x39, 0xFF, 0x14]) / 255).max(axis=-1) < 0.02
    assert green.mean() > 0.01
