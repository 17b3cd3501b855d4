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
"""DICOM series in folders: which there are, in which order their slices lie, and whether they make a regular volume.

Headers are read by pydicom, voxels by ITK.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import itk
import numpy as np
import pydicom

from .errors import InputError, InputFileError
from .itk_types import readable_type

logger = logging.getLogger(__name__)

TAGS = (
    *("SeriesInstanceUID", "SeriesDescription", "Modality", "ImagePositionPatient", "ImageOrientationPatient"),
    *("SeriesDate", "Rows", "NumberOfFrames", "PhotometricInterpretation"),
)
GRAY = ("MONOCHROME2", "MONOCHROME1")
MOST_TILT_DEGREES = 0.5
EVEN = 0.02  # gaps that differ by less than this from the median gap are even (positions are rounded)


class Slice(NamedTuple):
    """One file."""

    path: str
    position: tuple[float, float, float]
    """Center of the first voxel, LPS mm."""
    orientation: tuple[float, ...]
    """Directions of the rows and the columns, LPS."""
    photometric: str
    """PhotometricInterpretation."""


class Series(NamedTuple):
    """The slices of one volume, in the order of their position."""

    uid: str
    description: str
    modality: str
    slices: tuple[Slice, ...]
    problem: str | None = None
    """Why it can't be used."""

    def __str__(self) -> str:
        """Return what a person needs to choose."""
        return f"{self.uid} ({self.modality} '{self.description}', {len(self.slices)} files)"


def list_series(folder: str) -> list[Series]:
    """Return the image series in a folder, by their UIDs; what holds no images (structures, reports) is left out."""
    found: dict[str, list[Any]] = {}
    for path in sorted(Path(folder).iterdir()):
        if not path.is_file() or path.name.startswith(".") or path.name == "DICOMDIR":
            continue
        try:
            # files without a preamble are DICOM, too; the tags decide
            header = pydicom.dcmread(path, force=True, stop_before_pixels=True, specific_tags=list(TAGS))
        except Exception:  # of many kinds, from files of any other format
            continue
        if "SeriesInstanceUID" in header and "Rows" in header:
            uid = _text(str(path), header, "SeriesInstanceUID", "")
            found.setdefault(uid, []).append((str(path), header))
    return [_series_or_problem(uid, files) for uid, files in sorted(found.items())]


def _series_or_problem(uid: str, files: Sequence[tuple[str, Any]]) -> Series:
    """Return a series; one that is broken does no harm to others in the folder."""
    try:
        return _series(uid, files)
    except InputFileError as error:
        return Series(uid, "broken", "?", (), str(error))


def _series(uid: str, files: Sequence[tuple[str, Any]]) -> Series:
    slices = []
    for path, header in files:
        position = _numbers(path, header, "ImagePositionPatient", (0, 0, 0))
        orientation = _numbers(path, header, "ImageOrientationPatient", (1, 0, 0, 0, 1, 0))
        photometric = _text(path, header, "PhotometricInterpretation", "")
        slices.append(Slice(path, (position[0], position[1], position[2]), orientation, photometric))
    normal = np.cross(slices[0].orientation[:3], slices[0].orientation[3:])
    slices.sort(key=lambda one: (float(np.dot(normal, one.position)), one.path))
    description, modality = (_text(*files[0], *tag) for tag in (("SeriesDescription", ""), ("Modality", "?")))
    return Series(uid, description, modality, tuple(slices))


def _text(path: str, header: Any, tag: str, default: str) -> str:
    """Return a tag as text, or the default where it is absent."""
    try:
        return str(header.get(tag, default))
    except Exception as error:  # of many kinds: values are only decoded now
        raise InputFileError(f"'{path}': {tag} can't be read ({error}); repair or remove the slice") from error


def _numbers(path: str, header: Any, tag: str, default: tuple[float, ...]) -> tuple[float, ...]:
    """Return the numbers of a tag, or the default where it is absent or empty."""
    try:
        values = tuple(float(value) for value in header.get(tag) or default)
        if len(values) != len(default) or not np.isfinite(values).all():
            raise ValueError(f"got {values}")
    except Exception as error:
        raise InputFileError(
            f"'{path}': {tag} must be {len(default)} numbers ({error}); repair or remove the slice"
        ) from error
    return values


def check_gray(path: str) -> None:
    """Refuse a DICOM file that is no gray image: on one with a broken palette the library behind ITK ends the process.

    Raises:
        InputFileError: naming the file.
    """
    with open(path, "rb") as file:
        is_dicom = file.read(132)[128:] == b"DICM"
    if not is_dicom:
        return
    try:
        tags = ["PhotometricInterpretation", "SamplesPerPixel"]
        header = pydicom.dcmread(path, force=True, stop_before_pixels=True, specific_tags=tags)
        kind = str(header.get("PhotometricInterpretation") or "")
    except Exception:  # ITK says what is wrong
        return
    _refuse_color(path, kind)


def _refuse_color(path: str, photometric: str) -> None:
    if photometric.strip().upper() not in ("", *GRAY):  # without it, ITK takes it for gray
        raise InputFileError(f"'{path}' is a color image ({photometric}); give a series of gray images")


def choose_series(folder: str, uid: str | None = None) -> Series:
    """Return the series of a folder, or the one that is named.

    Args:
        folder: with the files.
        uid: SeriesInstanceUID, or its last components if they are unique; needed where there are several.

    Raises:
        InputError: no series, several without a choice, or a choice that is not there.
    """
    series = list_series(folder)
    if not series:
        raise InputFileError(
            f"'{folder}' is a folder without DICOM images; give NIfTI, NRRD, MHA/MHD or a folder with a DICOM series"
        )
    listed = "; ".join(str(one) for one in series[:8])
    if uid is None:
        if len(series) > 1:
            raise InputError(
                f"'{folder}' holds {len(series)} DICOM series: {listed}; choose one by its UID (fixed_series or"
                " moving_series of a registration), or move it to its own folder"
            )
        return _usable(series[0])
    matching = [one for one in series if one.uid == uid] or [one for one in series if one.uid.endswith(f".{uid}")]
    if len(matching) != 1:
        what = "no" if not matching else "more than one"
        raise InputError(f"'{folder}' holds {what} DICOM series with the UID '{uid}'; it holds {listed}")
    return _usable(matching[0])


def _usable(series: Series) -> Series:
    if series.problem is not None:
        raise InputFileError(series.problem)
    return series


def gaps_mm(folder: str, series: Series) -> np.ndarray:
    """Return the distances between the slices, mm.

    Raises:
        InputError: the slices do not make one volume: turned against each other, at one place, or a tilted gantry.
    """
    slices = series.slices
    for one in slices:
        _refuse_color(one.path, one.photometric)
    positions, orientations = (np.array([getattr(s, key) for s in slices]) for key in ("position", "orientation"))
    if np.abs(orientations - orientations[0]).max() > 1e-3:
        raise InputError(
            f"'{folder}': the slices of the series {series.uid} are turned against each other (a localizer?);"
            " give a series of parallel slices"
        )
    if len(slices) < 2:
        return np.zeros(0)
    normal = np.cross(orientations[0, :3], orientations[0, 3:])
    steps = np.diff(positions, axis=0)
    gaps = steps @ normal
    if gaps.min() < 1e-3:
        same = int(np.argmin(gaps))
        raise InputError(
            f"'{folder}': two slices of the series {series.uid} lie at one place ('{Path(slices[same].path).name}' and"
            f" '{Path(slices[same + 1].path).name}'): several volumes or phases; give one of them"
        )
    whole = positions[-1] - positions[0]
    cosine = np.clip(whole @ normal / np.linalg.norm(whole), -1, 1)
    tilt = float(np.degrees(np.arccos(cosine)))
    if tilt > MOST_TILT_DEGREES:
        raise InputError(
            f"'{folder}': the gantry of the series {series.uid} was tilted by {tilt:.1f} degrees, so its voxels are"
            " sheared; resample it first (dcm2niix does, or 3D Slicer's 'Acquisition geometry regularization')"
        )
    return gaps


def read_series(folder: str, uid: str | None = None) -> Any:
    """Read a series into an ITK image; slices with uneven gaps are resampled to even ones, with a warning.

    Raises:
        InputError: see :func:`choose_series` and :func:`gaps_mm`.
    """
    series = choose_series(folder, uid)
    gaps = gaps_mm(folder, series)
    files = [one.path for one in series.slices]
    image_io = itk.GDCMImageIO.New()
    image_io.SetFileName(files[0])
    image_io.ReadImageInformation()
    pixel, source = readable_type(image_io), files if len(files) > 1 else files[0]
    image = itk.imread(source) if pixel is None else itk.imread(source, pixel)
    if len(gaps) < 2:
        return image
    median = float(np.median(gaps))
    if np.abs(gaps - median).max() <= EVEN * median:
        return image
    logger.warning(
        "'%s': slices of the series %s are %g to %g mm apart (some may be missing): resampled to every %g mm",
        *(folder, series.uid, gaps.min(), gaps.max(), median),
    )
    return _even(image, np.concatenate([[0.0], np.cumsum(gaps)]), median)


def _even(image: Any, places: np.ndarray, gap: float) -> Any:
    """Return an image whose slices, at the given places in mm, are interpolated to even gaps."""
    values = itk.array_from_image(image)  # (K, J, I)
    wanted = np.minimum(np.arange(int(places[-1] / gap + EVEN) + 1) * gap, places[-1])  # positions are rounded
    above = np.clip(np.searchsorted(places, wanted, side="right"), 1, len(places) - 1)
    share = ((wanted - places[above - 1]) / (places[above] - places[above - 1])).astype(np.float32)[:, None, None]
    mixed = values[above - 1] * (1 - share) + values[above] * share
    mixed = np.rint(mixed) if values.dtype.kind in "iu" else mixed
    result = itk.image_from_array(np.ascontiguousarray(mixed.astype(values.dtype)))
    result.SetOrigin(image.GetOrigin())
    result.SetDirection(image.GetDirection())
    spacing = list(image.GetSpacing())
    result.SetSpacing([spacing[0], spacing[1], gap])
    return result
