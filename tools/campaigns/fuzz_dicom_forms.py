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
"""DICOM series of known places and values in many forms, and several volumes in one: :mod:`tools.campaigns.fuzz`."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import CTImageStorage, EnhancedMRImageStorage, ImplicitVRLittleEndian, RLELossless
from scipy.spatial.transform import Rotation

from tools.campaigns.fuzz_case import SHAPE, Case, Make, voxels

SPACING = (1.5, 1.2, 2.0)
TELLING = (None, "EchoTime", "TemporalPositionIdentifier", "AcquisitionNumber", "InstanceNumber", "TriggerTime")


def _grid(random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return directions (columns, LPS; right-handed, of any axes) and the affine (RAS) of a random grid."""
    axes = Rotation.random(random_state=int(random.integers(2**31))).as_matrix()
    if random.random() < 0.5:
        axes = np.eye(3)[:, random.permutation(3)] * random.choice([-1, 1], 3)
        axes[:, 2] *= np.linalg.det(axes)
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = axes * SPACING, random.uniform(-300, 300, 3)
    return axes, np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine


def _place(dataset: Dataset, axes: np.ndarray, affine: np.ndarray, k: int) -> None:
    place = (np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine @ [0, 0, k, 1])[:3]
    dataset.ImagePositionPatient = [f"{v:.5f}" for v in place]
    dataset.ImageOrientationPatient = [f"{v:.9f}" for v in (*axes[:, 0], *axes[:, 1])]
    dataset.PixelSpacing = [SPACING[1], SPACING[0]]


def _pixels(dataset: Dataset, stored: np.ndarray, bits: int, signed: bool, random: np.random.Generator) -> None:
    """Set pixels of 16 bits, with noise in the bits above those that count."""
    words = stored.astype(np.int64) & (2**bits - 1)
    words |= random.integers(0, 2 ** (16 - bits), stored.shape) << bits
    dataset.Rows, dataset.Columns, dataset.SamplesPerPixel = *stored.shape[-2:], 1
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, bits, bits - 1, signed
    dataset.PhotometricInterpretation = str(random.choice(["MONOCHROME2", "MONOCHROME1"]))
    dataset.PixelData = words.astype("<u2").tobytes()


def _series(random: np.random.Generator, values: np.ndarray) -> tuple[list[Dataset], np.ndarray, np.ndarray]:
    """Return slices, the values they stand for, and the affine."""
    from tests.helpers.dicom_files import base

    axes, affine = _grid(random)
    slices, expected, scaled = [], np.zeros(SHAPE), random.random() < 0.8
    for k in range(SHAPE[2]):
        one = base("1.2.3", f"1.2.3.{k + 1}", CTImageStorage)
        _place(one, axes, affine, k)
        bits, signed = int(random.integers(9, 17)), bool(random.random() < 0.5)
        slope, intercept = 1.0, 0.0
        if scaled:
            slope, intercept = float(random.choice([1, 2, -1, 0.5, 0.125])), float(random.choice([0, -1024, 7, 0.5]))
            one.RescaleSlope, one.RescaleIntercept = slope, intercept
        _pixels(one, values[:, :, k].T, bits, signed, random)
        one.SpacingBetweenSlices = float(random.choice([-3, 0, 9, 2]))
        one.SliceThickness, one.InstanceNumber = float(random.choice([1, 5])), int(random.integers(100))
        expected[:, :, k] = values[:, :, k] * slope + intercept
        slices.append(one)
    return slices, expected, affine


def _write(datasets: list[Dataset], folder: Path, random: np.random.Generator) -> Path:
    path = folder / "series"
    path.mkdir()
    for number in random.permutation(len(datasets)):
        datasets[number].save_as(path / f"{random.integers(10**6)}_{number}.dcm", enforce_file_format=True)
    return path


def dicom_forms(random: np.random.Generator, folder: Path) -> Case:
    """Any axes, each slice with its own storage and scale, wrong spacings in the headers, RLE."""
    slices, expected, affine = _series(random, voxels(random))
    form = random.choice(["plain", "rle", "implicit"])
    for one in slices:
        if form == "rle":
            one.compress(RLELossless)
        elif form == "implicit":
            one.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    return Case(_write(slices, folder, random), expected, affine)


def dicom_volumes(random: np.random.Generator, folder: Path) -> Case:
    """Several volumes at the same places, or one that lacks what places its voxels: refused."""
    slices, _, _ = _series(random, voxels(random))
    kind = random.choice(["volumes", "position", "orientation", "spacing", "scale", "size"])
    at = slices[int(random.integers(len(slices)))]
    if kind == "volumes":
        more, _, _ = _series(random, voxels(random))
        tag = random.choice(np.array(TELLING, object))
        for number, (one, other) in enumerate(zip(slices, more, strict=True)):
            other.SOPInstanceUID = other.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.9.{number}"
            for place in ("ImagePositionPatient", "ImageOrientationPatient"):
                setattr(other, place, getattr(one, place))
            if tag is not None:
                setattr(one, tag, 1)
                setattr(other, tag, 2)
        slices = [*slices, *more[: int(random.integers(1, len(more) + 1))]]
    elif kind == "scale":
        has = "RescaleSlope" in at
        for tag, value in (("RescaleSlope", 2), ("RescaleIntercept", 1)):
            if has:
                delattr(at, tag)
            else:
                setattr(at, tag, value)
    elif kind == "size":
        at.Rows, at.Columns = at.Columns, at.Rows
    else:
        tags = {"position": "ImagePositionPatient", "orientation": "ImageOrientationPatient", "spacing": "PixelSpacing"}
        delattr(at, tags[str(kind)])
    return Case(_write(slices, folder, random), refused=True)


def dicom_frames(random: np.random.Generator, folder: Path) -> Case:
    """One file of frames in any order, each with its place and scale; or with a frame too many or without a place."""
    values = voxels(random)
    slices, expected, affine = _series(random, values)
    order = list(random.permutation(SHAPE[2]))
    kind = random.choice(["good", "good", "twice", "no place", "count"])
    if kind == "twice":
        order.insert(int(random.integers(len(order))), int(random.integers(SHAPE[2])))
    file = slices[0]
    groups, frames = [], []
    for k in order:
        one, group = slices[k], Dataset()
        macros: dict[str, tuple[str, ...]] = {
            "PlanePositionSequence": ("ImagePositionPatient",),
            "PlaneOrientationSequence": ("ImageOrientationPatient",),
            "PixelMeasuresSequence": ("PixelSpacing", "SpacingBetweenSlices"),
        }
        if "RescaleSlope" in one:
            macros["PixelValueTransformationSequence"] = ("RescaleSlope", "RescaleIntercept")
        for name, tags in macros.items():
            item = Dataset()
            for tag in tags:
                setattr(item, tag, getattr(one, tag))
            setattr(group, name, Sequence([item]))
        groups.append(group)
        frames.append(values[:, :, k].T)
    if kind == "no place":
        del groups[-1].PlanePositionSequence
    elif kind == "count":
        groups.pop()
    for tag in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleSlope", "RescaleIntercept"):
        if tag in file:
            delattr(file, tag)
    file.SOPClassUID = file.file_meta.MediaStorageSOPClassUID = EnhancedMRImageStorage
    file.NumberOfFrames, file.PerFrameFunctionalGroupsSequence = len(order), Sequence(groups)
    _pixels(file, np.stack(frames), 12, bool(random.random() < 0.5), random)
    path: Any = _write([file], folder, random)
    path = path if random.random() < 0.5 else next(path.iterdir())
    return Case(path, expected, affine) if kind == "good" else Case(path, refused=True)


def dicom_cut(random: np.random.Generator, folder: Path) -> Case:
    """Files cut off or changed in bytes, in all forms: nothing is known of what is right."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        case = (dicom_forms, dicom_frames)[int(random.integers(2))](random, folder)
    files = sorted(case.path.iterdir()) if case.path.is_dir() else [case.path]
    target = files[int(random.integers(len(files)))]
    raw = bytearray(target.read_bytes())
    if random.random() < 0.3:
        target.write_bytes(bytes(raw[: random.integers(0, len(raw) - 1)]))
        return Case(case.path)
    for at in random.integers(0, len(raw), random.integers(1, 8)):
        raw[at] = random.integers(256)
    target.write_bytes(bytes(raw))
    return Case(case.path)


DICOM_FORMS: tuple[Make, ...] = (dicom_forms, dicom_volumes, dicom_frames, dicom_cut)
