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
"""Broken and odd files, found by fuzzing (tools/campaigns): read rightly, or refused in one line and at once."""

from __future__ import annotations

import os
import signal
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest

from scripts.data import volume_integrity as file_form
from scripts.data.header_checks import check_header
from scripts.data.transform_files import read_transform
from scripts.transforms.checks import CheckLabelsd
from scripts.transforms.load import LoadVolumesd
from scripts.transforms.postprocessing import type_on_disk
from scripts.utils.errors import InputError
from scripts.utils.paths import existing_path
from tests.data.test_dicom import ramp, write_series
from tools.campaigns.fuzz import run
from tools.campaigns.fuzz_case import AFFINE, MHA, NRRD, SHAPE, voxels

VALUES = voxels(np.random.default_rng(0))


@pytest.fixture(autouse=True)
def _no_hang() -> Iterator[None]:
    signal.alarm(240)  # ends the process: what waits in a library hears no exception
    yield
    signal.alarm(0)


def nifti(folder: Path, values: np.ndarray = VALUES, **fields: tuple[int, str, Any]) -> str:
    """Write a NIfTI file; fields are (offset, struct format, value)."""
    content = bytearray(nib.Nifti1Image(values, AFFINE, dtype=values.dtype).to_bytes())
    struct.pack_into("<f", content, 108, 352.0)
    for offset, form, value in fields.values():
        struct.pack_into("<" + form, content, offset, value)
    path = folder / "a.nii"
    path.write_bytes(bytes(content))
    return str(path)


def load(path: str) -> Any:
    check_header("fixed", path)
    return LoadVolumesd(keys=["fixed"])({"fixed": path})["fixed"]


def refusal(path: str) -> str:
    with pytest.raises(InputError) as caught:
        load(path)
    assert "\n" not in str(caught.value)
    assert path in str(caught.value)
    return str(caught.value)


def test_some_hundred_cases_of_the_campaign() -> None:
    counts, findings = run(first=20_000, count=510)
    assert findings == []
    assert sum(counts.values()) == 510
    assert {outcome for _, outcome in counts} >= {"read", "refused"}


@pytest.mark.parametrize("dtype", ["int8", "int64", "uint64"])
def test_types_that_itk_for_python_lacks_are_read_and_kept(tmp_path: Path, dtype: str) -> None:
    volume = load(nifti(tmp_path, VALUES.astype(dtype)))
    np.testing.assert_array_equal(volume[0].numpy(), VALUES)
    np.testing.assert_allclose(volume.affine, AFFINE, atol=1e-5)
    assert type_on_disk(volume) == dtype


def test_labels_beyond_what_a_double_holds_are_refused(tmp_path: Path) -> None:
    values = VALUES.astype(np.int64)
    values[1, 2, 3] = 2**53 + 1
    label = load(nifti(tmp_path, values))
    with pytest.raises(InputError, match="would be rounded"):
        CheckLabelsd(keys=["fixed_label"])({"fixed_label": label})


def test_a_scaled_integer_file_is_as_its_scaling_says(tmp_path: Path) -> None:
    volume = load(nifti(tmp_path, VALUES.astype(np.int64), scale=(112, "f", 0.5)))
    np.testing.assert_allclose(volume[0].numpy(), VALUES * 0.5)
    assert volume.meta["original_dtype"].startswith("float")


def test_a_slope_of_zero_scales_nothing(tmp_path: Path) -> None:
    volume = load(nifti(tmp_path, slope=(112, "f", 0.0), intercept=(116, "f", -1024.0)))
    np.testing.assert_array_equal(volume[0].numpy(), VALUES)


def test_a_slope_that_itk_would_ignore_is_refused(tmp_path: Path) -> None:
    assert "scl_slope = 1e-30" in refusal(nifti(tmp_path, slope=(112, "f", 1e-30)))


@pytest.mark.parametrize(("code", "scale"), [(1, 1000.0), (2, 1.0), (3, 0.001)])
def test_meters_and_micrometers_become_mm(tmp_path: Path, code: int, scale: float) -> None:
    volume = load(nifti(tmp_path, units=(123, "B", code)))
    np.testing.assert_allclose(volume.affine, np.diag([scale] * 3 + [1]) @ AFFINE, rtol=1e-5)


def test_voxels_that_begin_inside_the_header_are_refused(tmp_path: Path) -> None:
    for value in (0.0, -1.0, float("nan")):
        assert "inside its header" in refusal(nifti(tmp_path, offset=(108, "f", value)))


@pytest.mark.parametrize("field", [(296, "f", float("-inf")), (80, "f", float("nan"))])
def test_a_geometry_that_is_no_number_does_not_hang(tmp_path: Path, field: tuple[int, str, float]) -> None:
    assert "not all numbers" in refusal(nifti(tmp_path, field=field))


def test_an_unknown_type_is_refused(tmp_path: Path) -> None:
    refusal(nifti(tmp_path, datatype=(70, "h", 7170)))


def test_unused_fields_of_the_header_may_be_anything(tmp_path: Path) -> None:
    fields = {"quatern": (256, "f", float("nan")), "code": (252, "h", 0), "pixdim": (96, "f", float("nan"))}
    np.testing.assert_array_equal(load(nifti(tmp_path, **fields))[0].numpy(), VALUES)


def test_a_giant_is_refused_before_memory_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = nifti(tmp_path, dims=(42, "h", 32767), more=(44, "h", 32767), last=(46, "h", 32767))
    assert "GiB of memory" in refusal(path)
    path = nifti(tmp_path)
    monkeypatch.setattr(file_form, "available_memory", lambda: np.prod(SHAPE) * 6 - 1)  # int16 and float32
    assert "GiB are free" in refusal(path)
    monkeypatch.setattr(file_form, "available_memory", lambda: np.prod(SHAPE) * 6)
    check_header("fixed", path)


@pytest.mark.parametrize("suffix", ["nrrd", "mha"])
def test_a_small_file_that_claims_much_is_refused(tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_form, "available_memory", lambda: 2**40)
    sizes = "500 600 400"
    text = (
        NRRD.format(type="short", sizes=sizes, encoding="gzip") + "\n"
        if suffix == "nrrd"
        else MHA.format(type="MET_SHORT", sizes=sizes).replace("CompressedData = False", "CompressedData = True")
    )
    (tmp_path / f"a.{suffix}").write_bytes(text.encode() + bytes(100))
    assert "has only" in refusal(str(tmp_path / f"a.{suffix}"))


@pytest.mark.parametrize("suffix", ["nrrd", "mha"])
def test_voxels_in_another_file_may_be_more_than_the_header(tmp_path: Path, suffix: str) -> None:
    values = np.arange(80**3, dtype=np.int16).reshape(80, 80, 80)
    (tmp_path / "a.raw").write_bytes(values.tobytes(order="F"))
    path = tmp_path / f"a.{suffix}"
    path.write_text(
        NRRD.format(type="short", sizes="80 80 80", encoding="raw") + "data file: a.raw\n"
        if suffix == "nrrd"
        else MHA.format(type="MET_SHORT", sizes="80 80 80").replace("LOCAL", "a.raw")
    )
    np.testing.assert_array_equal(load(str(path))[0].numpy(), values)


def test_a_long_nrrd_field_does_not_end_the_process(tmp_path: Path) -> None:
    good = NRRD.format(type="short", sizes="5 6 4", encoding="raw")
    path = tmp_path / "a.nrrd"
    path.write_bytes((good.replace("sizes: 5 6 4", "sizes:" + "A" * 5000) + "\n").encode() + bytes(240))
    assert "field of 5006 characters" in refusal(str(path))
    long = "# " + "A" * 5000 + "\ncontent: " + "B" * 5000 + "\nkey:=" + "C" * 5000
    path.write_bytes((good + long + "\n\n").encode() + VALUES.tobytes(order="F"))
    np.testing.assert_array_equal(load(str(path))[0].numpy(), VALUES)


@pytest.mark.parametrize("count", ["2147483648", "0", "-3", "99"])
def test_a_metaimage_of_many_dimensions_does_not_end_the_process(tmp_path: Path, count: str) -> None:
    text = MHA.format(type="MET_SHORT", sizes="5 6 4").replace("NDims = 3", f"NDims = {count}")
    (tmp_path / "a.mha").write_bytes(text.encode() + VALUES.tobytes(order="F"))
    assert "dimensions" in refusal(str(tmp_path / "a.mha"))


def test_a_metaimage_with_bytes_that_are_no_text_is_one_line_or_read(tmp_path: Path) -> None:
    text = MHA.format(type="MET_SHORT", sizes="5 6 4").encode().replace(b"Offset", b"O\x80fset")
    (tmp_path / "a.mha").write_bytes(text + VALUES.tobytes(order="F"))
    np.testing.assert_array_equal(load(str(tmp_path / "a.mha"))[0].numpy(), VALUES)
    (tmp_path / "a.mha").write_bytes(text.replace(b"MET_SHORT", b"MET_SH\xd0RT") + VALUES.tobytes(order="F"))
    assert "can't be read" in refusal(str(tmp_path / "a.mha"))


@pytest.mark.parametrize("suffix", ["nii", "nii.gz", "mha", "dcm", "h5"])
def test_a_pipe_is_refused_at_once(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    os.mkfifo(path)
    for use in (lambda: existing_path("fixed", path, tmp_path), lambda: read_transform(str(path))):
        with pytest.raises(InputError, match="is a pipe"):
            use()
    assert "is a pipe" in refusal(str(path))


@pytest.mark.parametrize(("target", "words"), [("pipe", "is a pipe"), ("/dev/zero", "device"), ("no.raw", "No such")])
@pytest.mark.parametrize("suffix", ["nhdr", "mhd"])
def test_a_header_whose_voxels_are_no_file_is_refused(tmp_path: Path, suffix: str, target: str, words: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    path = tmp_path / f"a.{suffix}"
    path.write_text(
        NRRD.format(type="short", sizes="5 6 4", encoding="raw") + f"data file: {target}\n"
        if suffix == "nhdr"
        else MHA.format(type="MET_SHORT", sizes="5 6 4").replace("LOCAL", target)
    )
    message = refusal(str(path))
    assert words in message
    assert target in message


def test_a_pair_that_is_cut_off_or_scaled_is_known_by_both_names(tmp_path: Path) -> None:
    nib.Nifti1Pair(VALUES, AFFINE).to_filename(tmp_path / "a.img")
    header = bytearray((tmp_path / "a.hdr").read_bytes())
    struct.pack_into("<ff", header, 112, 0.0, -1024.0)
    (tmp_path / "a.hdr").write_bytes(bytes(header))
    for name in ("a.hdr", "a.img"):
        np.testing.assert_array_equal(load(str(tmp_path / name))[0].numpy(), VALUES)
    whole = (tmp_path / "a.img").read_bytes()
    (tmp_path / "a.img").write_bytes(whole[: len(whole) // 2])
    for name in ("a.hdr", "a.img"):
        with pytest.raises(InputError, match="is cut off"):
            load(str(tmp_path / name))


@pytest.mark.parametrize("dtype", ["int16", "uint8", "float32"])
def test_analyze_has_no_scale_where_nifti_has_one(tmp_path: Path, dtype: str) -> None:
    image = nib.AnalyzeImage(VALUES.astype(dtype), np.diag([-1.5, 1.2, 2.0, 1.0]))
    image.to_filename(tmp_path / "a.img")
    header = bytearray((tmp_path / "a.hdr").read_bytes())
    struct.pack_into("<ff", header, 112, 0.0, -100.0)  # unused fields there
    (tmp_path / "a.hdr").write_bytes(bytes(header))
    np.testing.assert_array_equal(load(str(tmp_path / "a.hdr"))[0].numpy(), VALUES)


def test_an_img_that_is_missing_is_named(tmp_path: Path) -> None:
    nib.Nifti1Pair(VALUES, AFFINE).to_filename(tmp_path / "a.img")
    np.testing.assert_array_equal(load(str(tmp_path / "a.hdr"))[0].numpy(), VALUES)
    (tmp_path / "a.img").unlink()
    assert "a." in refusal(str(tmp_path / "a.hdr"))


def change_slice(folder: Path, tag: str, value: Any) -> None:
    path = sorted(folder.iterdir())[2]
    dataset = pydicom.dcmread(path)
    setattr(dataset, tag, value)
    dataset.save_as(path)


@pytest.mark.parametrize(
    ("tag", "value", "words"),
    [
        ("PhotometricInterpretation", "PALETTE COLOR", "color image"),  # ended the process
        ("ImagePositionPatient", ["1", "2"], "must be 3 numbers"),
        ("ImageOrientationPatient", ["1", "0", "0"], "must be 6 numbers"),
    ],
)
def test_a_broken_slice_is_named(tmp_path: Path, tag: str, value: Any, words: str) -> None:
    folder = Path(write_series(tmp_path / "series", ramp()))
    change_slice(folder, tag, value)
    message = refusal(str(folder))
    assert words in message
    assert ".dcm'" in message


def test_a_slice_whose_value_has_an_unknown_type_is_named(tmp_path: Path) -> None:
    folder = Path(write_series(tmp_path / "series", ramp()))
    path = sorted(folder.iterdir())[0]
    path.write_bytes(path.read_bytes().replace(b"\x20\x00\x32\x00DS", b"\x20\x00\x32\x00KS"))
    assert "Unknown Value Representation" in refusal(str(folder))


@pytest.mark.parametrize("value", ["", "monochrome2", "MONOCHROME1 "])
def test_gray_is_known_however_it_is_written(tmp_path: Path, value: str) -> None:
    folder = Path(write_series(tmp_path / "series", ramp()))
    for path in folder.iterdir():
        dataset = pydicom.dcmread(path)
        dataset.PhotometricInterpretation = value
        dataset.save_as(path)
    check_header("fixed", str(folder))


def test_a_broken_series_does_no_harm_to_another(tmp_path: Path) -> None:
    folder = Path(write_series(tmp_path / "series", ramp(), uid="1.2.3.1"))
    write_series(tmp_path / "other", ramp(), uid="1.2.3.2")
    change_slice(tmp_path / "other", "ImagePositionPatient", ["1", "2"])
    for path in (tmp_path / "other").iterdir():
        path.rename(folder / path.name)
    check_header("fixed", str(folder), series="1.2.3.1")
    with pytest.raises(InputError, match="must be 3 numbers"):
        check_header("fixed", str(folder), series="1.2.3.2")


def test_dicom_of_signed_bytes_is_read(tmp_path: Path) -> None:
    folder = Path(write_series(tmp_path / "series", ramp() * 0))
    for number, path in enumerate(sorted(folder.iterdir())):
        dataset = pydicom.dcmread(path)
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8, 8, 7
        dataset.RescaleIntercept = 0
        values = np.full((dataset.Rows, dataset.Columns), number - 3, np.int8)
        dataset.PixelData = values.tobytes()
        dataset.save_as(path)
    volume = load(str(folder))
    assert sorted(set(volume.numpy().ravel().tolist())) == list(range(-3, 5))
