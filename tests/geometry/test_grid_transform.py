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
"""World transforms and their files: ITK itself, and the reference's construction, must agree with ours."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import itk
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from torch import Tensor

from scripts.data.itk_transforms import to_itk, write_displacement_field, write_itk_transform
from scripts.geometry import grid_transform as transform_io
from scripts.geometry.grid_transform import GridTransform, displacement_field
from scripts.geometry.world_axes import flip_lps_ras
from scripts.utils.errors import InputError
from tests.helpers.registered import FIXED, MOVING, SHAPE, registered_case, smooth_ddf


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> dict[Any, Any]:
    return registered_case(tmp_path_factory.mktemp("pair"))


@pytest.fixture(scope="module")
def forward(case: dict[Any, Any]) -> GridTransform:
    return GridTransform(case["pred"]["forward_ddf"], case["fixed_image"].affine, case["moving_image"].affine)


def world_points(volume: Any, count: int = 1000, margin: float = 0.1) -> Tensor:
    """Random points of a volume's field of view and of a margin around it, RAS mm."""
    low, high = -margin, 1 + margin
    voxels = (low + (high - low) * torch.rand(count, 3, dtype=torch.float64)) * (torch.tensor(volume.shape[1:]) - 1)
    affine = volume.affine.double()
    return voxels @ affine[:3, :3].T + affine[:3, 3]


def by_itk(transform: Any, points_ras: Tensor) -> Tensor:
    carried = [list(transform.TransformPoint(point)) for point in flip_lps_ras(points_ras).tolist()]
    return flip_lps_ras(torch.tensor(carried, dtype=torch.float64))


def test_itk_evaluates_the_composite_as_we_do_inside_and_outside(case: dict[Any, Any], forward: GridTransform) -> None:
    points = world_points(case["fixed"])
    assert 0 < int(forward.reaches(points).sum()) < len(points)  # both are tried
    torch.testing.assert_close(by_itk(to_itk(forward), points), forward(points), rtol=0, atol=1e-9)


def test_composite_is_that_of_the_reference(case: dict[Any, Any], forward: GridTransform) -> None:
    wrapper = pytest.importorskip("icon_registration.itk_wrapper", reason="the reference package is not installed")
    axes = (torch.arange(n, dtype=torch.float64) / (n - 1) for n in SHAPE)
    identity = torch.stack(torch.meshgrid(*axes, indexing="ij"))[None]
    size = torch.tensor(SHAPE, dtype=torch.float64).view(1, 3, 1, 1, 1)
    fixed, moving = (itk.imread(case[key].meta["filename_or_obj"]) for key in ("fixed", "moving"))
    affines = [case["fixed_image"].affine, case["moving_image"].affine]
    for ddf, images, grids in (
        (case["pred"]["forward_ddf"], (moving, fixed), affines),
        (case["pred"]["inverse_ddf"], (fixed, moving), affines[::-1]),
    ):
        phi = identity + ddf.double()[None] / (size - 1)
        reference = wrapper.create_itk_transform(phi, identity, *images)
        points = world_points(case["fixed"] if images[1] is fixed else case["moving"])
        ours = by_itk(to_itk(GridTransform(ddf, *grids)), points)
        torch.testing.assert_close(ours, by_itk(reference, points), rtol=0, atol=1e-6)


def test_written_transform_is_read_by_itk(tmp_path: Path, case: dict[Any, Any], forward: GridTransform) -> None:
    write_itk_transform(forward, tmp_path / "forward_transform.h5")
    (read,) = itk.transformread(str(tmp_path / "forward_transform.h5"))
    points = world_points(case["fixed"], 100)
    torch.testing.assert_close(by_itk(read, points), forward(points), rtol=0, atol=1e-9)
    assert [path.name for path in tmp_path.iterdir()] == ["forward_transform.h5"]


def test_classes_of_itk_are_found_without_its_private_files(
    case: dict[Any, Any], forward: GridTransform, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = importlib.import_module

    def absent(name: str, package: str | None = None) -> Any:
        if name.startswith("itk.itk"):
            raise ImportError(name)
        return load(name, package)  # what ITK itself loads when it is first used

    monkeypatch.setattr(transform_io.importlib, "import_module", absent)
    points = world_points(case["fixed"], 20)
    torch.testing.assert_close(by_itk(to_itk(forward), points), forward(points), rtol=0, atol=1e-9)
    assert transform_io._itk_class("HDF5TransformIOTemplate").New() is not None
    assert transform_io._itk_class("TransformFileWriterTemplate").New() is not None


def test_classes_of_itk_come_from_their_own_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transform_io, "itk", SimpleNamespace(D=itk.D))  # all else in it takes ten seconds to load
    for arguments in (
        ("DisplacementFieldTransform", 3),
        ("HDF5TransformIOTemplate",),
        ("TransformFileWriterTemplate",),
    ):
        assert transform_io._itk_class(*arguments).New() is not None


@pytest.mark.parametrize(("axis", "letter"), [(0, "right"), (1, "anterior"), (2, "superior")])
def test_a_shift_has_its_sign_in_memory_and_in_both_files(
    tmp_path: Path, case: dict[Any, Any], axis: int, letter: str
) -> None:
    affine = case["fixed_image"].affine.double()
    shift_ras = torch.zeros(3, dtype=torch.float64)
    shift_ras[axis] = 5.0
    ddf = torch.linalg.solve(affine[:3, :3], shift_ras).view(3, 1, 1, 1).expand(3, *SHAPE)
    transform = GridTransform(ddf, affine, affine)
    point = world_points(case["fixed"], 1, margin=-0.3)
    torch.testing.assert_close(transform(point) - point, shift_ras[None], rtol=0, atol=1e-9)

    shift_lps = shift_ras * torch.tensor([-1.0, -1.0, 1.0])
    write_itk_transform(transform, tmp_path / "shift.h5")
    (read,) = itk.transformread(str(tmp_path / "shift.h5"))
    at = flip_lps_ras(point)[0].tolist()
    np.testing.assert_allclose(np.array(list(read.TransformPoint(at))) - at, shift_lps, atol=1e-9)

    fixed = case["fixed"]
    field = displacement_field(transform, fixed.shape[1:], fixed.affine)
    write_displacement_field(field, fixed.affine, tmp_path / "shift.nii.gz")
    values = itk.array_from_image(itk.imread(str(tmp_path / "shift.nii.gz")))
    np.testing.assert_allclose(values.reshape(-1, 3), np.broadcast_to(shift_lps, (values.size // 3, 3)), atol=1e-5)


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


def test_written_field_has_the_grid_of_the_fixed_image(
    tmp_path: Path, case: dict[Any, Any], forward: GridTransform
) -> None:
    fixed = case["fixed"]
    field = displacement_field(forward, fixed.shape[1:], fixed.affine)
    write_displacement_field(field, fixed.affine, tmp_path / "displacement.nii.gz")
    read = itk.imread(str(tmp_path / "displacement.nii.gz"), pixel_type=itk.Vector[itk.F, 3])
    image = itk.imread(fixed.meta["filename_or_obj"])
    np.testing.assert_allclose(list(read.GetOrigin()), list(image.GetOrigin()), atol=1e-4)
    np.testing.assert_allclose(list(read.GetSpacing()), list(image.GetSpacing()), atol=1e-6)
    np.testing.assert_allclose(
        itk.array_from_matrix(read.GetDirection()), itk.array_from_matrix(image.GetDirection()), atol=1e-6
    )
    np.testing.assert_array_equal(
        itk.array_from_image(read), field.permute(3, 2, 1, 0).numpy() * np.array([-1, -1, 1], np.float32)
    )


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


def test_inputs_are_not_changed(tmp_path: Path, case: dict[Any, Any]) -> None:
    ddf, affine = case["pred"]["forward_ddf"].clone(), case["fixed_image"].affine.clone()
    transform = GridTransform(case["pred"]["forward_ddf"], case["fixed_image"].affine, case["moving_image"].affine)
    field = displacement_field(transform, (4, 5, 6), case["fixed"].affine)
    kept = field.clone()
    write_itk_transform(transform, tmp_path / "a.h5")
    write_displacement_field(field, case["fixed"].affine, tmp_path / "a.nii.gz")
    assert torch.equal(case["pred"]["forward_ddf"], ddf)
    assert torch.equal(case["fixed_image"].affine, affine)
    assert torch.equal(field, kept)


def test_a_failing_write_leaves_nothing(
    tmp_path: Path, forward: GridTransform, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    with pytest.raises(InputError, match="can't be written"):
        write_itk_transform(forward, blocked / "a.h5")

    def broken(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(transform_io, "reserve", broken)
    with pytest.raises(InputError, match="No space left on device"):
        write_itk_transform(forward, tmp_path / "out" / "a.h5")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "out"]

    monkeypatch.setattr(transform_io, "reserve", lambda *_: (tmp_path / "out").rmdir())
    with pytest.raises(InputError, match=r"out/a\.h5' can't be written \(ITK's HDF5 writer failed\)"):
        write_itk_transform(forward, tmp_path / "out" / "a.h5")
    with pytest.raises(ValueError, match=r"must end in \.h5"):
        write_itk_transform(forward, tmp_path / "a.txt")


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
