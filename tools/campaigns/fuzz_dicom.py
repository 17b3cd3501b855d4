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
"""Broken DICOM series for :mod:`tools.campaigns.fuzz`."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from tools.campaigns.fuzz_case import AFFINE, SHAPE, Case, Make, voxels
from tools.campaigns.fuzz_dicom_forms import DICOM_FORMS

ODD_TAGS: dict[str, tuple[Any, ...]] = {
    "ImagePositionPatient": (None, ["0", "0"], ["nan", "0", "0"], ["1e300", "0", "0"], ["x", "0", "0"]),
    "ImageOrientationPatient": (None, ["1", "0", "0"], ["0"] * 6, ["1", "0", "0", "1", "0", "0"], ["nan"] * 6),
    "PixelSpacing": (None, ["0", "1"], ["-1", "1"], ["1"], ["nan", "nan"], ["1e-30", "1"]),
    "Rows": (None, 0, 1, 65535, 7),
    "Columns": (None, 0, 65535, 3),
    "NumberOfFrames": ("0", "-1", "1000000", "x"),
    "BitsAllocated": (None, 0, 1, 8, 32, 64, 12),
    "SamplesPerPixel": (3, 0),
    "PhotometricInterpretation": ("RGB", "PALETTE COLOR", "nonsense", None),
    "RescaleSlope": ("0", "nan", "1e30", "x", None),
    "RescaleIntercept": ("inf", "x", None),
    "SeriesInstanceUID": (None, "", "x y", "1" * 80),
    "PixelData": (None, b"", b"12"),
    "Modality": (None, "SEG", "RTSTRUCT"),
}


def _slice(values: np.ndarray, k: int) -> Dataset:
    spacing = np.linalg.norm(AFFINE[:3, :3], axis=0)
    origin = AFFINE[:3, 3] * [-1, -1, 1]  # LPS
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = CTImageStorage
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.{k + 1}"
    dataset.SeriesInstanceUID, dataset.StudyInstanceUID, dataset.Modality = "1.2.3", "1.2", "CT"
    dataset.ImagePositionPatient = [f"{v:.6f}" for v in (*origin[:2], origin[2] + k * spacing[2])]
    dataset.ImageOrientationPatient = ["1", "0", "0", "0", "1", "0"]
    dataset.PixelSpacing = [f"{spacing[1]:g}", f"{spacing[0]:g}"]
    dataset.Rows, dataset.Columns, dataset.SamplesPerPixel = values.shape[1], values.shape[0], 1
    dataset.PhotometricInterpretation, dataset.PixelRepresentation = "MONOCHROME2", 1
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 16, 15
    dataset.RescaleSlope, dataset.RescaleIntercept = "1", "0"
    dataset.PixelData = np.ascontiguousarray(values[:, :, k].T).astype("<i2").tobytes()
    return dataset


def _save(datasets: list[Dataset], folder: Path) -> Path:
    path = folder / "series"
    path.mkdir()
    for number, dataset in enumerate(datasets):
        dataset.save_as(path / f"{(number * 3) % 7}_{number}.dcm", enforce_file_format=True)
    return path


def dicom_tags(random: np.random.Generator, folder: Path) -> Case:
    """Tags missing or odd, in one slice or in all."""
    values = voxels(random)
    datasets = [_slice(values, k) for k in range(SHAPE[2])]
    tag = str(random.choice(list(ODD_TAGS)))
    odd = ODD_TAGS[tag][int(random.integers(len(ODD_TAGS[tag])))]
    changed = datasets if random.random() < 0.5 else [datasets[int(random.integers(len(datasets)))]]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the odd values are meant
        for dataset in changed:
            try:
                if odd is None:
                    delattr(dataset, tag)
                else:
                    setattr(dataset, tag, odd)
            except (ValueError, TypeError):  # pydicom does not write this one
                return Case(_save(datasets, folder), values.astype(np.float64), AFFINE)
        try:
            return Case(_save(datasets, folder))
        except Exception:
            for dataset in changed:
                setattr(dataset, tag, getattr(_slice(values, 0), tag))
            path = folder / "series"
            for old in path.iterdir():
                old.unlink()
            path.rmdir()
            return Case(_save([_slice(values, k) for k in range(SHAPE[2])], folder), values.astype(np.float64), AFFINE)


def dicom_bytes(random: np.random.Generator, folder: Path) -> Case:
    """A slice with changed bytes, or cut off."""
    values = voxels(random)
    path = _save([_slice(values, k) for k in range(SHAPE[2])], folder)
    files = sorted(path.iterdir())
    target = files[int(random.integers(len(files)))]
    raw = bytearray(target.read_bytes())
    if random.random() < 0.5:
        target.write_bytes(bytes(raw[: random.integers(0, len(raw) - 1)]))
        return Case(path)
    for at in random.integers(0, len(raw), random.integers(1, 8)):
        raw[at] = random.integers(256)
    target.write_bytes(bytes(raw))
    return Case(path)


def dicom_folders(random: np.random.Generator, folder: Path) -> Case:
    """A slice twice, missing, of another size; pipes, links and other files beside a good series."""
    values = voxels(random)
    datasets = [_slice(values, k) for k in range(SHAPE[2])]
    kind = random.choice(["beside", "twice", "size", "single"])
    if kind == "twice":
        datasets.append(_slice(values, 0))
    elif kind == "size":
        datasets[1] = _slice(values[:-1], 1)
    elif kind == "single":
        datasets = datasets[:1]
    path = _save(datasets, folder)
    os.mkfifo(path / "pipe")
    (path / "notes.txt").write_text("x")
    (path / "link.dcm").symlink_to(path / "nothing")
    (path / "zero.dcm").symlink_to("/dev/zero")
    (path / "folder.dcm").mkdir()
    if kind in ("beside", "twice"):  # exact copies are read once
        return Case(path, values.astype(np.float64), AFFINE)
    return Case(path, refused=True)


DICOM_KINDS: tuple[Make, ...] = (dicom_tags, dicom_bytes, dicom_folders, *DICOM_FORMS)
