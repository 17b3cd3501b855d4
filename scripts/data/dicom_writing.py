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
"""A warped image as a DICOM series: the moving series' patient and study, the fixed image's grid, UIDs of its own."""

from __future__ import annotations

import copy
import hashlib
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import torch
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as DicomSequence
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from scripts.data.case import Case, CaseFiles, Side, series_of
from scripts.data.dicom_series import Series, SeriesVoxels, choose_series
from scripts.data.itk_images import lps_geometry
from scripts.data.opened_files import opened_file
from scripts.utils.atomic import unwritable
from scripts.utils.errors import InputError
from scripts.utils.versions import versions

# of the source's slices: they say nothing of the result's
DROPPED = (
    *("SliceLocation", "AcquisitionNumber", "InstanceCreationTime", "WindowCenter", "WindowWidth", "PixelData"),
    *("SmallestImagePixelValue", "LargestImagePixelValue", "PixelPaddingValue", "GantryDetectorTilt", "NumberOfFrames"),
    *("IconImageSequence", "ModalityLUTSequence", "VOILUTSequence"),
)


def moving_series(case: CaseFiles | Case, moving: str) -> Series:
    """Return the series whose tags the result gets.

    Args:
        case: may hold the series as it was opened when the case was checked.
        moving: path of the moving image.

    Raises:
        InputError: it is no series of single slices: patient, study or tags would be invented.
    """
    if not Path(moving).is_dir():
        raise InputError(f"save::dicom: moving '{moving}' is not a folder with a DICOM series; leave save::dicom out")
    series = case_series(case, "moving", moving)
    if len({one.path for one in series.slices}) < len(series.slices):
        raise InputError(
            f"save::dicom: moving '{moving}' has several frames in one file, whose tags don't fit single slices; leave"
            " save::dicom out"
        )
    return series


def case_series(case: CaseFiles | Case, key: Side, folder: str) -> Series:
    """Return the series of a case entry, in the order that its headers gave when the case was checked, if it was."""
    opened = opened_file(case, key, folder)
    if opened is not None and isinstance(opened.voxels, SeriesVoxels):
        return opened.voxels.series
    return choose_series(folder, series_of(case, key))


def frame_of_reference(series: Series) -> str | None:
    """Return the UID of a series' frame of reference, if it has one."""
    value = pydicom.dcmread(series.slices[0].path, stop_before_pixels=True).get("FrameOfReferenceUID")
    return None if value is None else str(value)


def derived_series(values: np.ndarray, affine_ras: np.ndarray, series: Series, frame: str | None) -> list[Dataset]:
    """Return the datasets of a derived series.

    UIDs are made from those of the sources, so that the same registration gives the same files.

    Args:
        values: (I, J, K) on the fixed grid.
        affine_ras: (4, 4) of that grid.
        series: the moving series.
        frame: frame of reference of the fixed series; None makes a new one.
    """
    headers = [pydicom.dcmread(one.path, stop_before_pixels=True) for one in series.slices]
    pixels = hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()
    key = [series.uid, frame or "", str(affine_ras.tolist()), pixels, versions()["bundle"]]
    new_series = generate_uid(entropy_srcs=[*key, "series"])
    origin, spacing, direction = lps_geometry(torch.from_numpy(affine_ras))
    slope, intercept, stored = _stored(values, headers)
    slices = []
    for k in range(values.shape[2]):
        dataset = _base(headers[0])
        dataset.SeriesInstanceUID = new_series
        dataset.SOPInstanceUID = generate_uid(entropy_srcs=[*key, str(k)])
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        dataset.FrameOfReferenceUID = frame or generate_uid(entropy_srcs=[*key, "frame"])
        dataset.SeriesDescription = f"{headers[0].get('SeriesDescription', '')} registered"[:64].strip()
        dataset.SeriesNumber = (int(headers[0].get("SeriesNumber") or 0) + 1000) % 2**31
        dataset.InstanceNumber = k + 1
        dataset.ImageType = ["DERIVED", "SECONDARY", "REGISTERED"]
        dataset.DerivationDescription = f"deformable registration, uniGradICON bundle {versions()['bundle']}"
        dataset.ImagePositionPatient = [_ds(v) for v in origin + direction[:, 2] * spacing[2] * k]
        dataset.ImageOrientationPatient = [_ds(v) for v in (*direction[:, 0], *direction[:, 1])]
        dataset.PixelSpacing = [_ds(spacing[1]), _ds(spacing[0])]  # between rows, then columns
        dataset.SliceThickness = dataset.SpacingBetweenSlices = _ds(spacing[2])
        dataset.Rows, dataset.Columns = values.shape[1], values.shape[0]
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 1
        dataset.RescaleSlope, dataset.RescaleIntercept = _ds(slope), _ds(intercept)
        dataset.PixelData = np.ascontiguousarray(stored[:, :, k].T).astype("<i2").tobytes()
        _refer(dataset, headers, series.uid)
        slices.append(dataset)
    return slices


def write_series(slices: Sequence[Dataset], folder: Path) -> None:
    """Write the slices of a series; the folder appears whole or not at all.

    Raises:
        InputError: it can't be written.
    """
    temporary = folder.with_name(f".{os.getpid()}.{folder.name}")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        for dataset in slices:
            dataset.save_as(temporary / f"{int(dataset.InstanceNumber):04d}.dcm", enforce_file_format=True)
        shutil.rmtree(folder, ignore_errors=True)
        temporary.rename(folder)
    except OSError as error:
        raise unwritable(folder, error.strerror or error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _base(header: Dataset) -> Dataset:
    """Return a copy of a source's header without what belongs to its own voxels."""
    dataset = Dataset()
    dataset.update({element.tag: copy.copy(element) for element in header if not _of_voxels(element.tag)})
    for name in DROPPED:
        if name in dataset:
            delattr(dataset, name)
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = header.SOPClassUID
    return dataset


def _of_voxels(tag: Any) -> bool:
    """Tell tags that are private, or overlays, which lie on the source's voxels."""
    return bool(tag.is_private) or 0x6000 <= tag.group <= 0x60FF


def _refer(dataset: Dataset, headers: Sequence[Dataset], uid: str) -> None:
    """Name the source: its series and its instances."""
    items = []
    for header in headers:
        item = Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = header.SOPClassUID, header.SOPInstanceUID
        items.append(item)
    series = Dataset()
    series.SeriesInstanceUID, series.ReferencedInstanceSequence = uid, DicomSequence(items)
    dataset.ReferencedSeriesSequence = DicomSequence([series])
    dataset.SourceImageSequence = DicomSequence(items)


def _stored(values: np.ndarray, headers: Sequence[Dataset]) -> tuple[float, float, np.ndarray]:
    """Return slope, intercept and 16-bit numbers with values = slope * numbers + intercept.

    The sources' scale where it is that of whole numbers in all slices, as in CT; else the finest that holds the values.
    """
    scales = {(float(h.get("RescaleSlope") or 1), float(h.get("RescaleIntercept") or 0)) for h in headers}
    slope, intercept = next(iter(scales))
    low, high = float(values.min()), float(values.max())
    limits = np.iinfo(np.int16)
    whole = len(scales) == 1 and slope == 1
    if not whole or low - intercept < limits.min or high - intercept > limits.max:
        slope, intercept = max((high - low) / 65000, 1e-12), (high + low) / 2
    return slope, intercept, np.clip(np.rint((values - intercept) / slope), limits.min, limits.max)


def _ds(value: float) -> str:
    """Return a number as a DICOM decimal string: 16 characters at most."""
    return pydicom.valuerep.format_number_as_ds(float(value))
