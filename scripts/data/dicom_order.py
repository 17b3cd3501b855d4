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
"""Whether the slices of a DICOM series make one regular volume, and the geometry of that volume."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pydicom

from scripts.data.dicom_frames import Slice, macros
from scripts.utils.errors import InputError, InputFileError

MOST_TILT_DEGREES = 0.5
EVEN = 0.02  # gaps that differ by less than this from the median gap are even (positions are rounded)
OFF_GRID = 0.1  # voxels that an even slice may lie off its place on the grid
ROUNDED_MM = 0.1  # positions that were written with one digit
SAME = 0.01  # slices nearer than this share of the widest gap lie at one place
LENGTH, ANGLE = 0.01, 2e-3  # by which the written directions may miss unit length, and a right angle (0.1 degrees)
# what tells volumes at the same places apart, the most telling first
TELLING = (
    *("TemporalPositionIdentifier", "TemporalPositionIndex", "EchoTime", "EffectiveEchoTime", "EchoNumbers", "StackID"),
    *("DiffusionBValue", "TriggerTime", "NominalCardiacTriggerDelayTime", "NominalPercentageOfCardiacPhase"),
    *(
        "FrameReferenceTime",
        "AcquisitionNumber",
        "FrameAcquisitionNumber",
        "ConvolutionKernel",
        "ImageType",
        "FrameType",
    ),
    *(
        "AcquisitionTime",
        "FrameReferenceDateTime",
        "FrameAcquisitionDateTime",
        "DimensionIndexValues",
        "InstanceNumber",
    ),
)


class Stack(NamedTuple):
    """The grid that the slices of a series are read onto."""

    shape: tuple[int, int, int]
    """Columns, rows, slices."""
    spacing: tuple[float, float, float]
    direction: np.ndarray
    """(3, 3), columns are the axes, LPS."""
    origin: tuple[float, ...]
    """Center of the first voxel, LPS mm."""
    places: np.ndarray
    """Where the slices of the files lie along the normal, mm from the first."""
    is_even: bool
    """False: the slices must be interpolated to the grid."""
    warnings: tuple[str, ...]


def without_copies(slices: Sequence[Slice]) -> tuple[list[Slice], list[str]]:
    """Return slices without exact copies of another: the same SOPInstanceUID, place, scale and pixels."""
    kept: list[Slice] = []
    left_out: set[str] = set()
    known: dict[tuple[str, int], list[Slice]] = {}
    for one in slices:
        same = known.setdefault((one.uid, one.frame), []) if one.uid else []
        if any(one._replace(path=other.path) == other and _pixels(one.path) == _pixels(other.path) for other in same):
            left_out.add(one.path)
            continue
        same.append(one)
        kept.append(one)
    if not left_out:
        return kept, []
    first = sorted(left_out)[0]
    more = f" and {len(left_out) - 1} more files are exact copies" if len(left_out) > 1 else " is an exact copy"
    return kept, [f"'{first}'{more} of slices of the same series: each slice is read once"]


def _pixels(path: str) -> bytes:
    names = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
    dataset = pydicom.dcmread(path, force=True, specific_tags=list(names))
    return b"".join(bytes(dataset.get(name) or b"") for name in names)


def in_order(slices: Sequence[Slice]) -> list[Slice]:
    """Return slices by their place along the normal; in the order of their files where they have no place."""
    if any(one.position is None or one.orientation is None for one in slices):
        return sorted(slices, key=lambda one: (one.path, one.frame))
    first = slices[0].orientation
    assert first is not None
    normal = np.cross(first[:3], first[3:])
    return sorted(slices, key=lambda one: (float(np.dot(normal, one.position or ())), one.path, one.frame))


def gaps_of(folder: str, uid: str, slices: Sequence[Slice]) -> np.ndarray:
    """Return the distances between slices that are in order, mm.

    Raises:
        InputError: the slices do not make one volume: without a place, of several sizes or scales, turned against each
            other, at one place, several volumes, or of a tilted gantry.
    """
    _check_alike(folder, uid, slices)
    _, normal = _axes(folder, uid, slices)
    if len(slices) < 2:
        return np.zeros(0)
    positions = np.array([one.position for one in slices])
    gaps = np.diff(positions, axis=0) @ normal
    _check_places(folder, uid, slices, gaps)
    whole = positions[-1] - positions[0]
    tilt = float(np.degrees(np.arccos(np.clip(whole @ normal / np.linalg.norm(whole), -1, 1))))
    if tilt > MOST_TILT_DEGREES:
        raise InputError(
            f"'{folder}': the gantry of the series {uid} was tilted by {tilt:.1f} degrees, so its voxels are"
            " sheared; resample it first (dcm2niix does, or 3D Slicer's 'Acquisition geometry regularization')"
        )
    return gaps


def _check_alike(folder: str, uid: str, slices: Sequence[Slice]) -> None:
    """Refuse slices that lack a place, or that differ in what a volume has once."""
    for tag, key in (
        ("ImagePositionPatient", "position"),
        ("ImageOrientationPatient", "orientation"),
        ("PixelSpacing", "pixel_spacing"),
    ):
        lacking = [one for one in slices if getattr(one, key) is None]
        if lacking:
            raise InputFileError(
                f"'{folder}': {len(lacking)} of {len(slices)} slices of the series {uid} have no {tag}"
                f" ({_short(lacking[0])}): where their voxels lie is unknown; export the series again"
            )
    for what, key in (("size (rows, columns)", "size"), ("PixelSpacing", "pixel_spacing")):
        counts = Counter(getattr(one, key) for one in slices)
        usual = counts.most_common(1)[0][0]
        odd = [one for one in slices if not np.allclose(getattr(one, key), usual, rtol=1e-4, atol=0)]
        if odd:
            raise InputError(
                f"'{folder}': {len(odd)} of {len(slices)} slices of the series {uid} have another {what}:"
                f" {_short(odd[0])} has {_listed(getattr(odd[0], key))}, most have {_listed(usual)};"
                " give one volume, or remove the odd slices"
            )
    if min(min(one.pixel_spacing or (0.0,)) for one in slices) <= 0:
        raise InputFileError(
            f"'{folder}': PixelSpacing of the series {uid} must be above 0, got"
            f" {_listed(slices[0].pixel_spacing or ())}; export the series again"
        )
    for what, flags in (
        ("a rescale slope or intercept", [one.rescale is not None for one in slices]),
        ("a modality LUT", [one.lut_bits > 0 for one in slices]),
    ):
        if len(set(flags)) > 1:
            raise InputFileError(
                f"'{folder}': {sum(flags)} of {len(slices)} slices of the series {uid} have {what}, but"
                f" {_short(slices[flags.index(False)])} has none: what its values mean is unknown; export the series"
                " again"
            )


def _axes(folder: str, uid: str, slices: Sequence[Slice]) -> tuple[np.ndarray, np.ndarray]:
    """Return the rotation next to the written directions, (3, 3) with the axes in its columns, and the normal."""
    orientations = np.array([one.orientation for one in slices])
    if np.abs(orientations - orientations[0]).max() > 1e-3:
        raise InputError(
            f"'{folder}': the slices of the series {uid} are turned against each other (a localizer?);"
            " give a series of parallel slices"
        )
    row, column = orientations[0, :3], orientations[0, 3:]
    lengths = np.linalg.norm([row, column], axis=1)
    if np.abs(lengths - 1).max() > LENGTH or abs(row @ column) > ANGLE:
        raise InputFileError(
            f"'{folder}': ImageOrientationPatient of the series {uid} must be two unit vectors at a right angle, got"
            f" {_listed(orientations[0])} in {_short(slices[0])}; export the series again"
        )
    left, _, right = np.linalg.svd(np.stack([row, column, np.cross(row, column)], axis=1))
    rotation = left @ right
    return rotation, rotation[:, 2]


def _check_places(folder: str, uid: str, slices: Sequence[Slice], gaps: np.ndarray) -> None:
    """Refuse several volumes: slices at one place, or tags that differ between volumes only."""
    same = gaps < max(1e-3, SAME * gaps.max())
    if same.any():
        at = int(np.argmax(same))
        starts = np.concatenate([[0], np.flatnonzero(~same) + 1, [len(slices)]])
        counts = np.diff(starts)
        raise InputError(
            f"'{folder}': two slices of the series {uid} lie at one place ({_short(slices[at])} and"
            f" {_short(slices[at + 1])}{_told_apart(slices[at], slices[at + 1])}), as at {int((counts > 1).sum())} of"
            f" {len(counts)} places: {_volumes(counts)}"
        )
    values: dict[str, set[str]] = {}
    for one in slices:
        for tag, value in one.volume:
            values.setdefault(tag, set()).add(value)
    for tag, found in values.items():
        if 1 < len(found) < len(slices):  # a tag that numbers the slices tells no volumes apart
            raise InputError(
                f"'{folder}': the series {uid} holds {len(found)} volumes ({tag} {', '.join(sorted(found)[:5])}):"
                " several volumes or phases; give one of them"
            )


def _volumes(counts: np.ndarray) -> str:
    """Return what slices at one place are likely to be, and what to do; counts are of the slices at each place."""
    if (counts > 1).sum() <= len(counts) // 4:
        return "some slices are there more than once; of those at one place, give one of them"
    return f"{counts.max()} volumes, several volumes or phases; give one of them"


def _told_apart(one: Slice, other: Slice) -> str:
    """Return the tag by which two slices at one place differ, for a message."""
    headers = []
    for each in (one, other):
        header = pydicom.dcmread(each.path, force=True, stop_before_pixels=True)
        per_frame = header.get("PerFrameFunctionalGroupsSequence")
        headers.append(macros([per_frame[each.frame]]) if per_frame else [header])
    for tag in TELLING:
        first, second = (next((str(item.get(tag)) for item in header if tag in item), None) for header in headers)
        if first != second:
            return f", which differ in {tag}"
    return ""


def stack(folder: str, uid: str, slices: Sequence[Slice]) -> Stack:
    """Return the grid of slices that are in order.

    Raises:
        InputError: see :func:`gaps_of`.
    """
    gaps = gaps_of(folder, uid, slices)
    direction, normal = _axes(folder, uid, slices)
    first = slices[0]
    assert first.position is not None
    assert first.pixel_spacing is not None
    places = np.concatenate([[0.0], np.cumsum(gaps)])
    warnings = []
    if len(slices) == 1:
        gap, is_even, count = first.thickness or 1.0, True, 1
    else:
        positions = np.array([one.position for one in slices])
        warnings = _sideways(folder, uid, positions, places, normal, min(first.pixel_spacing))
        gap, is_even = _gap(places, gaps)
        count = len(slices) if is_even else len(even_places(places, gap))
        if not is_even:
            warnings.append(
                f"'{folder}': slices of the series {uid} are {gaps.min():g} to {gaps.max():g} mm apart (some may be"
                f" missing): resampled to every {gap:g} mm"
            )
    rows, columns = first.size
    between_rows, between_columns = first.pixel_spacing
    spacing = (between_columns, between_rows, gap)
    return Stack((columns, rows, count), spacing, direction, first.position, places, is_even, tuple(warnings))


def _gap(places: np.ndarray, gaps: np.ndarray) -> tuple[float, bool]:
    """Return the gap of the grid, mm, and whether the slices lie on it."""
    mean, median = float(places[-1] / len(gaps)), float(np.median(gaps))
    off = float(np.abs(places - mean * np.arange(len(places))).max())
    # a slice that is missing moves others by half a gap; positions rounded to 0.1 mm move them by less than that
    is_even = off <= min(max(OFF_GRID * mean, ROUNDED_MM), 2 * OFF_GRID * mean)
    return (mean, True) if is_even else (median, False)


def _sideways(
    folder: str, uid: str, positions: np.ndarray, places: np.ndarray, normal: np.ndarray, pixel: float
) -> list[str]:
    """Refuse slices that jump sideways; return a warning where all drift within the tilt that is let pass."""
    sideways = positions - positions[0] - places[:, None] * normal
    drift = sideways[-1] * (places / places[-1])[:, None]
    jump = float(np.linalg.norm(sideways - drift, axis=1).max())
    if jump > pixel / 2:
        raise InputError(
            f"'{folder}': slices of the series {uid} are shifted sideways against each other by up to {jump:.2g} mm;"
            " resample it first, or give a series of one field of view"
        )
    if (whole := float(np.linalg.norm(sideways[-1]))) > max(OFF_GRID * pixel, 1e-2):
        return [
            f"'{folder}': the slices of the series {uid} drift sideways by {whole:.2g} mm from the first to the last,"
            " which is ignored"
        ]
    return []


def even_places(places: np.ndarray, gap: float) -> np.ndarray:
    """Return the places of a grid of even gaps over slices at uneven places, mm."""
    # positions are rounded, so the last may be passed by a little
    return np.minimum(np.arange(int(places[-1] / gap + EVEN) + 1) * gap, places[-1])


def _short(one: Slice) -> str:
    return f"'{Path(one.path).name}'" + (f" frame {one.frame + 1}" if one.frame else "")


def _listed(values: Sequence[float] | np.ndarray) -> str:
    return ", ".join(f"{value:g}" for value in values)
