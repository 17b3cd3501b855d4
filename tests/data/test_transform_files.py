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
"""Transforms of other tools read, composed and inverted; oracles are ITK, SimpleITK, ANTs and arithmetic."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import itk
import numpy as np
import pytest
import torch

from scripts.data.itk_transforms import write_itk_transform
from scripts.data.transform_files import compose, flatten, invert, invert_ddf, read_transform
from scripts.geometry.grid_transform import GridTransform
from scripts.geometry.world_axes import flip_lps_ras
from scripts.utils.errors import InputError, InputFileError
from tests.helpers.chain import oblique
from tests.helpers.registered import smooth_ddf


def affine(matrix: np.ndarray, translation: list[float]) -> Any:
    transform = itk.AffineTransform[itk.D, 3].New()
    transform.SetMatrix(itk.matrix_from_array(np.ascontiguousarray(matrix)))
    transform.SetTranslation(translation)
    return transform


def write_field(path: Path, vector: tuple[float, float, float] = (3.0, -2.0, 1.0)) -> str:
    """Write a constant displacement on an oblique, anisotropic grid around the origin."""
    image = itk.image_from_array(np.broadcast_to(np.float32(vector), (20, 22, 24, 3)).copy(), is_vector=True)
    image.SetSpacing([2.0, 2.5, 3.0])
    image.SetDirection(itk.matrix_from_array(np.ascontiguousarray(oblique(12))))
    image.SetOrigin((-oblique(12) @ np.array([23.0, 26.0, 28.5])).tolist())
    itk.imwrite(image, str(path))
    return str(path)


def at(transform: Any, point: tuple[float, float, float]) -> np.ndarray:
    return np.array(list(transform.TransformPoint(point)))


def grid_transform(amplitude: float = 1.0) -> GridTransform:
    to_world = torch.eye(4, dtype=torch.float64)
    to_world[:3, :3] = torch.from_numpy(oblique(10)) * torch.tensor([2.0, 2.2, 3.1])
    moving = to_world.clone()
    moving[:3, 3] = torch.tensor([20.0, -7.0, 4.0])
    return GridTransform(smooth_ddf((18, 20, 22), amplitude, 4), to_world, moving)


@pytest.mark.parametrize("ending", [".h5", ".mat", ".txt", ".tfm"])
def test_itk_files_are_read(tmp_path: Path, ending: str) -> None:
    path = str(tmp_path / f"a{ending}")
    itk.transformwrite([affine(np.diag([1.1, 0.9, 1.0]), [1.0, 2.0, -3.0])], path)
    np.testing.assert_allclose(at(read_transform(path), (10.0, 10.0, 10.0)), [12.0, 11.0, 7.0])


def test_our_own_transform_is_read_as_written(tmp_path: Path) -> None:
    ours = grid_transform()
    write_itk_transform(ours, tmp_path / "t.h5")
    points = ours.grid_points(step=5)[20:40]
    expected = flip_lps_ras(ours(points)).numpy()
    read = read_transform(str(tmp_path / "t.h5"))
    found = [at(read, tuple(point)) for point in flip_lps_ras(points).tolist()]
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_a_displacement_field_is_read_with_its_signs(tmp_path: Path) -> None:
    path = write_field(tmp_path / "warp.nii.gz")
    np.testing.assert_allclose(at(read_transform(path), (1.0, 2.0, 3.0)), [4.0, 0.0, 4.0], atol=1e-5)


def test_a_point_goes_through_the_first_transform_first() -> None:
    turn = affine(np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]]), [0.0, 0.0, 0.0])
    shift = affine(np.eye(3), [10.0, 0.0, 0.0])
    np.testing.assert_allclose(at(compose([shift, turn]), (1.0, 2.0, 3.0)), [-2.0, 11.0, 3.0], atol=1e-12)
    np.testing.assert_allclose(at(compose([turn, shift]), (1.0, 2.0, 3.0)), [8.0, 1.0, 3.0], atol=1e-12)


def test_ants_applies_a_list_in_the_same_order(tmp_path: Path) -> None:
    ants = pytest.importorskip("ants", reason="antspyx is not installed (make dev)")
    files = [str(tmp_path / "0.mat"), write_field(tmp_path / "1.nii.gz")]
    itk.transformwrite([affine(np.diag([1.2, 1.0, 0.8]) @ oblique(20), [5.0, 0.0, 1.0])], files[0])
    transform = compose([read_transform(path) for path in files])
    fixed = ants.from_numpy(np.zeros((4, 4, 4), np.float32), origin=(-4.0, -3.0, -2.0), spacing=(2.0, 1.5, 1.0))
    voxels = np.stack(np.meshgrid(*(np.arange(4.0),) * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    points = voxels * [2.0, 1.5, 1.0] + [-4.0, -3.0, -2.0]
    expected = np.array([at(transform, tuple(point)) for point in points.tolist()])
    for axis in range(3):  # the warped image of a coordinate is the coordinate of the carried point
        ramp = np.moveaxis(np.broadcast_to(np.arange(80, dtype=np.float32) - 40, (80, 80, 80)), 2, axis).copy()
        moving = ants.from_numpy(ramp, origin=(-40.0, -40.0, -40.0))
        options = {"interpolator": "linear", "whichtoinvert": [False, False]}  # by default it guesses
        found = ants.apply_transforms(fixed, moving, files, **options).numpy().reshape(-1)
        np.testing.assert_allclose(found, expected[:, axis], atol=1e-3)


def test_the_inverse_undoes_a_composite_on_both_sides(tmp_path: Path) -> None:
    ours = grid_transform(amplitude=1.2)
    write_itk_transform(ours, tmp_path / "t.h5")
    other = affine(np.diag([1.2, 1.0, 0.8]) @ oblique(20), [5.0, 0.0, 1.0])
    transform = compose([read_transform(str(tmp_path / "t.h5")), other])
    inverse = invert(transform)
    middle = flip_lps_ras(ours.grid_points(1)).reshape(18, 20, 22, 3)[4:-4:3, 4:-4:3, 4:-4:3].reshape(-1, 3)
    for first, second in ((transform, inverse), (inverse, transform)):
        start = middle.tolist() if first is transform else [at(transform, tuple(p)).tolist() for p in middle.tolist()]
        there_and_back = [at(second, tuple(at(first, tuple(point)))) for point in start]
        assert np.abs(np.array(there_and_back) - np.array(start)).max() < 0.05  # mm: a 60th of a voxel


def test_inverting_a_shift_keeps_its_axis_and_sign() -> None:
    for axis in range(3):
        ddf = torch.zeros(1, 3, 6, 7, 8, dtype=torch.float64)
        ddf[:, axis] = 1.5
        torch.testing.assert_close(invert_ddf(ddf), -ddf)


def test_a_folded_field_is_not_inverted() -> None:
    ddf = torch.zeros(1, 3, 16, 16, 16, dtype=torch.float64)
    ddf[0, 2] = 6 * torch.sin(torch.arange(16.0, dtype=torch.float64) * 1.5)
    with pytest.raises(InputError, match="folds"):
        invert_ddf(ddf)


def test_parts_of_composites_in_composites_are_found() -> None:
    inner = compose([affine(np.eye(3), [1.0, 0, 0])])
    outer = itk.CompositeTransform[itk.D, 3].New()
    outer.AddTransform(inner)
    outer.AddTransform(affine(np.eye(3), [0, 1.0, 0]))
    assert len(flatten(outer)) == 2
    np.testing.assert_allclose(at(compose([outer]), (0.0, 0.0, 0.0)), [1.0, 1.0, 0.0])


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.txt", "1 0 0 0\n0 1 0 0\n0 0 1 0\n0 0 0 1\n", "FSL"),
        ("a.h5", "no HDF5", "can't be read"),
        ("a.png", "", "give a transform of ITK"),
        ("a.mat", "nothing", "can't be read"),
    ],
)
def test_what_is_no_transform_is_refused_in_a_line(tmp_path: Path, name: str, content: str, words: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(InputFileError, match=words) as caught:
        read_transform(str(tmp_path / name))
    assert "\n" not in str(caught.value)
    assert name in str(caught.value)


def test_an_image_of_scalars_is_no_displacement_field(tmp_path: Path) -> None:
    itk.imwrite(itk.image_from_array(np.zeros((4, 4, 4), np.float32)), str(tmp_path / "s.nii.gz"))
    with pytest.raises(InputFileError, match="1 values a voxel"):
        read_transform(str(tmp_path / "s.nii.gz"))


def test_a_field_with_nan_is_refused(tmp_path: Path) -> None:
    values = np.zeros((4, 4, 4, 3), np.float32)
    values[0, 0, 0, 0] = np.nan
    itk.imwrite(itk.image_from_array(values, is_vector=True), str(tmp_path / "n.mha"))
    with pytest.raises(InputFileError, match="not finite"):
        read_transform(str(tmp_path / "n.mha"))


@pytest.mark.parametrize(
    "displace",
    [lambda x: 1.5 * (x - 15), lambda x: 1.2 * (x - 15), lambda x: 8 * torch.tanh((x - 15) / 3)],
    ids=["stretch 2.5", "stretch 2.2", "local stretch"],
)
@pytest.mark.parametrize("axis", range(3))
def test_fields_that_expand_are_inverted_right(displace: Any, axis: int) -> None:
    """Fixed-point iteration diverges where a slope is above 1."""
    size = 30
    places = torch.arange(size, dtype=torch.float64)
    ddf = torch.zeros(1, 3, size, size, size, dtype=torch.float64)
    ddf[0, axis] = displace(places).view([-1 if n == axis else 1 for n in range(3)])
    inverse = invert_ddf(ddf)[0, axis].movedim(axis, 0)[:, 5, 6]
    for x in (12, 15, 17, 20):
        y = x + float(inverse[x])
        assert y + float(displace(torch.tensor(y))) == pytest.approx(x, abs=0.15)  # linear between voxels
