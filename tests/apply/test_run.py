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
"""Applying transforms: a known shift, and ANTs, SimpleITK and FSL's definition as oracles."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import itk
import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigWorkflow

from scripts.apply.run import apply_transforms, load_inputs
from scripts.data import field_formats
from scripts.data.itk_resampling import Grid, grid_of, with_spacing
from scripts.data.itk_transforms import write_itk_transform
from scripts.data.nifti_writing import write_nifti
from scripts.geometry.grid_transform import GridTransform
from scripts.utils.errors import InputError, find_input_error
from tests.helpers.chain import write
from tests.helpers.known_pair import FIXED, FIXED_SHAPE, MOVING, MOVING_SHAPE, ROOT, SHIFT_LPS_MM, anatomy, grid_points
from tests.helpers.registered import smooth_ddf


@pytest.fixture
def pair(tmp_path: Path) -> dict[str, str]:
    """An oblique, anisotropic pair of different grids, and a bent transform between them."""
    files = {}
    for side, grid, shape in (("fixed", FIXED, FIXED_SHAPE), ("moving", MOVING, MOVING_SHAPE)):
        image, label = anatomy(grid_points(grid, shape) - (SHIFT_LPS_MM if side == "moving" else 0.0))
        files[side] = write(tmp_path / f"{side}.nii.gz", image.astype(np.float32), **grid)
        files[f"{side}_label"] = write(tmp_path / f"{side}_label.nii.gz", (100 * label).astype(np.int16), **grid)
    fixed = grid_of(itk.imread(files["fixed"])).affine_ras
    shift = torch.from_numpy(SHIFT_LPS_MM * [-1, -1, 1])
    for name, ddf in (("shift", torch.zeros(3, *FIXED_SHAPE)), ("bent", smooth_ddf(FIXED_SHAPE, 1.0, 7))):
        moved = fixed.clone()
        moved[:3, 3] += shift
        write_itk_transform(GridTransform(ddf, fixed, moved), tmp_path / f"{name}.h5")
        files[name] = str(tmp_path / f"{name}.h5")
    return files


def apply(output_dir: Path, **options: Any) -> Path:
    workflow = ConfigWorkflow(
        config_file=str(ROOT / "configs" / "apply.yaml"),
        workflow_type="inference",
        bundle_root=str(ROOT),
        output_dir=str(output_dir),
        **options,
    )
    workflow.initialize()
    workflow.run()
    return output_dir


def values(path: Path) -> np.ndarray:
    return np.asanyarray(nib.load(path).dataobj)


def inside(margin: int = 4) -> tuple[slice, ...]:
    return (slice(margin, -margin),) * 3


def test_a_known_shift_brings_image_label_and_points_home(pair: dict[str, str], tmp_path: Path) -> None:
    points = tmp_path / "p.csv"
    points.write_text("x,y,z\n0,10,160\n")
    out = apply(
        tmp_path / "out",
        transform=pair["shift"],
        fixed=pair["fixed"],
        image=pair["moving"],
        label=pair["moving_label"],
        landmarks=str(points),
        interpolation="bspline",
    )
    expected, label = anatomy(grid_points(FIXED, FIXED_SHAPE))
    np.testing.assert_allclose(values(out / "moving_warped.nii.gz")[inside()], expected[inside()], atol=12)  # of 1000
    warped = values(out / "moving_label_warped.nii.gz")
    assert warped.dtype == np.int16
    assert set(np.unique(warped)) == {0, 100, 200}
    assert np.mean(warped == 100 * label) > 0.99
    carried = np.loadtxt(out / "p_warped.csv", delimiter=",", skiprows=1)
    np.testing.assert_allclose(carried, np.array([0, 10, 160]) + SHIFT_LPS_MM, atol=1e-4)


def test_inverting_carries_points_back(pair: dict[str, str], tmp_path: Path) -> None:
    points = tmp_path / "p.csv"
    center = grid_points(FIXED, FIXED_SHAPE)[10:-10:8, 10:-10:8, 10:-10:8].reshape(-1, 3)
    points.write_text("x,y,z\n" + "".join(f"{x},{y},{z}\n" for x, y, z in center.tolist()))
    there = apply(tmp_path / "there", transform=pair["bent"], landmarks=str(points)) / "p_warped.csv"
    back = apply(tmp_path / "back", transform=pair["bent"], invert=True, landmarks=str(there)) / "p_warped_warped.csv"
    moved = np.loadtxt(there, delimiter=",", skiprows=1)
    assert np.linalg.norm(moved - center, axis=1).min() > 2
    np.testing.assert_allclose(np.loadtxt(back, delimiter=",", skiprows=1), center, atol=0.02)


def test_every_frame_of_a_series_is_warped(pair: dict[str, str], tmp_path: Path) -> None:
    moving = nib.load(pair["moving"])
    frames = np.stack([np.asarray(moving.dataobj), 2 * np.asarray(moving.dataobj)], axis=-1).astype(np.int16)
    series = nib.Nifti1Image(frames, moving.affine)
    series.header.set_zooms((*series.header.get_zooms()[:3], 2.5))
    series.to_filename(tmp_path / "series.nii.gz")
    out = apply(
        tmp_path / "out",
        transform=pair["bent"],
        fixed=pair["fixed"],
        image=["%s" % (tmp_path / "series.nii.gz"), pair["moving"]],
    )
    warped = nib.load(out / "series_warped.nii.gz")
    assert warped.shape == (*FIXED_SHAPE, 2)
    assert warped.header.get_zooms()[3] == 2.5
    assert warped.header.get_data_dtype() == np.int16
    one = values(out / "moving_warped.nii.gz")
    for frame in (0, 1):
        assert np.abs(np.asarray(warped.dataobj)[..., frame] - (frame + 1) * one).max() < 3 + 2 * frame


@pytest.mark.parametrize(
    ("kind", "shift_hu", "option", "expected"),
    [
        ("int16", 0, {}, -1000),
        ("int16", 0, {"outside": "auto", "interpolation": "bspline"}, -1000),
        ("float32", 300, {}, 0),  # nothing near -1000: perhaps no CT
        ("int32", -2024, {}, 0),
        ("uint16", 1024, {}, 0),
        ("float64", 1000, {}, 0),
        ("int16", 0, {"outside": 0}, 0),
        ("int16", 0, {"outside": -2048}, -2048),
        ("uint8", 1000, {"outside": -7}, 0),  # the type's lowest
        ("int16", 0, {"frames": 2}, -1000),
    ],
)
def test_outside_a_ct_lies_air_unless_a_value_is_given(
    kind: str, shift_hu: int, option: dict[str, Any], expected: float, pair: dict[str, str], tmp_path: Path
) -> None:
    frames = option.pop("frames", 0)
    image = np.clip(values(Path(pair["moving"])) * 1.2 - 1000, -1000, 1000) + shift_hu
    image = np.clip(image, 0, 255) if kind == "uint8" else image
    image = np.stack([image] * frames, axis=-1) if frames else image
    path = tmp_path / "image.nii.gz"
    nib.save(nib.Nifti1Image(image.astype(kind), nib.load(pair["moving"]).affine, dtype=kind), path)
    out = apply(
        tmp_path / "out", transform=pair["shift"], fixed=pair["fixed"], image=str(path), label=pair["moving_label"],
        **option,
    )  # fmt: skip
    warped, label = values(out / "image_warped.nii.gz"), values(out / "moving_label_warped.nii.gz")
    assert warped.dtype == kind
    inside_moving = itk_inside(pair)
    assert 0.01 < 1 - inside_moving.mean() < 0.6
    assert set(np.unique(warped[~inside_moving])) == {expected}
    assert set(np.unique(label[~inside_moving])) == {0}


def itk_inside(pair: dict[str, str]) -> np.ndarray:
    """Return which voxels of the fixed grid come from inside the moving image, by ITK's own point arithmetic."""
    moving = itk.imread(pair["moving"])
    points = grid_points(FIXED, FIXED_SHAPE) + SHIFT_LPS_MM
    affine = np.asarray(itk.array_from_matrix(moving.GetDirection())) * np.array(moving.GetSpacing())
    voxels = (points - np.array(moving.GetOrigin())) @ np.linalg.inv(affine).T
    return ((voxels >= -0.5) & (voxels < np.array(MOVING_SHAPE) - 0.5)).all(axis=-1)


@pytest.mark.parametrize("wrong", ["air", "nan", True, [0, 1], "1e999"])
def test_a_value_outside_that_is_no_number_is_refused(wrong: Any, pair: dict[str, str], tmp_path: Path) -> None:
    inputs = load_inputs(pair["shift"], fixed=pair["fixed"], image=pair["moving"], output_dir=tmp_path / "out")
    assert inputs is not None
    with pytest.raises(InputError, match="outside: give auto or a number"):
        apply_transforms(inputs, outside=wrong)
    assert not (tmp_path / "out").exists()


def test_smooth_labels_keep_their_values_and_come_nearer_to_the_shape(tmp_path: Path) -> None:
    """A ball in slices of 6 mm, resampled to 1 mm: smooth is nearer to the ball than nearest."""
    shape, spacing = (40, 40, 9), np.array([1.0, 1.0, 6.0])
    voxels = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), -1) * spacing
    ball = (np.linalg.norm(voxels - [20, 20, 24], axis=-1) < 16).astype(np.uint8) * 7
    write_nifti(tmp_path / "ball.nii.gz", [ball], np.diag([1.0, 1.0, 6.0, 1.0]))
    itk.transformwrite([itk.AffineTransform[itk.D, 3].New()], str(tmp_path / "i.h5"))
    errors = {}
    for how in ("nearest", "smooth"):
        out = apply(
            tmp_path / how,
            transform=str(tmp_path / "i.h5"),
            fixed=str(tmp_path / "ball.nii.gz"),
            label=str(tmp_path / "ball.nii.gz"),
            label_interpolation=how,
            spacing=[1, 1, 1],
        )
        warped = nib.load(out / "ball_warped.nii.gz")
        assert set(np.unique(np.asarray(warped.dataobj))) == {0, 7}
        points = nib.affines.apply_affine(
            warped.affine, np.stack(np.meshgrid(*(np.arange(n) for n in warped.shape), indexing="ij"), -1)
        )
        errors[how] = np.sum((np.linalg.norm(points - [20, 20, 24], axis=-1) < 16) != (np.asarray(warped.dataobj) == 7))
    assert errors["smooth"] < 0.9 * errors["nearest"]


def test_a_finer_grid_covers_the_same_field_of_view() -> None:
    affine = torch.diag(torch.tensor([2.0, 2.0, 6.0, 1.0], dtype=torch.float64))
    finer = with_spacing(Grid((10, 12, 4), affine), [1, 1, 2])
    assert finer.shape == (20, 24, 12)
    edges = [nib.affines.apply_affine(finer.affine_ras.numpy(), e) for e in ([-0.5] * 3, [19.5, 23.5, 11.5])]
    np.testing.assert_allclose(edges, [[-1, -1, -3], [19, 23, 21]])


def test_ants_and_simpleitk_apply_the_converted_fields_as_we_do(pair: dict[str, str], tmp_path: Path) -> None:
    ants = pytest.importorskip("ants", reason="antspyx is not installed (make dev)")
    sitk = pytest.importorskip("SimpleITK", reason="SimpleITK is not installed (make dev)")
    out = apply(
        tmp_path / "out",
        transform=pair["bent"],
        fixed=pair["fixed"],
        image=pair["moving"],
        convert=["itk", "ants", "nifti", "numpy"],
    )
    ours = values(out / "moving_warped.nii.gz")
    by_ants = ants.apply_transforms(
        ants.image_read(pair["fixed"]), ants.image_read(pair["moving"]), [str(out / "displacement_ants.nii.gz")]
    ).numpy()
    fixed, moving = (sitk.ReadImage(pair[side], sitk.sitkFloat32) for side in ("fixed", "moving"))
    field = sitk.DisplacementFieldTransform(
        sitk.Cast(sitk.ReadImage(str(out / "displacement_itk.nii.gz")), sitk.sitkVectorFloat64)
    )
    by_sitk = sitk.GetArrayFromImage(sitk.Resample(moving, fixed, field, sitk.sitkLinear)).transpose(2, 1, 0)
    for other in (by_ants, by_sitk):
        assert np.abs(other - ours)[inside()].max() < 1e-3 * ours.max()
    # the other two hold the same displacements, in RAS
    lps = values(out / "displacement_itk.nii.gz")[:, :, :, 0]
    np.testing.assert_array_equal(values(out / "displacement_ras.nii.gz")[:, :, :, 0], lps * [-1, -1, 1])
    with np.load(out / "displacement.npz", allow_pickle=False) as loaded:
        np.testing.assert_array_equal(loaded["displacement_ras_mm"], lps * [-1, -1, 1])
        np.testing.assert_allclose(loaded["affine_ras"], nib.load(pair["fixed"]).affine, atol=1e-4)


@pytest.mark.parametrize(("fixed_sign", "moving_sign"), itertools.product((-1, 1), (-1, 1)))
def test_fsl_s_convention_on_a_case_made_by_hand(fixed_sign: int, moving_sign: int) -> None:
    """Fixed 10 voxels of 2 mm, moving 20 voxels of 1 mm along x; a shift by +3 mm along world x, +1 along y.

    FSL's x counts mm along the first voxel axis, or against it where the affine's determinant is positive. Fixed voxel
    4 is at world x = 8 (stored forwards) or 10 (stored backwards, from 18); the shift leads to 11 or 13, which is
    moving voxel 11 or 13 (forwards), or 8 or 6 (backwards, from 19).
    """
    shift = torch.zeros(3, 10, 5, 5)
    shift[0], shift[1] = 3.0, 1.0
    fixed = torch.diag(torch.tensor([2.0 * fixed_sign, 1.0, 1.0, 1.0], dtype=torch.float64))
    moving = torch.diag(torch.tensor([1.0 * moving_sign, 1.0, 1.0, 1.0], dtype=torch.float64))
    fixed[0, 3] = 0.0 if fixed_sign > 0 else 18.0
    moving[0, 3] = 0.0 if moving_sign > 0 else 19.0
    found = field_formats.fsl_displacement(shift, fixed, (20, 5, 5), moving)[4, 2, 2]
    world = 8.0 if fixed_sign > 0 else 10.0
    fixed_fsl = {1: (9 - 4) * 2.0, -1: 4 * 2.0}[fixed_sign]
    moving_voxel = world + 3 if moving_sign > 0 else 19 - (world + 3)
    moving_fsl = 19 - moving_voxel if moving_sign > 0 else moving_voxel
    np.testing.assert_allclose(found, [moving_fsl - fixed_fsl, 1.0, 0.0], atol=1e-6)


def test_the_fsl_file_says_that_it_is_relative(pair: dict[str, str], tmp_path: Path) -> None:
    out = apply(tmp_path / "out", transform=pair["bent"], fixed=pair["fixed"], moving=pair["moving"], convert="fsl")
    image = nib.load(out / "displacement_fsl.nii.gz")
    assert image.shape == (*FIXED_SHAPE, 3)
    assert int(image.header["intent_code"]) == 2006


def test_a_composed_transform_is_written_and_is_the_same_when_read(pair: dict[str, str], tmp_path: Path) -> None:
    both = [pair["bent"], pair["shift"]]
    out = apply(
        tmp_path / "a",
        transform=both,
        invert=[False, True],
        fixed=pair["fixed"],
        image=pair["moving"],
        save_transform=True,
    )
    again = apply(tmp_path / "b", transform=str(out / "transform.h5"), fixed=pair["fixed"], image=pair["moving"])
    first, second = values(out / "moving_warped.nii.gz"), values(again / "moving_warped.nii.gz")
    np.testing.assert_allclose(first, second, atol=1e-3)
    alone = apply(tmp_path / "c", transform=pair["bent"], fixed=pair["fixed"], image=pair["moving"])
    assert np.abs(values(alone / "moving_warped.nii.gz") - first).max() > 100  # the shift was undone


def test_a_displacement_field_serves_as_the_grid(pair: dict[str, str], tmp_path: Path) -> None:
    field = (
        apply(tmp_path / "a", transform=pair["bent"], fixed=pair["fixed"], convert="itk") / "displacement_itk.nii.gz"
    )
    by_field = values(apply(tmp_path / "b", transform=str(field), image=pair["moving"]) / "moving_warped.nii.gz")
    direct = apply(tmp_path / "c", transform=pair["bent"], fixed=pair["fixed"], image=pair["moving"])
    assert np.abs(by_field - values(direct / "moving_warped.nii.gz"))[inside()].max() < 1e-3 * by_field.max()


def test_wrong_options_are_refused_before_any_work(pair: dict[str, str], tmp_path: Path) -> None:
    good: dict[str, Any] = {"transform": pair["bent"], "fixed": pair["fixed"], "image": pair["moving"]}
    cases: list[tuple[dict[str, Any], str]] = [
        ({"transform": None}, "nothing to apply"),
        ({"transform": str(tmp_path / "none.h5")}, "does not exist"),
        ({"image": None}, "nothing to do"),
        ({"fixed": None}, "fixed is missing"),
        ({"invert_transform": [True, False]}, "for each of the 1 transforms"),
        ({"convert": "spm"}, "expected one of itk, ants"),
        ({"convert": "fsl"}, "--moving"),
        ({"landmarks": pair["moving"]}, "ends in .csv"),
        ({"label": pair["moving"]}, "both be written as 'moving_warped.nii.gz'"),
    ]
    for change, words in cases:
        with pytest.raises(InputError, match=words):
            load_inputs(**{**good, "output_dir": str(tmp_path / "out"), **change})
    assert not (tmp_path / "out").exists()


def test_no_result_may_replace_an_input(pair: dict[str, str], tmp_path: Path) -> None:
    label = tmp_path / "moving_warped.nii.gz"
    label.write_bytes(Path(pair["moving_label"]).read_bytes())
    good: dict[str, Any] = {"transform": pair["bent"], "fixed": pair["fixed"], "output_dir": str(tmp_path)}
    with pytest.raises(InputError, match=r"moving_warped\.nii\.gz' would be overwritten"):
        load_inputs(image=pair["moving"], label=str(label), **good)
    (tmp_path / "transform.h5").write_bytes(Path(pair["bent"]).read_bytes())
    with pytest.raises(InputError, match=r"transform\.h5' would be overwritten"):
        load_inputs(**{**good, "transform": str(tmp_path / "transform.h5")}, save_transform=True)


def test_itk_reads_the_field_in_nifti_s_own_axes_as_what_it_is(pair: dict[str, str], tmp_path: Path) -> None:
    out = apply(tmp_path / "out", transform=pair["bent"], fixed=pair["fixed"], convert=["itk", "nifti"])
    assert int(nib.load(out / "displacement_ras.nii.gz").header["intent_code"]) == 1006
    by_itk = [itk.array_from_image(itk.imread(str(out / f"displacement_{name}.nii.gz"))) for name in ("itk", "ras")]
    np.testing.assert_allclose(by_itk[1], by_itk[0], atol=1e-4)


def test_a_wrong_spacing_or_space_is_refused_before_anything_is_written(pair: dict[str, str], tmp_path: Path) -> None:
    for change, words in (
        ({"spacing": [1, 0, 1]}, "spacing: give three"),
        ({"landmark_space": "MNI"}, "unknown"),
        ({"landmark_space": "voxel"}, "can't be carried"),
    ):
        with pytest.raises(RuntimeError) as caught:
            apply(
                tmp_path / "out",
                transform=pair["bent"],
                fixed=pair["fixed"],
                image=pair["moving"],
                save_transform=True,
                **change,
            )
        assert words in str(find_input_error(caught.value))
        assert not (tmp_path / "out").exists()
