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
"""Writing NIfTI: what is read back, by nibabel and by ITK, and what is left when writing fails."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import IO

import itk
import nibabel as nib
import numpy as np
import pytest

from scripts.data.nifti_writing import write_nifti
from scripts.utils.errors import InputError

AFFINE = np.array([[-2.0, 0.1, 0, 30], [0.1, 2.0, 0, -7], [0, 0, 3.0, 12], [0, 0, 0, 1]])


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "uint32", "int64", "float32", "float64"])
def test_values_type_and_affine_come_back(tmp_path: Path, dtype: str) -> None:
    values = (np.random.default_rng(0).random((5, 6, 7)) * 100).astype(dtype)
    write_nifti(tmp_path / "a.nii.gz", [values], AFFINE)
    image = nib.load(tmp_path / "a.nii.gz")
    assert image.get_data_dtype() == dtype
    np.testing.assert_array_equal(np.asanyarray(image.dataobj), values)
    np.testing.assert_allclose(image.affine, AFFINE, atol=1e-6)
    np.testing.assert_allclose(image.get_qform(), nib.Nifti1Image(values, AFFINE, dtype=dtype).get_qform(), atol=1e-5)
    assert image.header.get_xyzt_units()[0] == "mm"


def test_the_same_volume_gives_the_same_bytes(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(9, 11, 7)).astype(np.float32)
    for name in ("a.nii.gz", "b.nii.gz"):
        write_nifti(tmp_path / name, [values], AFFINE)
    contents = [(tmp_path / name).read_bytes() for name in ("a.nii.gz", "b.nii.gz")]
    assert contents[0] == contents[1]
    assert contents[0][4:8] == bytes(4)  # no time of writing, which would differ between runs
    assert gzip.decompress(contents[0])[352:] == values.tobytes(order="F")
    np.testing.assert_array_equal(itk.array_from_image(itk.imread(str(tmp_path / "a.nii.gz"))), values.T)


def test_a_vector_image_has_intent_1007_and_five_dimensions(tmp_path: Path) -> None:
    components = np.random.default_rng(0).normal(size=(3, 4, 5, 6)).astype(np.float32)
    write_nifti(tmp_path / "v.nii.gz", iter(components), AFFINE, vector=True)
    image = nib.load(tmp_path / "v.nii.gz")
    assert image.shape == (4, 5, 6, 1, 3)
    assert int(image.header["intent_code"]) == 1007
    read = itk.array_from_image(itk.imread(str(tmp_path / "v.nii.gz")))
    np.testing.assert_array_equal(read, components.transpose(3, 2, 1, 0))


def test_a_failing_write_leaves_the_old_file_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_nifti(tmp_path / "a.nii.gz", [np.ones((3, 3, 3), np.float32)], AFFINE)
    before = (tmp_path / "a.nii.gz").read_bytes()

    def full(_: object, stream: IO[bytes]) -> None:
        stream.write(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(nib.Nifti1Image, "to_stream", full)
    with pytest.raises(InputError, match=r"a\.nii\.gz' can't be written \(No space left on device\); free space"):
        write_nifti(tmp_path / "a.nii.gz", [np.zeros((3, 3, 3), np.float32)], AFFINE)
    assert [path.name for path in tmp_path.iterdir()] == ["a.nii.gz"]
    assert (tmp_path / "a.nii.gz").read_bytes() == before
