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
"""Warping at native resolution: values, types and the border, against ITK in test_postprocessing.py."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from scripts.geometry import grid_transform as transform_io
from scripts.geometry.grid_transform import GridTransform
from scripts.geometry.warping import cast, shift_affine, warp_image

SIZE = (5, 6, 7)


def ramp(dtype: torch.dtype = torch.float32) -> MetaTensor:
    return MetaTensor(torch.arange(210, dtype=dtype).reshape(1, *SIZE), affine=torch.eye(4, dtype=torch.float64))


def shift(voxels: tuple[float, float, float]) -> torch.Tensor:
    return torch.tensor(voxels).view(3, 1, 1, 1).expand(3, *SIZE)


@pytest.mark.parametrize("mode", ["linear", "nearest"])
def test_no_displacement_gives_the_image_back(mode: str) -> None:
    moving = ramp()
    warped = warp_image(moving, shift((0, 0, 0)), SIZE, moving.affine, mode)
    np.testing.assert_allclose(warped, moving[0].numpy(), atol=1e-4)
    assert warped.dtype == np.float32
    assert warped.flags.f_contiguous


def test_a_whole_voxel_moves_the_values_and_leaves_the_default_outside() -> None:
    moving = ramp()
    warped = warp_image(moving, shift((1.0, 0, -2.0)), SIZE, moving.affine, "nearest", default=-5)
    expected = np.full(SIZE, -5.0)
    expected[:-1, :, 2:] = moving[0].numpy()[1:, :, :-2]
    np.testing.assert_array_equal(warped, expected)


@pytest.mark.parametrize(("step", "inside"), [(0.49, True), (0.51, False)])
def test_half_a_voxel_beyond_the_last_center_is_inside(step: float, inside: bool) -> None:
    moving = ramp()
    warped = warp_image(moving, shift((step, 0, 0)), SIZE, moving.affine, default=-1)
    last = moving[0, -1].numpy() if inside else np.full(SIZE[1:], -1.0)
    np.testing.assert_allclose(warped[-1], last, atol=1e-4)


def test_integers_are_rounded_and_clipped() -> None:
    values = np.array([-1.6, 0.4, 0.6, 254.6, 300.0])
    np.testing.assert_array_equal(cast(values, "uint8"), np.array([0, 0, 1, 255, 255], np.uint8))
    np.testing.assert_array_equal(cast(values, "int16"), np.array([-2, 0, 1, 255, 300], np.int16))
    assert cast(np.array([1e30, -1e30]), "int64").tolist() == [2**63 - 1024, -(2**63)]
    np.testing.assert_array_equal(cast(values, "float64"), values)


@pytest.mark.parametrize("value", [2**24 - 1, 2**24 + 1, 2**31 - 1, 2**40 + 1])
def test_labels_of_any_size_stay_exact(value: int) -> None:
    values = torch.zeros(1, *SIZE, dtype=torch.int64)
    values[0, 2:4] = value
    label = MetaTensor(values, affine=torch.eye(4))
    warped = warp_image(label, shift((0.3, 0.2, -0.4)), SIZE, torch.eye(4), "nearest", dtype="int64")
    assert set(np.unique(warped)) == {0, value}


def test_slabs_and_transforms_give_the_same_as_one_field(monkeypatch: pytest.MonkeyPatch) -> None:
    moving = ramp()
    ddf = torch.randn(3, 4, 5, 6)
    affine = torch.diag(torch.tensor([1.4, 1.2, 1.1, 1.0]))
    transform = GridTransform(ddf, affine[:, [2, 1, 0, 3]], affine[:, [2, 1, 0, 3]])
    field = transform_io.displacement_field(transform, SIZE, moving.affine)
    whole = warp_image(moving, field, SIZE, moving.affine)
    monkeypatch.setattr(transform_io, "SLAB_VOXELS", 40)
    np.testing.assert_array_equal(warp_image(moving, field, SIZE, moving.affine), whole)
    np.testing.assert_allclose(warp_image(moving, transform, SIZE, moving.affine), whole, atol=1e-3)


def test_shift_affine_puts_voxel_zero_at_the_first_voxel() -> None:
    affine = torch.tensor([[0.0, -2, 0, 5], [1.5, 0, 0, 6], [0, 0, 3, 7], [0, 0, 0, 1]], dtype=torch.float64)
    shifted = shift_affine(affine, (2, 3, 4))
    torch.testing.assert_close(shifted[:, 3], affine @ torch.tensor([2.0, 3, 4, 1], dtype=torch.float64))
    assert affine[0, 3] == 5


def test_inputs_are_not_changed() -> None:
    moving, field = ramp(), torch.randn(3, *SIZE)
    values, kept = moving.clone(), field.clone()
    for mode in ("linear", "nearest"):
        warp_image(moving, field, SIZE, moving.affine, mode, default=3.0)
    assert torch.equal(moving, values)
    assert torch.equal(field, kept)


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(ValueError, match=r"mode must be one of \('linear', 'nearest'\), got 'cubic'"):
        warp_image(ramp(), shift((0, 0, 0)), SIZE, torch.eye(4), "cubic")
