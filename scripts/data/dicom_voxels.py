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
"""Values of DICOM frames: what is stored, decoded by pydicom or GDCM, each frame with its own modality transform."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import itk
import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    UID,
    CTImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from scripts.data.dicom_frames import Slice
from scripts.data.pydicom_versions import (
    apply_modality_lut,
    can_decode,
    decode,
    encoding,
    fragment,
    save_file,
    set_encoding,
)
from scripts.utils.errors import InputError, InputFileError

PIXEL_TAGS = (
    *("Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "BitsAllocated", "BitsStored", "HighBit"),
    *("PixelRepresentation", "PixelData", "FloatPixelData", "DoubleFloatPixelData", "ModalityLUTSequence"),
    *("ExtendedOffsetTable", "ExtendedOffsetTableLengths"),
)
WHOLE = (np.uint8, np.int16, np.uint16, np.int32, np.uint32)  # that ITK for Python has images of


def values_type(slices: Sequence[Slice]) -> np.dtype:
    """Return the type of the values of a series: whole numbers if all slices' are, else float32 or float64.

    The type holds every value that the headers allow, so that it is known before a voxel is read.
    """
    kinds = {(one.bits, one.kind, one.rescale or (1.0, 0.0), one.lut_bits) for one in slices}
    low, high, steps, whole = np.inf, -np.inf, 0.0, True
    for bits, kind, (slope, intercept), lut_bits in kinds:
        if kind == "f":
            return np.dtype(f"f{bits // 8}")
        if lut_bits:
            ends, slope = [0.0, 2.0**lut_bits - 1], 1.0
        else:
            first, last = (-(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1) if kind == "i" else (0.0, 2.0**bits - 1)
            ends = [first * slope + intercept, last * slope + intercept]
            whole = whole and slope == round(slope) and intercept == round(intercept)
        low, high = min(low, *ends), max(high, *ends)
        steps = max(steps, *(abs(end / slope) for end in ends))
    if whole:
        for kind_of_number in WHOLE:
            limits = np.iinfo(kind_of_number)
            if limits.min <= low and high <= limits.max:
                return np.dtype(kind_of_number)
    largest = max(abs(low), abs(high))
    fits = steps <= 2**24 and largest < np.finfo(np.float32).max  # a float32 tells 2^24 steps apart
    return np.dtype(np.float32 if fits else np.float64)


def read_values(slices: Sequence[Slice]) -> np.ndarray:
    """Return the values of frames (K, rows, columns) in the order given, of the type of :func:`values_type`.

    Raises:
        InputFileError: naming the file whose voxels can't be read.
    """
    kind = values_type(slices)
    result: np.ndarray | None = None
    places: dict[str, list[int]] = {}
    for k, one in enumerate(slices):
        places.setdefault(one.path, []).append(k)
    for path, indices in places.items():
        try:
            dataset = functools.cache(functools.partial(_pixel_module, path))
            frame = _decoder(slices[indices[0]], dataset)
            for k in indices:
                values = _rescaled(frame(slices[k].frame), slices[k], dataset, kind)
                if result is None:  # only now: a header may claim any size
                    result = np.empty((len(slices), *slices[0].size), kind)
                result[k] = values
        except (MemoryError, InputError):
            raise
        except Exception as error:  # of many kinds: pydicom's, Pillow's, ITK's
            reason = " ".join(str(error).split("ITK ERROR:")[-1].split())[:300] or type(error).__name__
            raise InputFileError(f"'{path}': its voxels can't be read ({reason}); export the series again") from error
    assert result is not None
    return result


def _pixel_module(path: str) -> Dataset:
    """Return what decoding needs, and nothing else: gray values as they are stored, not as they are displayed."""
    read = pydicom.dcmread(path, force=True, specific_tags=list(PIXEL_TAGS))
    dataset = Dataset()
    dataset.update({tag: read.get_item(tag) for tag in read.keys()})  # noqa: SIM118, a dataset iterates its elements
    implicit, little = encoding(read)
    set_encoding(dataset, implicit, little)
    dataset.file_meta = FileMetaDataset()
    syntax = str(getattr(read, "file_meta", {}).get("TransferSyntaxUID") or "")
    if not syntax:  # a file without a preamble
        explicit = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        syntax = ImplicitVRLittleEndian if implicit else explicit
    dataset.file_meta.TransferSyntaxUID = UID(syntax)
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    if "PixelData" in dataset:
        dataset.setdefault("BitsStored", dataset.BitsAllocated)
        dataset.setdefault("HighBit", dataset.BitsStored - 1)
    return dataset


def _decoder(one: Slice, dataset: Callable[[], Dataset]) -> Callable[[int], np.ndarray]:
    """Return what gives a frame (rows, columns) of the file of a slice by its number."""
    syntax = UID(one.syntax or dataset().file_meta.TransferSyntaxUID)
    if not syntax.is_encapsulated:
        # pydicom is faster on a file, but asks more of it than on what is made of it here
        is_plain = one.syntax in (ImplicitVRLittleEndian, ExplicitVRLittleEndian) and one.kind != "f"
        source = one.path if is_plain and one.photometric else dataset()
        array = decode(source).reshape(-1, *one.size)
        return lambda k: _used_bits(array[k], one.unused)
    if can_decode(syntax):
        return lambda k: decode(dataset(), k)
    # JPEG-LS has no signs
    above = (sum(one.unused), 0) if one.kind == "i" else (0, 0)
    return lambda k: _used_bits(_by_gdcm(dataset(), k), above)


def _used_bits(stored: np.ndarray, unused: tuple[int, int]) -> np.ndarray:
    """Return stored numbers without the bits above and below them, which may hold anything, and with their sign."""
    stored = stored.astype(stored.dtype.newbyteorder("="), copy=False)
    if unused == (0, 0):
        return stored
    shifted = np.left_shift(stored, unused[0])
    return np.right_shift(shifted, sum(unused), out=shifted)


def _by_gdcm(dataset: Dataset, index: int) -> np.ndarray:
    """Return a compressed frame as GDCM, the library behind ITK, decodes it.

    GDCM gets the pixels alone: it would apply one rescale to all frames, and turn MONOCHROME1 round.
    """
    single = Dataset()
    for tag in ("Rows", "Columns", "SamplesPerPixel", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"):
        setattr(single, tag, dataset[tag].value)
    single.PhotometricInterpretation = "MONOCHROME2"
    single.SOPClassUID, single.SOPInstanceUID = CTImageStorage, UID("1.2.3")
    single.PixelData = encapsulate([fragment(dataset, index)])
    single["PixelData"].is_undefined_length = True
    single.file_meta = FileMetaDataset()
    single.file_meta.TransferSyntaxUID = dataset.file_meta.TransferSyntaxUID
    single.file_meta.MediaStorageSOPClassUID = CTImageStorage
    single.file_meta.MediaStorageSOPInstanceUID = single.SOPInstanceUID
    with tempfile.TemporaryDirectory() as folder:  # GDCM reads files only
        path = Path(folder) / "frame.dcm"
        save_file(single, path)
        return itk.array_from_image(itk.imread(str(path), imageio=itk.GDCMImageIO.New()))[0]


def _rescaled(stored: np.ndarray, one: Slice, dataset: Callable[[], Dataset], kind: np.dtype) -> np.ndarray:
    """Return the values of a frame."""
    if stored.shape != one.size:
        raise InputFileError(f"{one.name()}: its pixels are {stored.shape}, its header says {one.size}")
    if one.lut_bits:
        return _by_table(stored, one, dataset()).astype(kind)
    slope, intercept = one.rescale or (1.0, 0.0)
    if kind.kind == "f":
        return (stored.astype(np.float64) * slope + intercept).astype(kind)
    values = stored.astype(np.int64 if kind.itemsize >= 4 else np.int32)
    np.multiply(values, int(slope), out=values)
    np.add(values, int(intercept), out=values)
    limits = np.iinfo(kind)
    if values.min() < limits.min or values.max() > limits.max:  # compressed pixels have a precision of their own
        raise InputFileError(f"{one.name()}: its pixels need more bits than its header states; export the series again")
    return values


def _by_table(stored: np.ndarray, one: Slice, dataset: Dataset) -> np.ndarray:
    """Return the values of a frame with a modality LUT."""
    table = dataset.ModalityLUTSequence[0]
    table.LUTDescriptor = [*table.LUTDescriptor[:2], one.lut_bits]  # pydicom takes no others than 8 and 16
    return apply_modality_lut(stored.astype(np.int32), dataset)
