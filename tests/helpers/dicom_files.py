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
"""Small DICOM series of known values and places, written by pydicom, as single frames or in one enhanced file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    CTImageStorage,
    EnhancedCTImageStorage,
    ExplicitVRLittleEndian,
)

from scripts.data.reading import read_header
from scripts.transforms.load import LoadVolumesd
from tests.helpers.chain import oblique

ORIGIN, SPACING = np.array([-30.0, 14.0, 55.0]), np.array([0.75, 0.5, 2.5])
SHAPE = (12, 10, 6)
AXES = {
    "axial": np.eye(3),
    "coronal": np.array([[1, 0, 0], [0, 0, -1], [0, 1, 0]]).T.astype(float),
    "sagittal": np.array([[0, 1, 0], [0, 0, -1], [-1, 0, 0]]).T.astype(float),
    "feet first": np.array([[-1, 0, 0], [0, 1, 0], [0, 0, -1]]).T.astype(float),
    "oblique": oblique(),
}  # columns are the directions of rows, columns and slices, LPS


def ramp(shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    """Return stored numbers (I, J, K) that differ at every voxel."""
    i, j, k = np.meshgrid(*(np.arange(n) for n in shape), indexing="ij")
    return (i + 13 * j + 150 * k).astype(np.int64)


def affine_ras(axes: np.ndarray | None = None, spacing: Any = SPACING) -> np.ndarray:
    """Return the affine that the series has, from its positions alone."""
    affine = np.eye(4)
    affine[:3, :3] = (AXES["oblique"] if axes is None else axes) * spacing
    affine[:3, 3] = ORIGIN
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine


def pixel_module(dataset: Dataset, stored: np.ndarray, dtype: str = "<i2", bits: int = 0) -> None:
    """Set the pixels (J, I), or (frames, J, I), and what describes them."""
    kind = np.dtype(dtype)
    dataset.Rows, dataset.Columns, dataset.SamplesPerPixel = *stored.shape[-2:], 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.PixelRepresentation = int(kind.kind == "i")
    dataset.BitsAllocated = 8 * kind.itemsize
    dataset.BitsStored = bits or dataset.BitsAllocated
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelData = np.ascontiguousarray(stored).astype(kind).tobytes()


def base(uid: str, instance: str, sop_class: str = CTImageStorage) -> Dataset:
    """Return a dataset without geometry and pixels."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = sop_class
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = instance
    dataset.SeriesInstanceUID, dataset.StudyInstanceUID, dataset.FrameOfReferenceUID = uid, "1.2.3", f"{uid}.9999"
    dataset.Modality, dataset.PatientName, dataset.PatientID, dataset.SeriesDescription = "CT", "A^B", "P", "small"
    return dataset


def classic(
    stored: np.ndarray | None = None,
    axes: np.ndarray | None = None,
    uid: str = "1.2.3.1",
    dtype: str = "<i2",
    **tags: Any,
) -> list[Dataset]:
    """Return the slices of a series; ``tags`` go into all of them."""
    stored = ramp() if stored is None else stored
    axes = AXES["oblique"] if axes is None else axes
    slices = []
    for k in range(stored.shape[2]):
        dataset = base(uid, f"{uid}.{k + 1}")
        dataset.ImagePositionPatient = [f"{v:.6f}" for v in ORIGIN + axes[:, 2] * SPACING[2] * k]
        dataset.ImageOrientationPatient = [f"{v:.9f}" for v in (*axes[:, 0], *axes[:, 1])]
        dataset.PixelSpacing, dataset.SliceThickness = [SPACING[1], SPACING[0]], SPACING[2]
        dataset.InstanceNumber = k + 1
        pixel_module(dataset, stored[:, :, k].T, dtype)
        for tag, value in tags.items():
            setattr(dataset, tag, value)
        slices.append(dataset)
    return slices


def item(**tags: Any) -> Sequence:
    """Return a sequence of one item."""
    dataset = Dataset()
    for tag, value in tags.items():
        setattr(dataset, tag, value)
    return Sequence([dataset])


def enhanced(
    stored: np.ndarray | None = None,
    order: Any = None,
    rescale: Any = None,
    content: Any = None,
    uid: str = "1.2.3.1",
) -> Dataset:
    """Return one file with the frames of a volume, in ``order`` (numbers of slices, more than once for phases).

    Args:
        stored: (I, J, K) of the volume.
        order: which slice each frame is.
        rescale: slope and intercept of each frame.
        content: tags of the FrameContentSequence of each frame.
        uid: of the series.
    """
    stored = ramp() if stored is None else stored
    axes = AXES["oblique"]
    order = list(range(stored.shape[2])) if order is None else list(order)
    dataset = base(uid, f"{uid}.1", EnhancedCTImageStorage)
    shared = Dataset()
    shared.PlaneOrientationSequence = item(ImageOrientationPatient=[f"{v:.9f}" for v in (*axes[:, 0], *axes[:, 1])])
    shared.PixelMeasuresSequence = item(
        PixelSpacing=[SPACING[1], SPACING[0]], SliceThickness=1.0, SpacingBetweenSlices=-7.0
    )
    dataset.SharedFunctionalGroupsSequence = Sequence([shared])
    groups = []
    for number, k in enumerate(order):
        group = Dataset()
        group.PlanePositionSequence = item(
            ImagePositionPatient=[f"{v:.6f}" for v in ORIGIN + axes[:, 2] * SPACING[2] * k]
        )
        if rescale is not None:
            slope, intercept = rescale[number]
            group.PixelValueTransformationSequence = item(
                RescaleSlope=slope, RescaleIntercept=intercept, RescaleType="US"
            )
        if content is not None:
            group.FrameContentSequence = item(**content[number])
        groups.append(group)
    dataset.PerFrameFunctionalGroupsSequence = Sequence(groups)
    dataset.NumberOfFrames = len(order)
    pixel_module(dataset, np.stack([stored[:, :, k].T for k in order]))
    return dataset


def save(folder: Path, datasets: Any) -> str:
    """Write datasets under names in another order than theirs; return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    datasets = [datasets] if isinstance(datasets, Dataset) else datasets
    for number, dataset in enumerate(datasets):
        dataset.save_as(folder / f"{(number * 5) % 7}_{number:03d}.dcm", enforce_file_format=True)
    return str(folder)


def load(path: str) -> tuple[np.ndarray, np.ndarray, Any]:
    """Return values (I, J, K) and affine (RAS) as a registration loads them, and the header, which must agree."""
    header = read_header(path)
    image = LoadVolumesd(keys=["fixed"])({"fixed": path})["fixed"]
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = header.direction * header.spacing, header.origin
    np.testing.assert_allclose(np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine, image.affine.numpy(), atol=1e-6)
    assert header.shape == tuple(image.shape[1:])
    assert header.dtype == image.meta["original_dtype"]
    return image[0].numpy(), image.affine.numpy(), header
