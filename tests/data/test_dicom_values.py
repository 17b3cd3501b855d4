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
"""DICOM values: each slice by its own scale, exactly, whatever the storage, the photometry and the compression."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import itk
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.pixels import apply_modality_lut
from pydicom.sequence import Sequence
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    ParametricMapStorage,
    RLELossless,
)

from scripts.data.reading import read_header
from scripts.transforms.load import LoadVolumesd
from scripts.utils.errors import InputError
from tests.helpers.dicom_files import SHAPE, affine_ras, classic, enhanced, load, pixel_module, ramp, save

Made = tuple[list[Dataset], np.ndarray, str]


def pet() -> Made:
    """Each slice fills its 16 bits: slopes differ, values are fractions."""
    slopes = [2.0, 0.37, 1.25, 0.0125, 7.7, 0.5]  # the first does not ask for fractions
    slices = classic(ramp() * 20, RescaleIntercept=0, Modality="PT", Units="BQML")
    for one, slope in zip(slices, slopes, strict=True):
        one.RescaleSlope = slope
    return slices, ramp() * 20 * np.array(slopes), "float32"


def whole_slopes() -> Made:
    slices = classic(RescaleIntercept=-10)
    for k, one in enumerate(slices):
        one.RescaleSlope = k + 1
    return slices, ramp() * np.arange(1, 7) - 10, "int32"


def intercepts() -> Made:
    slices = classic(dtype="<u2", RescaleSlope=1)  # the first does not ask for a sign
    for k, one in enumerate(slices):
        one.RescaleIntercept = -1000 * k
    return slices, ramp() - 1000 * np.arange(6), "int32"


def hu_of_unsigned() -> Made:
    return classic(dtype="<u2", RescaleSlope=1, RescaleIntercept=-1024), ramp() - 1024, "int32"


def hu_of_12_bits() -> Made:
    slices = classic(RescaleSlope=1, RescaleIntercept=-1024)
    for k, one in enumerate(slices):
        pixel_module(one, ramp()[:, :, k].T, "<u2", bits=12)
    return slices, ramp() - 1024, "int16"


def signs_differ() -> Made:
    """Some slices are stored signed, around 0, others unsigned with an offset, as after a change of the scanner."""
    slices = classic(ramp() - 1024, RescaleSlope=1, RescaleIntercept=0)
    for k in (1, 4):
        pixel_module(slices[k], ramp()[:, :, k].T, "<u2", bits=12)
        slices[k].RescaleIntercept = -1024
    return slices, ramp() - 1024, "int16"


def beside_bits() -> Made:
    """The four bits above the 12 that count hold an overlay."""
    slices = classic()
    for k, one in enumerate(slices):
        pixel_module(one, ramp()[:, :, k].T | 0xA000, "<u2", bits=12)
    return slices, ramp(), "int16"


def no_sign_bits() -> Made:
    """Signed 12 bits whose sign is not repeated in the four bits above."""
    slices = classic()
    for k, one in enumerate(slices):
        pixel_module(one, (ramp()[:, :, k].T - 1000) & 0x0FFF, "<u2", bits=12)
        one.PixelRepresentation = 1
    return slices, ramp() - 1000, "int16"


def high_bits() -> Made:
    """The 12 bits are the upper ones."""
    slices = classic()
    for k, one in enumerate(slices):
        pixel_module(one, (ramp()[:, :, k].T << 4) | 0x5, "<u2", bits=12)
        one.HighBit = 15
    return slices, ramp(), "int16"


def units() -> Made:
    """Not HU: values are left as the rescale gives them."""
    return classic(RescaleSlope=2, RescaleIntercept=5, RescaleType="US"), ramp() * 2 + 5, "int32"


def no_rescale() -> Made:
    return classic(dtype="<u2"), ramp(), "uint16"


def large() -> Made:
    return classic(ramp() + 2**31, dtype="<u4"), ramp() + 2**31, "uint32"


def fine() -> Made:
    """Fractions of 32-bit numbers need more than float32."""
    return classic(ramp() * 10**6 + 1, dtype="<i4", RescaleSlope=0.5, RescaleIntercept=0), ramp() * 5e5 + 0.5, "float64"


def small_bytes() -> Made:
    return classic(ramp() % 256, dtype="u1"), ramp() % 256, "uint8"


def table() -> Made:
    """A modality LUT wins over nothing; numbers outside it get its ends."""
    slices = classic(ramp() - 100)
    data = (np.arange(600) * 91) % 30000
    for one in slices:
        lut = Dataset()
        lut.add_new("LUTDescriptor", "SS", [600, 50, 16])
        lut.ModalityLUTType = "OD"
        lut.add_new("LUTData", "US", [int(v) for v in data])
        one.ModalityLUTSequence = Sequence([lut])
    expected = data[np.clip(ramp() - 100 - 50, 0, 599)]
    np.testing.assert_array_equal(
        apply_modality_lut((ramp() - 100)[:, :, 2].astype(np.int32), slices[2]), expected[:, :, 2]
    )
    return slices, expected, "uint16"


def monochrome1() -> Made:
    return classic(PhotometricInterpretation="MONOCHROME1", RescaleSlope=1, RescaleIntercept=-24), ramp() - 24, "int32"


def frames() -> Made:
    order = [3, 0, 5, 1, 4, 2]
    scales = [(0.5 * (k + 1), 10.0 * k) for k in order]
    return (
        [enhanced(order=order, rescale=scales)],
        ramp() * 0.5 * np.arange(1, 7) + 10 * np.arange(6),
        "float32",
    )


def floats() -> Made:
    values = ramp() / 7
    slices = classic()
    for k, one in enumerate(slices):
        one.SOPClassUID = one.file_meta.MediaStorageSOPClassUID = ParametricMapStorage
        for tag in ("PixelData", "BitsStored", "HighBit", "PixelRepresentation"):
            delattr(one, tag)
        one.BitsAllocated = 32
        one.FloatPixelData = np.ascontiguousarray(values[:, :, k].T).astype("<f4").tobytes()
    return slices, values, "float32"


MADE: list[Callable[[], Made]] = [
    *(pet, whole_slopes, intercepts, hu_of_unsigned, hu_of_12_bits, signs_differ, beside_bits, no_sign_bits),
    *(high_bits, units, no_rescale, large, fine, small_bytes, table, monochrome1, frames, floats),
]


@pytest.mark.parametrize("make", MADE)
def test_values_are_those_of_each_slices_scale(tmp_path: Path, make: Callable[[], Made]) -> None:
    slices, expected, dtype = make()
    values, affine, header = load(save(tmp_path / "a", slices))
    np.testing.assert_allclose(values, expected.astype(np.float32), rtol=1e-6)
    np.testing.assert_allclose(affine, affine_ras(), atol=2e-5)
    assert header.dtype == dtype


def test_monochrome1_is_said(tmp_path: Path) -> None:
    _, _, header = load(save(tmp_path / "a", monochrome1()[0]))
    assert any("MONOCHROME1" in line and "not inverted" in line for line in header.warnings)


def rle(one: Dataset) -> None:
    one.compress(RLELossless)


def by_gdcm(compression: str) -> Callable[[Dataset], None]:
    """Return what compresses a slice as ITK does: JPEG is lossless (process 14), as from many scanners."""

    def compress(one: Dataset) -> None:
        array = one.pixel_array
        path = Path(one.filename_of_test)  # type: ignore[attr-defined]
        image_io = itk.GDCMImageIO.New()
        image_io.SetUseCompression(True)
        image_io.SetCompressionType(getattr(itk.GDCMImageIOEnums, f"Compression_{compression}"))
        itk.imwrite(itk.image_from_array(np.ascontiguousarray(array)), str(path), imageio=image_io, compression=True)
        written = pydicom.dcmread(path)
        path.unlink()
        assert written.file_meta.TransferSyntaxUID.is_encapsulated
        assert (written.PixelRepresentation, written.BitsStored) == (one.PixelRepresentation, one.BitsStored)
        one.PixelData = written.PixelData
        one["PixelData"].is_undefined_length = True
        one.file_meta.TransferSyntaxUID = written.file_meta.TransferSyntaxUID

    return compress


@pytest.mark.parametrize("photometric", ["MONOCHROME2", "MONOCHROME1"])
@pytest.mark.parametrize("dtype", ["<u2", "<i2", "u1"])
@pytest.mark.parametrize(
    "compress",
    [rle, by_gdcm("JPEG"), by_gdcm("JPEG2000")],
    ids=["rle", "jpeg", "jpeg2000"],
)
def test_compressed_slices_have_their_values(
    tmp_path: Path, compress: Callable[[Dataset], None], dtype: str, photometric: str
) -> None:
    stored = ramp() % 256 if dtype == "u1" else ramp() - 400 * (dtype == "<i2")
    slices = classic(stored, dtype=dtype, RescaleSlope=1)
    for k, one in enumerate(slices):
        object.__setattr__(one, "filename_of_test", str(tmp_path / f"{k}.dcm"))
        compress(one)
        one.PhotometricInterpretation, one.RescaleIntercept = photometric, -100 * k
    values, affine, _ = load(save(tmp_path / "a", slices))
    np.testing.assert_array_equal(values, stored - 100 * np.arange(6))
    np.testing.assert_allclose(affine, affine_ras(), atol=2e-5)


def test_compressed_frames_have_their_values(tmp_path: Path) -> None:
    order = [0, 2, 4, 1, 3, 5]
    dataset = enhanced(order=order, rescale=[(1, -10 * k) for k in order])
    dataset.compress(RLELossless)
    values, _, _ = load(save(tmp_path / "a", dataset))
    np.testing.assert_array_equal(values, ramp() - 10 * np.arange(6))


@pytest.mark.parametrize("count", [1, 6])
def test_frames_that_gdcm_decodes_are_not_mixed_up(tmp_path: Path, count: int) -> None:
    """Frames of JPEG lossless, each a fragment, in one file; or one frame a file."""
    slices = classic()
    for k, one in enumerate(slices):
        object.__setattr__(one, "filename_of_test", str(tmp_path / f"{k}.dcm"))
        by_gdcm("JPEG")(one)
    if count == 6:
        order = [0, 2, 4, 1, 3, 5]
        dataset = enhanced(order=order)
        parts = [pydicom.encaps.get_frame(slices[k].PixelData, 0, number_of_frames=1) for k in order]
        dataset.PixelData = pydicom.encaps.encapsulate(parts)
        dataset["PixelData"].is_undefined_length = True
        dataset.file_meta.TransferSyntaxUID = slices[0].file_meta.TransferSyntaxUID
        slices = [dataset]
    values, _, _ = load(save(tmp_path / "a", slices))
    np.testing.assert_array_equal(values, ramp())


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian])
def test_transfer_syntaxes_give_the_same_values(tmp_path: Path, syntax: Any) -> None:
    slices = classic(ramp() - 50, RescaleSlope=1, RescaleIntercept=-7)
    for k, one in enumerate(slices):
        one.file_meta.TransferSyntaxUID = syntax
        if syntax == ExplicitVRBigEndian:
            one.PixelData = np.ascontiguousarray((ramp()[:, :, k] - 50).T).astype(">i2").tobytes()
            one["PixelData"].VR = "OW"
    values, _, _ = load(save(tmp_path / "a", slices))
    np.testing.assert_array_equal(values, ramp() - 57)


def without_slope() -> list[Dataset]:
    slices = classic(RescaleSlope=1, RescaleIntercept=-1024)
    del slices[2].RescaleSlope, slices[2].RescaleIntercept
    return slices


def cut() -> list[Dataset]:
    slices = classic()
    slices[3].PixelData = slices[3].PixelData[:-20]
    return slices


def no_pixels() -> list[Dataset]:
    slices = classic()
    del slices[3].PixelData
    return slices


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (without_slope, "5 of 6 slices .* have a rescale slope or intercept, but '.*' has none"),
        (lambda: classic(RescaleSlope=0, RescaleIntercept=3), "the slope of its values is 0"),
        (lambda: classic(SamplesPerPixel=3, PhotometricInterpretation="RGB"), "is a color image"),
        (lambda: classic(PhotometricInterpretation="PALETTE COLOR"), "is a color image"),
        (lambda: classic(BitsAllocated=12), "BitsAllocated must be one of"),
        (lambda: classic(PixelRepresentation=None), "PixelRepresentation must be 0"),
        (lambda: classic(HighBit=3), "HighBit must be BitsStored - 1"),
    ],
)
def test_values_of_unknown_meaning_are_refused(tmp_path: Path, make: Any, words: str) -> None:
    folder = save(tmp_path / "a", make())
    for read in (read_header, lambda path: LoadVolumesd(keys=["fixed"])({"fixed": path})):
        with pytest.raises(InputError, match=words):
            read(folder)


@pytest.mark.parametrize("make", [cut, no_pixels])
def test_a_slice_without_its_pixels_is_named(tmp_path: Path, make: Any) -> None:
    folder = save(tmp_path / "a", make())
    assert read_header(folder).shape == SHAPE
    with pytest.raises(InputError, match=r"_003\.dcm': its voxels can't be read"):
        load(folder)
