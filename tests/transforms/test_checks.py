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
"""Bad volumes are refused with one clear line; masks and labels find their image's grid or are refused."""

from __future__ import annotations

import gzip
import logging
from pathlib import Path
from typing import Any

import itk
import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from scripts.data.header_checks import check_header
from scripts.transforms.checks import CheckLabelsd
from scripts.utils.errors import InputError, find_input_error
from tests.helpers.chain import chain, noise, oblique, pair, write

SHAPE = (19, 23, 14)


def refused(case: dict[str, Any], **options: Any) -> str:
    """Run the chain and return the one line that a user sees."""
    with pytest.raises(RuntimeError) as caught:
        chain(**options)(case)
    error = find_input_error(caught.value)
    assert error is not None, caught.value
    assert "\n" not in str(error)
    return str(error)


def header_variant(folder: Path, old: str, new: str) -> str:
    """Write a MetaImage whose header is then edited."""
    path = folder / "edited.mha"
    write(path, noise(), spacing=(1, 1, 1), direction=np.eye(3))
    content = path.read_bytes()
    assert old.encode() in content
    path.write_bytes(content.replace(old.encode(), new.encode()))
    return str(path)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("ElementSpacing = 1 1 1", "ElementSpacing = 0 1 1", r"fixed: '.*' has the spacing 0 x 1 x 1 mm"),
        ("ElementSpacing = 1 1 1", "ElementSpacing = 1 1 -1", r"fixed: '.*' has the spacing 1 x 1 x -1 mm"),
        ("1 0 0 0 1 0 0 0 1", "1 0 0 1 0 0 0 0 1", r"fixed: .*non-invertible affine"),
    ],
)
def test_unusable_geometry_is_refused_by_the_header(old: str, new: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        check_header("fixed", header_variant(tmp_path, old, new))


@pytest.mark.parametrize("column", [(0.0, 0.0, 0.0), (1.0, 0.0, 0.0)])
def test_a_nifti_affine_without_inverse_is_refused(column: tuple[float, ...], tmp_path: Path) -> None:
    nib = pytest.importorskip("nibabel")
    affine = np.eye(4)
    affine[:3, 2] = column
    image = nib.Nifti1Image(noise(), None)
    image.set_sform(affine, code=1)
    image.set_qform(None, code=0)
    nib.save(image, tmp_path / "flat.nii.gz")
    with pytest.raises(InputError, match=r"moving: .*flat.nii.gz' has a non-invertible affine .sform"):
        check_header("moving", str(tmp_path / "flat.nii.gz"))


@pytest.mark.parametrize("kind", ["rgb", "vector"])
def test_color_and_vector_images_are_refused(kind: str, tmp_path: Path) -> None:
    values = np.zeros((4, 5, 6, 3), np.uint8 if kind == "rgb" else np.float32)
    itk.imwrite(itk.image_from_array(values, is_vector=True), str(tmp_path / "color.nrrd"))
    with pytest.raises(InputError, match=r"fixed: .* has 3 values per voxel \(a color or vector image\)"):
        check_header("fixed", str(tmp_path / "color.nrrd"))


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".nrrd", ".mha"])
def test_a_truncated_file_is_refused(suffix: str, tmp_path: Path) -> None:
    path = Path(write(tmp_path / f"short{suffix}", noise()))
    path.write_bytes(path.read_bytes()[:-500])
    message = refused(pair(tmp_path, fixed=str(path)))
    assert str(path) in message


def test_a_file_that_was_cut_before_it_was_compressed_is_refused(tmp_path: Path) -> None:
    path = Path(write(tmp_path / "short.nii.gz", noise()))
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:-500]))
    assert "is cut off: it has " in refused(pair(tmp_path, fixed=str(path)))


def test_a_damaged_compressed_file_is_refused(tmp_path: Path) -> None:
    path = Path(write(tmp_path / "damaged.nii.gz", noise()))
    content = bytearray(path.read_bytes())
    content[-6] ^= 255  # in the checksum at the end
    path.write_bytes(bytes(content))
    assert "is cut off or damaged" in refused(pair(tmp_path, fixed=str(path)))


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".nrrd", ".mha"])
def test_nan_and_inf_voxels_are_counted(suffix: str, tmp_path: Path) -> None:
    values = noise().astype(np.float32)
    values[3, 4, 5:8] = [np.nan, np.inf, -np.inf]
    message = refused(pair(tmp_path, moving=write(tmp_path / f"nan{suffix}", values)))
    assert message.startswith("moving: ")
    assert f"has 3 of {values.size} voxels that are NaN or infinite" in message


def test_a_constant_image_is_refused(tmp_path: Path) -> None:
    message = refused(pair(tmp_path, fixed=write(tmp_path / "flat.nii.gz", np.full(SHAPE, 7, np.int16))))
    assert message.startswith("fixed: ")
    assert "is constant (all voxels are 7)" in message


def test_a_ct_that_cannot_be_hu_is_warned_about(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    scaled = write(tmp_path / "scaled.nii.gz", np.random.default_rng(0).random(SHAPE).astype(np.float32))
    with caplog.at_level(logging.WARNING):
        chain()(pair(tmp_path, moving=scaled))
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        assert "moving: " in caplog.text
        assert "can't be HU" in caplog.text
        caplog.clear()
        chain()(pair(tmp_path, moving=scaled, moving_modality="mr"))
        assert not caplog.records


def test_a_ct_outside_its_window_is_refused(tmp_path: Path) -> None:
    message = refused(pair(tmp_path), ct_window=(5000, 6000))
    assert "has no voxel inside ct_window [5000.0, 6000.0] HU" in message


def test_an_mr_of_which_almost_all_is_background_is_refused(tmp_path: Path) -> None:
    values = np.zeros(SHAPE, np.int16)
    values[5, 5, 5:9] = 100
    message = refused(pair(tmp_path, fixed=write(tmp_path / "sparse.nii.gz", values), fixed_modality="mr"))
    assert "the same value 0 at both mr_percentiles" in message


def test_an_empty_mask_is_refused(tmp_path: Path) -> None:
    message = refused(pair(tmp_path, fixed_mask=write(tmp_path / "mask.nii.gz", np.zeros(SHAPE, np.uint8))))
    assert message.startswith("fixed_mask: ")
    assert "is empty on a grid of 19 x 23 x 14" in message


def test_labels_that_are_not_integers_are_refused(tmp_path: Path) -> None:
    values = np.zeros(SHAPE, np.float32)
    values[2, 2, 2:4] = 0.25
    message = refused(pair(tmp_path, fixed_label=write(tmp_path / "label.nii.gz", values)))
    assert message.startswith("fixed_label: ")
    assert "has 2 voxels whose values are not integers, such as 0.25" in message


@pytest.mark.parametrize(
    ("value", "dtype", "below", "refused"),
    [
        (2**24 - 1, torch.float32, 2**53, False),
        (2**24, torch.float32, 2**53, True),  # what was 16777217 in the file is that, too
        (-(2**24), torch.float32, 2**53, True),
        (614454277, torch.float64, 2**53, False),
        (2**53 - 1, torch.float64, 2**53, False),
        (2**53, torch.float64, 2**53, True),
        (2**24 - 1, torch.float64, None, False),
        (2**24, torch.float64, None, True),  # training computes in float32
    ],
)
def test_label_values_that_may_have_been_rounded_are_refused(
    value: int, dtype: torch.dtype, below: int | None, refused: bool
) -> None:
    values = torch.zeros(1, 4, 5, 6, dtype=dtype)
    values[0, 2, 2, 2] = value
    check = CheckLabelsd(keys="label") if below is None else CheckLabelsd(keys="label", below=below)
    if refused:
        limit = 2**24 if dtype == torch.float32 or below is None else below
        with pytest.raises(InputError, match=f"label values of {limit} or more"):
            check({"label": MetaTensor(values)})
    else:
        check({"label": MetaTensor(values)})


def test_a_mask_of_the_same_affine_but_another_shape_is_refused(tmp_path: Path) -> None:
    mask = write(tmp_path / "mask.nii.gz", np.ones((19, 20, 14), np.uint8))
    message = refused(pair(tmp_path, fixed_mask=mask))
    assert "fixed_mask: " in message
    assert "(19 x 20 x 14) and fixed " in message
    assert "have the same affine but different shapes" in message


def test_a_mask_elsewhere_in_space_is_refused(tmp_path: Path) -> None:
    mask = write(tmp_path / "mask.nii.gz", np.ones(SHAPE, np.uint8), origin=(500.0, 12.5, 140.0))
    assert "do not overlap in space" in refused(pair(tmp_path, fixed_mask=mask))


def test_a_label_that_lost_its_geometry_is_refused(tmp_path: Path) -> None:
    label = write(
        tmp_path / "label.mha", np.ones(SHAPE, np.uint8), spacing=(1, 1, 1), origin=(0, 0, 0), direction=np.eye(3)
    )
    assert "has no geometry (identity affine)" in refused(pair(tmp_path, fixed_label=label))


def test_rounded_headers_count_as_the_same_grid(tmp_path: Path) -> None:
    values = (noise() > 0).astype(np.uint8)
    mask = write(tmp_path / "mask.nii.gz", values, origin=(-31.0001, 12.4999, 140.0))
    result = chain()(pair(tmp_path, fixed_mask=mask))
    np.testing.assert_array_equal(result["fixed_mask"][0].numpy(), values)
    np.testing.assert_array_equal(result["fixed_mask"].affine, result["fixed"].affine)


@pytest.mark.parametrize("key", ["fixed_mask", "fixed_label"])
def test_a_region_on_another_grid_is_resampled_in_world_space(key: str, tmp_path: Path) -> None:
    """Against a nearest-voxel lookup through ITK's own points."""
    values = np.zeros((12, 14, 16), np.uint8)
    values[2:10, 3:11, 4:13] = np.random.default_rng(0).integers(1, 4, (8, 8, 9))
    path = write(
        tmp_path / "other.nrrd", values, spacing=(1.3, 1.7, 2.6), origin=(-34.0, 8.0, 139.0), direction=oblique(4)
    )
    case = pair(tmp_path, **{key: path})
    result = chain()(case)
    image, region = itk.imread(case["fixed"]), itk.imread(path)
    wrong = 0
    for index in np.random.default_rng(1).integers(0, SHAPE, (2000, 3)):
        point = image.TransformIndexToPhysicalPoint([int(v) for v in index])
        nearest = region.TransformPhysicalPointToIndex(point)
        inside = all(0 <= nearest[axis] < values.shape[axis] for axis in range(3))
        expected = values[tuple(nearest)] if inside else 0
        wrong += bool(result[key][(0, *index)] != (min(expected, 1) if key == "fixed_mask" else expected))
    assert wrong <= 2  # ties between two voxels
    assert result[key].shape == result["fixed"].shape
    assert result[key].meta["original_dtype"] == "uint8"
    assert result[key].meta["filename_or_obj"] == path
    np.testing.assert_array_equal(result[key].affine, result["fixed"].affine)
