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
"""Transforms as files: ITK itself, and the reference's construction, must agree with ours."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import itk
import numpy as np
import pytest
import torch

from scripts.data import itk_transforms
from scripts.data.itk_transforms import to_itk, write_displacement_field, write_itk_transform
from scripts.geometry.grid_transform import GridTransform, displacement_field
from scripts.geometry.world_axes import flip_lps_ras
from scripts.utils.errors import InputError
from tests.helpers.registered import SHAPE, by_itk, registered_case, world_points


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> dict[Any, Any]:
    return registered_case(tmp_path_factory.mktemp("pair"))


@pytest.fixture(scope="module")
def forward(case: dict[Any, Any]) -> GridTransform:
    return GridTransform(case["pred"]["forward_ddf"], case["fixed_image"].affine, case["moving_image"].affine)


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

    monkeypatch.setattr(itk_transforms.importlib, "import_module", absent)
    points = world_points(case["fixed"], 20)
    torch.testing.assert_close(by_itk(to_itk(forward), points), forward(points), rtol=0, atol=1e-9)
    assert itk_transforms._itk_class("HDF5TransformIOTemplate").New() is not None
    assert itk_transforms._itk_class("TransformFileWriterTemplate").New() is not None


def test_classes_of_itk_come_from_their_own_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(itk_transforms, "itk", SimpleNamespace(D=itk.D))  # all else in it takes ten seconds to load
    for arguments in (
        ("DisplacementFieldTransform", 3),
        ("HDF5TransformIOTemplate",),
        ("TransformFileWriterTemplate",),
    ):
        assert itk_transforms._itk_class(*arguments).New() is not None


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

    monkeypatch.setattr(itk_transforms, "reserve", broken)
    with pytest.raises(InputError, match="No space left on device"):
        write_itk_transform(forward, tmp_path / "out" / "a.h5")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "out"]

    monkeypatch.setattr(itk_transforms, "reserve", lambda *_: (tmp_path / "out").rmdir())
    with pytest.raises(InputError, match=r"out/a\.h5' can't be written \(ITK's HDF5 writer failed\)"):
        write_itk_transform(forward, tmp_path / "out" / "a.h5")
    with pytest.raises(ValueError, match=r"must end in \.h5"):
        write_itk_transform(forward, tmp_path / "a.txt")
