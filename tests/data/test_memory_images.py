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
"""Images in memory: the volume of each kind is that of the same image read from a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import itk
import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from scripts.data.memory_images import volume_in_memory
from scripts.transforms.load import LoadVolumesd
from tests.helpers.chain import noise, write
from tests.helpers.known_pair import write_known_pair
from tests.helpers.libraries import images, kinds_of


@pytest.mark.parametrize("kind", ["ITK", "nibabel", "SimpleITK", "ANTs", "MetaTensor", "array"])
def test_geometry_in_memory_is_that_of_the_file(tmp_path: Path, kind: str) -> None:
    pair = write_known_pair(tmp_path / "data")
    kinds = kinds_of(pair) | {"array": tuple(np.asanyarray(nib.load(pair[s]).dataobj) for s in ("moving", "fixed"))}
    if kind not in kinds:
        pytest.skip(f"{kind} is not installed")
    loaded = LoadVolumesd(["fixed", "moving"])(images(pair))
    for side, image in zip(("moving", "fixed"), kinds[kind], strict=True):
        affine = nib.load(pair[side]).affine if kind == "array" else None
        volume = volume_in_memory(side, image, affine)
        assert torch.equal(volume.as_tensor(), loaded[side].as_tensor())
        tolerance = 0 if kind in ("nibabel", "MetaTensor") else 1e-5
        np.testing.assert_allclose(volume.affine, loaded[side].affine, rtol=0, atol=tolerance)
        assert volume.meta["original_dtype"] == "float32"


def test_voxels_are_shared_where_their_type_allows() -> None:
    array, tensor = np.zeros((4, 5, 6), np.float32), MetaTensor(torch.zeros(1, 4, 5, 6))
    assert np.shares_memory(volume_in_memory("fixed", array, np.eye(4)).numpy(), array)
    assert volume_in_memory("fixed", tensor).data_ptr() == tensor.data_ptr()
    assert volume_in_memory("fixed", tensor).meta is not tensor.meta


def of_file(path: str, key: str = "fixed", **entries: Any) -> MetaTensor:
    return LoadVolumesd([key])({key: path, **entries})[key]


def assert_same(volume: MetaTensor, expected: MetaTensor, tolerance_mm: float = 0.0) -> None:
    assert torch.equal(volume.as_tensor(), expected.as_tensor())
    assert volume.dtype == expected.dtype
    np.testing.assert_allclose(volume.affine, expected.affine, rtol=0, atol=tolerance_mm)
    for name in ("original_dtype", "xform_code"):
        assert volume.meta[name] == expected.meta[name]


@pytest.mark.parametrize("kind", [">i2", "uint8", "uint16", "int32", "float64"])
def test_types_and_scaled_values_of_nifti_are_those_of_its_file(tmp_path: Path, kind: str) -> None:
    affine = np.array([[-2.0, 0.1, 0, 5], [0.1, 2.1, 0, -7], [0, 0, 3.0, 11], [0, 0, 0, 1]])
    values = np.abs(noise()).astype(kind)
    for slope in (1.0, 0.5):
        image = nib.Nifti1Image(values, affine, dtype=kind)
        image.set_sform(affine, 4)
        image.header.set_slope_inter(slope, 0)
        nib.save(image, tmp_path / "a.nii")
        assert_same(volume_in_memory("fixed", nib.load(tmp_path / "a.nii")), of_file(str(tmp_path / "a.nii")))


def test_a_geometry_changed_in_place_counts_as_when_written(tmp_path: Path) -> None:
    image = nib.Nifti1Image(noise(), np.diag([2.0, 2, 3, 1]))
    image.affine[:3, 3] += [0, 7, 0]
    volume, stale = volume_in_memory("fixed", image), image.header.get_best_affine()[1, 3]
    nib.save(image, tmp_path / "a.nii.gz")
    assert_same(volume, of_file(str(tmp_path / "a.nii.gz")))
    assert volume.affine[1, 3] == 7
    assert stale == 0  # the image that was given is left as it is


def test_large_labels_keep_their_numbers(tmp_path: Path) -> None:
    values = np.random.default_rng(0).choice(np.array([0, 5, 614454277], np.int64), (5, 6, 7))
    nib.save(nib.Nifti1Image(values, np.eye(4), dtype="int64"), tmp_path / "a.nii.gz")
    volume = volume_in_memory("fixed_label", values, np.eye(4))
    assert volume.dtype == torch.float64
    expected = of_file(str(tmp_path / "a.nii.gz"), "fixed_label")
    assert torch.equal(volume.as_tensor(), expected.as_tensor())
    assert volume.meta["original_dtype"] == expected.meta["original_dtype"] == "int64"


def test_a_frame_of_a_series_is_taken(tmp_path: Path) -> None:
    series = np.stack([noise(seed=n) for n in range(3)], axis=-1)
    nib.save(nib.Nifti1Image(series, np.diag([2.0, 2, 3, 1])), tmp_path / "a.nii.gz")
    expected = of_file(str(tmp_path / "a.nii.gz"), frame=2)
    assert_same(volume_in_memory("fixed", nib.load(tmp_path / "a.nii.gz"), frame=2), expected)
    in_itk = itk.imread(str(tmp_path / "a.nii.gz"))
    assert torch.equal(volume_in_memory("fixed", in_itk, frame=2).as_tensor(), expected.as_tensor())


def test_a_part_of_an_itk_image_lies_where_it_lay(tmp_path: Path) -> None:
    whole = itk.imread(write(tmp_path / "a.nii.gz", noise()))
    region = itk.ImageRegion[3]([3, 4, 5], [8, 9, 7])
    part = itk.region_of_interest_image_filter(whole, region_of_interest=region)
    extracted = itk.extract_image_filter(whole, extraction_region=region, direction_collapse_to_strategy=2)
    assert list(extracted.GetBufferedRegion().GetIndex()) == [3, 4, 5]
    expected = volume_in_memory("fixed", part)
    assert_same(volume_in_memory("fixed", extracted), expected, 1e-9)
    corner = (volume_in_memory("fixed", whole).affine @ torch.tensor([3.0, 4, 5, 1]).double())[:3]
    torch.testing.assert_close(expected.affine[:3, 3], corner)


def test_other_forms_of_voxels_are_taken() -> None:
    values = np.random.default_rng(0).random((4, 5, 6), np.float32)
    expected = torch.from_numpy(values)
    read_only = values.copy()
    read_only.flags.writeable = False
    for form in (values[None], read_only, values.astype(">f4"), torch.from_numpy(values), values[::-1][::-1]):
        assert torch.equal(volume_in_memory("fixed", form, np.eye(4))[0].as_tensor(), expected)
    assert torch.equal(
        volume_in_memory("fixed", values[::-1], np.eye(4))[0].as_tensor(), torch.flip(expected, dims=[0])
    )
    half = volume_in_memory("fixed", torch.from_numpy(values).bfloat16().requires_grad_(), torch.eye(4))
    assert (half.dtype, half.meta["original_dtype"], half.requires_grad) == (torch.float32, "float32", False)


def test_a_metatensor_in_lps_is_turned_to_ras() -> None:
    affine = torch.diag(torch.tensor([2.0, 3, 4, 1], dtype=torch.float64))
    volume = volume_in_memory("fixed", MetaTensor(torch.zeros(1, 4, 5, 6), affine=affine, meta={"space": "LPS"}))
    torch.testing.assert_close(volume.affine, torch.diag(torch.tensor([-2.0, -3, 4, 1], dtype=torch.float64)))
