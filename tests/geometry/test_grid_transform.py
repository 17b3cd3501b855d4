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
"""Transforms of the world in memory: signs, edges, slabs, and the dense field against the transform itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from torch import Tensor

from scripts.data.itk_transforms import to_itk
from scripts.geometry import grid_transform as transform_io
from scripts.geometry.grid_transform import GridTransform, displacement_field
from tests.helpers.registered import FIXED, MOVING, SHAPE, by_itk, registered_case, smooth_ddf, world_points


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> dict[Any, Any]:
    return registered_case(tmp_path_factory.mktemp("pair"))


@pytest.fixture(scope="module")
def forward(case: dict[Any, Any]) -> GridTransform:
    return GridTransform(case["pred"]["forward_ddf"], case["fixed_image"].affine, case["moving_image"].affine)


def test_inverse_shift_undoes_the_forward_one(case: dict[Any, Any]) -> None:
    fixed, moving = case["fixed_image"].affine.double(), case["moving_image"].affine.double()
    ddf = torch.tensor([1.5, -0.7, 0.4]).view(3, 1, 1, 1).expand(3, *SHAPE)
    points = world_points(case["fixed"], 50, margin=-0.3)
    back = GridTransform(-ddf, moving, fixed)(GridTransform(ddf, fixed, moving)(points))
    torch.testing.assert_close(back, points, rtol=0, atol=1e-5)


def test_dense_field_is_the_transform_at_the_voxels(case: dict[Any, Any], forward: GridTransform) -> None:
    fixed = case["fixed"]
    field = displacement_field(forward, fixed.shape[1:], fixed.affine)
    voxels = torch.cartesian_prod(*(torch.arange(n, dtype=torch.float64) for n in fixed.shape[1:]))
    affine = fixed.affine.double()
    points = voxels @ affine[:3, :3].T + affine[:3, 3]
    expected = (forward(points) - points).T.reshape(3, *fixed.shape[1:])
    torch.testing.assert_close(field, expected.float(), rtol=0, atol=2e-4)
    assert field.permute(0, 3, 2, 1).is_contiguous()  # as in files: written without a copy


def test_dense_field_is_the_same_in_small_slabs(
    case: dict[Any, Any], forward: GridTransform, monkeypatch: pytest.MonkeyPatch
) -> None:
    fixed = case["fixed"]
    whole = displacement_field(forward, fixed.shape[1:], fixed.affine)
    monkeypatch.setattr(transform_io, "SLAB_VOXELS", 2000)
    torch.testing.assert_close(displacement_field(forward, fixed.shape[1:], fixed.affine), whole, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((512, 512, 10), [(0, 4), (4, 8), (8, 10)]),
        ((300, 700, 10), [(0, 4), (4, 8), (8, 10)]),
        ((2048, 2048, 3), [(0, 1), (1, 2), (2, 3)]),
        ((8, 9, 10), [(0, 10)]),
    ],
)
def test_slabs_have_about_a_million_voxels(shape: tuple[int, int, int], expected: list[tuple[int, int]]) -> None:
    assert list(transform_io.slabs(shape)) == expected


def test_without_displacement_carries_field_of_view_onto_field_of_view(
    case: dict[Any, Any], forward: GridTransform
) -> None:
    corners = torch.tensor([[-0.5, -0.5, -0.5], [n - 0.5 for n in SHAPE]], dtype=torch.float64)
    fixed, moving = forward.fixed_affine, forward.moving_affine
    carried = forward.without_displacement()(corners @ fixed[:3, :3].T + fixed[:3, 3])
    torch.testing.assert_close(carried, corners @ moving[:3, :3].T + moving[:3, 3])
    size_mm = np.abs(np.linalg.norm(np.diff(carried.numpy(), axis=0)))
    native = np.linalg.norm(np.array(MOVING["spacing"]) * np.array(case["moving"].shape[1:]))
    assert size_mm == pytest.approx(native, rel=1e-6)
    assert FIXED["spacing"] != MOVING["spacing"]


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_the_field_ends_half_a_voxel_beyond_its_grid_as_in_itk(axis: int) -> None:
    transform = GridTransform(torch.full((3, 4, 5, 6), 7.0), torch.eye(4), torch.eye(4))
    size = transform.shape[axis]
    points = torch.ones(6, 3, dtype=torch.float64)
    points[:, axis] = torch.tensor([-0.5 - 1e-6, -0.5, 0.25, size - 0.75, size - 0.5 - 1e-6, size - 0.5])
    reached = [False, True, True, True, True, False]
    assert transform.reaches(points).tolist() == reached
    for moved in (transform(points) - points, by_itk(to_itk(transform), points) - points):
        torch.testing.assert_close(moved, 7.0 * torch.tensor(reached).double()[:, None].expand(6, 3))


def test_points_of_the_grid_are_voxel_centers_in_the_fixed_world(forward: GridTransform) -> None:
    voxels = np.stack(np.meshgrid(*(np.arange(0, n, 3) for n in SHAPE), indexing="ij"), axis=-1).reshape(-1, 3)
    affine = forward.fixed_affine.numpy()
    np.testing.assert_allclose(forward.grid_points(3), voxels @ affine[:3, :3].T + affine[:3, 3], atol=1e-9)


def test_the_deformation_alone_keeps_to_the_fixed_world(forward: GridTransform) -> None:
    """The transform is field of view onto field of view after the deformation alone."""
    points = forward.grid_points(4)
    deformed = forward.on_fixed_grid()(points)
    assert (deformed - points).abs().max() > 1
    start = forward.moving_affine @ torch.linalg.inv(forward.fixed_affine)
    torch.testing.assert_close(deformed @ start[:3, :3].T + start[:3, 3], forward(points), rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("ddf", "affine", "message"),
    [
        (torch.zeros(1, 3, 4, 4, 4), torch.eye(4), r"ddf must be \(3, D, H, W\), got \(1, 3, 4, 4, 4\)"),
        (torch.zeros(2, 4, 4, 4), torch.eye(4), r"got \(2, 4, 4, 4\)"),
        (torch.zeros(3, 4, 4), torch.eye(4), r"got \(3, 4, 4\)"),
        (torch.zeros(3, 4, 4, 4), torch.eye(3), r"fixed_affine must be \(4, 4\), got \(3, 3\)"),
    ],
)
def test_ill_shape(ddf: Tensor, affine: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GridTransform(ddf, affine, torch.eye(4))


def test_fields_and_affines_are_kept_plain() -> None:
    ddf = MetaTensor(torch.ones(3, 4, 5, 6, dtype=torch.float16)).requires_grad_()
    transform = GridTransform(ddf, MetaTensor(torch.eye(4)), torch.eye(4, dtype=torch.int64))
    for found, dtype in (
        (transform.ddf, torch.float32),
        (transform.fixed_affine, torch.float64),
        (transform.moving_affine, torch.float64),
    ):
        assert type(found) is Tensor
        assert (found.dtype, found.requires_grad) == (dtype, False)


def test_float64_fields_stay_exact() -> None:
    ddf = smooth_ddf(SHAPE, 1.0, 0).double() + 1e-10
    assert torch.equal(GridTransform(ddf, torch.eye(4), torch.eye(4)).ddf, ddf)
