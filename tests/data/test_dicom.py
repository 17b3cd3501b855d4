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
"""DICOM in and out: which series, regular slices or a word about them, and a derived series that others read."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from scripts.data.cases import load_cases
from scripts.data.dicom_packing import PackedSlices
from scripts.data.dicom_series import choose_series, list_series
from scripts.data.header_checks import check_header
from scripts.data.reading import read_header
from scripts.transforms.load import LoadVolumesd
from scripts.utils.errors import InputError, find_input_error
from tests.helpers.chain import oblique
from tests.helpers.inference import run_inference
from tests.helpers.known_pair import (
    FIXED,
    FIXED_SHAPE,
    MOVING,
    MOVING_SHAPE,
    SHIFT_LPS_MM,
    anatomy,
    grid_points,
    write_known_pair,
)

ORIGIN, SPACING, DIRECTION = np.array([-30.0, 14.0, 55.0]), np.array([0.75, 0.5, 2.5]), oblique()


def write_series(
    folder: Path,
    values: np.ndarray,
    uid: str = "1.2.3.1",
    places: np.ndarray | None = None,
    shear: float = 0.0,
    grid: dict[str, Any] | None = None,
) -> str:
    """Write (I, J, K) with pydicom; ``places`` along the normal, ``shear`` along the rows for each mm of it."""
    folder.mkdir(parents=True, exist_ok=True)
    origin, spacing, direction = ORIGIN, SPACING, DIRECTION
    if grid is not None:
        origin, spacing, direction = (np.asarray(grid[key], dtype=float) for key in ("origin", "spacing", "direction"))
    places = np.arange(values.shape[2]) * spacing[2] if places is None else places
    for k in range(values.shape[2]):
        dataset = Dataset()
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = CTImageStorage
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = f"{uid}.{k + 1}"
        dataset.SeriesInstanceUID, dataset.StudyInstanceUID, dataset.FrameOfReferenceUID = uid, "1.2.3", f"{uid}.9999"
        dataset.Modality, dataset.PatientName, dataset.PatientID = "CT", "Doe^Jane", "P1"
        dataset.SeriesDescription, dataset.SeriesNumber, dataset.InstanceNumber = f"lung {uid[-1]}", 3, 77 - k
        position = origin + direction[:, 2] * places[k] + direction[:, 0] * shear * places[k]
        dataset.ImagePositionPatient = [f"{v:.6f}" for v in position]
        dataset.ImageOrientationPatient = [f"{v:.9f}" for v in (*direction[:, 0], *direction[:, 1])]
        dataset.PixelSpacing, dataset.SliceThickness = [spacing[1], spacing[0]], spacing[2]
        dataset.Rows, dataset.Columns, dataset.SamplesPerPixel = values.shape[1], values.shape[0], 1
        dataset.PhotometricInterpretation, dataset.PixelRepresentation = "MONOCHROME2", 1
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 16, 15
        dataset.RescaleSlope, dataset.RescaleIntercept = 1, -1024
        dataset.PixelData = np.ascontiguousarray((values[:, :, k] + 1024).T).astype("<i2").tobytes()
        dataset.save_as(folder / f"{uid}_{(k * 11) % values.shape[2]:03d}.dcm", enforce_file_format=True)
    return str(folder)


def ramp(count: int = 8) -> np.ndarray:
    i, j, k = np.meshgrid(np.arange(12), np.arange(10), np.arange(count), indexing="ij")
    return (i + 3 * j + 40 * k).astype(np.int16)


def load(folder: str, **more: Any) -> Any:
    return LoadVolumesd(keys=["fixed"])({"fixed": folder, **more})["fixed"]


def test_slices_are_ordered_by_their_place(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "a", ramp())
    image = load(folder)
    np.testing.assert_array_equal(image[0].numpy(), ramp())
    world = image.affine.numpy() @ [3, 2, 5, 1]
    expected = ORIGIN + DIRECTION @ (SPACING * [3, 2, 5])
    np.testing.assert_allclose(world[:3], expected * [-1, -1, 1], atol=1e-3)


def test_one_of_several_series_is_chosen_by_its_uid(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "a", ramp(), "1.2.3.1")
    write_series(tmp_path / "a", ramp(5) + 7, "1.2.3.2")
    (tmp_path / "a" / "notes.txt").write_text("not DICOM")
    structure = Dataset()
    structure.SeriesInstanceUID, structure.SOPClassUID, structure.SOPInstanceUID = (
        "1.2.3.3",
        "1.2.840.10008.5.1.4.1.1.481.3",
        "1",
    )
    structure.file_meta = FileMetaDataset()
    structure.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    structure.save_as(tmp_path / "a" / "rtstruct.dcm", enforce_file_format=True)
    assert [(one.uid, len(one.slices)) for one in list_series(folder)] == [("1.2.3.1", 8), ("1.2.3.2", 5)]
    with pytest.raises(InputError, match=r"holds 2 DICOM series: 1\.2\.3\.1 \(CT 'lung 1', 8 files\); .*fixed_series"):
        check_header("fixed", folder)
    np.testing.assert_array_equal(load(folder, fixed_series="1.2.3.2")[0].numpy(), ramp(5) + 7)
    assert read_header(folder, "3.1").shape[2] == 8  # the end of a UID is enough
    with pytest.raises(InputError, match="holds no DICOM series with the UID '9'"):
        choose_series(folder, "9")
    cases = load_cases(
        fixed=folder,
        moving=folder,
        fixed_series="1.2.3.1",
        moving_series="1.2.3.2",
        fixed_modality="ct",
        moving_modality="ct",
        output_dir=str(tmp_path / "out"),
    )
    loaded = LoadVolumesd(keys=["fixed", "moving"])(cases[0])
    assert (loaded["fixed"].shape[3], loaded["moving"].shape[3]) == (8, 5)


def test_uneven_gaps_are_resampled_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A slice is missing: values that grow linearly along the slices stay where they are in the world."""
    places = np.array([0, 1, 2, 4, 5, 6, 7]) * 2.5
    values = np.round(np.broadcast_to(16 * places, (12, 10, 7))).astype(np.int16)
    folder = write_series(tmp_path / "a", values, places=places)
    with caplog.at_level(logging.WARNING, logger="scripts.data.reading"):
        image = load(folder)
    assert "2.5 to 5 mm apart" in caplog.text
    assert image.shape == (1, 12, 10, 8)
    np.testing.assert_array_equal(image[0, 4, 4].numpy(), np.arange(8) * 40)
    np.testing.assert_allclose(np.linalg.norm(image.affine[:3, 2]), 2.5, atol=1e-3)


def test_rounded_positions_are_even(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = write_series(tmp_path / "a", ramp(), places=np.round(np.arange(8) * 2.5 + 0.004 * np.arange(8) % 0.01, 3))
    with caplog.at_level(logging.WARNING):
        assert load(folder).shape == (1, 12, 10, 8)
    assert "apart" not in caplog.text


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"shear": np.tan(np.radians(12))}, "tilted by 12.0 degrees"),
        ({"places": np.array([0, 2.5, 5, 5, 7.5, 10, 12.5, 15])}, "lie at one place"),
    ],
)
def test_what_is_no_regular_volume_is_refused(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    folder = write_series(tmp_path / "a", ramp(), **change)
    for check in (lambda: check_header("fixed", folder), lambda: load(folder)):
        with pytest.raises(InputError, match=words):
            check()


def test_slices_of_a_localizer_are_refused(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "a", ramp(3))
    path = sorted((tmp_path / "a").iterdir())[0]
    dataset = pydicom.dcmread(path)
    dataset.ImageOrientationPatient = [1, 0, 0, 0, 0, 1]
    dataset.save_as(path)
    with pytest.raises(InputError, match="turned against each other"):
        load(folder)


def test_the_warped_image_is_a_series_of_its_own_in_the_moving_study(tmp_path: Path) -> None:
    pair = write_known_pair(tmp_path / "data")
    hounsfield = [
        np.round(anatomy(grid_points(grid, shape) - shift)[0] - 500).astype(np.int16)
        for grid, shape, shift in ((FIXED, FIXED_SHAPE, 0.0), (MOVING, MOVING_SHAPE, SHIFT_LPS_MM))
    ]
    folders = [
        write_series(tmp_path / name, values, uid, grid=grid)
        for name, values, uid, grid in (
            ("fixed", hounsfield[0], "1.2.3.1", FIXED),
            ("moving", hounsfield[1], "1.2.3.2", MOVING),
        )
    ]
    before = {path: path.read_bytes() for folder in folders for path in Path(folder).iterdir()}
    options: dict[str, Any] = {
        "image_shape": [24, 24, 24],
        "field::levels": {"default": [[16, 10]]},
        "fixed_modality": "ct",
        "moving_modality": "ct",
        "save::dicom": True,
        "save::overview": False,
    }
    out = tmp_path / "out"
    run_inference(out, fixed=folders[0], moving=folders[1], **options)
    written = sorted((out / "warped_moving_dicom").iterdir())
    assert len(written) == FIXED_SHAPE[2]
    headers = [pydicom.dcmread(path) for path in written]
    first = headers[0]
    assert len({header.SOPInstanceUID for header in headers}) == len(headers)
    assert {header.SeriesInstanceUID for header in headers} == {first.SeriesInstanceUID}
    assert first.SeriesInstanceUID not in ("1.2.3.1", "1.2.3.2")
    assert (first.StudyInstanceUID, first.PatientID, first.FrameOfReferenceUID) == ("1.2.3", "P1", "1.2.3.1.9999")
    assert list(first.ImageType)[:2] == ["DERIVED", "SECONDARY"]
    assert first.ReferencedSeriesSequence[0].SeriesInstanceUID == "1.2.3.2"
    assert len(first.SourceImageSequence) == MOVING_SHAPE[2]
    # voxels and geometry, read by us (ITK), are those of the NIfTI file to the rounding of whole HU
    again = load(str(out / "warped_moving_dicom"))
    nifti = load(str(out / "warped_moving.nii.gz"))
    gap = np.abs(again.numpy() - nifti.numpy())
    assert gap.max() <= 1  # halves are rounded to either side
    assert np.mean(gap > 0) < 0.01
    np.testing.assert_allclose(again.affine, nifti.affine, atol=1e-3)
    # and by SimpleITK
    sitk = pytest.importorskip("SimpleITK", reason="SimpleITK is not installed (make dev)")
    image = sitk.ReadImage([str(path) for path in written])
    np.testing.assert_allclose(image.GetOrigin(), FIXED["origin"], atol=1e-3)
    np.testing.assert_allclose(image.GetSpacing(), FIXED["spacing"], atol=1e-4)
    values = sitk.GetArrayFromImage(image).transpose(2, 1, 0)
    assert np.abs(values - nib.load(out / "warped_moving.nii.gz").get_fdata()).max() <= 1
    assert {path: path.read_bytes() for folder in folders for path in Path(folder).iterdir()} == before
    # the same registration gives the same UIDs; a moving NIfTI can't become DICOM
    uid = first.SOPInstanceUID
    run_inference(out, fixed=folders[0], moving=folders[1], **options)
    assert pydicom.dcmread(written[0]).SOPInstanceUID == uid
    run_inference(out, fixed=folders[0], moving=folders[1], **{**options, "field::levels": {"default": [[16, 1]]}})
    assert pydicom.dcmread(written[0]).SOPInstanceUID != uid  # other voxels, other instances
    with pytest.raises(RuntimeError) as caught:
        run_inference(tmp_path / "o2", fixed=folders[0], moving=pair["moving"], **{**options, "moving_modality": "mr"})
    assert "save::dicom: moving" in str(find_input_error(caught.value))
    assert not (tmp_path / "o2").exists()  # refused before any work
    assert generate_uid(entropy_srcs=["a"]) == generate_uid(entropy_srcs=["a"])


def test_values_beyond_16_bits_are_scaled(tmp_path: Path) -> None:
    from scripts.data.dicom_writing import _stored

    header = Dataset()
    for low, high in ((-1024.0, 3071.0), (0.0, 1e6), (-0.5, 0.25)):
        values = np.linspace(low, high, 1000).reshape(10, 10, 10)
        slope, intercept, stored = _stored(values, [header])
        assert stored.min() >= -(2**15)
        assert stored.max() < 2**15
        assert np.abs(slope * stored + intercept - values).max() <= 0.51 * slope


def test_slices_that_wait_packed_are_the_same_but_for_what_their_order_was_made_of(tmp_path: Path) -> None:
    slices = choose_series(write_series(tmp_path / "a", ramp())).slices
    one = slices[0]
    mixed = (*slices, one._replace(frame=3), one._replace(rescale=(2.0, 5.0)))
    elsewhere = one._replace(path=str(tmp_path / "b" / "x.dcm"))
    for given in (mixed, (*mixed, elsewhere)):
        assert PackedSlices.of(given).slices() == tuple(each._replace(position=None, uid="") for each in given)
