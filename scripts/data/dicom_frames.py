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
"""What the header of a DICOM file states of each of its frames: place, orientation, size, and how values are stored.

A classic file holds one frame. The frames of an enhanced file have functional groups; those of older kinds (nuclear
medicine, RT dose) have one position and steps from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from pydicom.tag import Tag

from scripts.data.pydicom_versions import encoding
from scripts.utils.errors import InputFileError

TAGS = (
    *("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "SeriesDescription", "SeriesDate", "Modality", "ImageType"),
    *("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"),
    *("Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "PhotometricInterpretation"),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"),
    *("RescaleSlope", "RescaleIntercept", "ModalityLUTSequence", "DoseGridScaling"),
    *("SliceThickness", "SpacingBetweenSlices", "TemporalPositionIdentifier", "EchoTime"),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
    *("GridFrameOffsetVector", "DetectorInformationSequence", "SliceVector"),
)
# vectors of nuclear medicine that number volumes, not slices
NM_VOLUMES = (
    *("EnergyWindowVector", "DetectorVector", "PhaseVector", "RotationVector", "RRIntervalVector", "TimeSlotVector"),
    *("AngularViewVector", "TimeSliceVector"),
)
VARYING = (Tag("SOPInstanceUID"), Tag("ImagePositionPatient"))
RT_DOSE = "1.2.840.10008.5.1.4.1.1.481.2"
GRAY = ("MONOCHROME2", "MONOCHROME1")
BITS = (8, 16, 32, 64)
Numbers = tuple[float, ...]


class Slice(NamedTuple):
    """One frame of one file."""

    path: str
    frame: int
    """Which frame of the file, from 0."""
    position: Numbers | None
    """Center of the first voxel, LPS mm."""
    orientation: Numbers | None
    """Directions of the rows and the columns, LPS."""
    pixel_spacing: Numbers | None
    """Between rows, between columns, mm."""
    size: tuple[int, int]
    """Rows, columns."""
    thickness: float
    """Distance to the next slice that the header states, mm; 0 where it states none. Only used for a single slice."""
    photometric: str
    """PhotometricInterpretation."""
    bits: int
    """BitsStored."""
    kind: str
    """Of the stored values, as in numpy: i, u or f."""
    unused: tuple[int, int]
    """Bits of a stored word above and below those of the value, which may hold anything."""
    syntax: str
    """TransferSyntaxUID; empty in a file without a preamble."""
    rescale: tuple[float, float] | None
    """Slope and intercept; None where the header has neither."""
    lut_bits: int
    """Of the values of a modality LUT; 0 without one."""
    uid: str
    """SOPInstanceUID, which exact copies share."""
    volume: tuple[tuple[str, str], ...]
    """Tags of which two values never belong to one volume."""
    is_localizer: bool
    is_placed: bool = True
    """Whether the file states the position; False where it follows from SpacingBetweenSlices."""

    def name(self) -> str:
        """Return the file, and the frame of a file of several."""
        return f"'{self.path}'" + (f" (frame {self.frame + 1})" if self.frame else "")


def slices_of(path: str, header: Any, known: dict[Any, Slice]) -> list[Slice]:
    """Return the frames of a file in the order they are stored in.

    Args:
        path: for messages.
        header: of pydicom, with :data:`TAGS` and :data:`NM_VOLUMES`.
        known: what earlier calls made of the bytes of other headers; most slices of a series differ in two tags only,
            and decoding the others again takes half of the time.

    Raises:
        InputFileError: a tag that is needed is broken, or the places of the frames are not stated.
    """
    count = int(number(path, header, "NumberOfFrames", 1))
    if count < 1:
        raise InputFileError(f"'{path}': NumberOfFrames must be at least 1, got {count}; repair or remove the file")
    if count == 1 and not header.get("PerFrameFunctionalGroupsSequence"):
        key = _bytes(header)
        if key not in known:
            known[key] = _slice(path, 0, header, [header])
        position = numbers(path, header, "ImagePositionPatient", 3)
        return [known[key]._replace(path=path, position=position, uid=text(path, header, "SOPInstanceUID"))]
    if header.get("PerFrameFunctionalGroupsSequence"):
        return _enhanced(path, header, count)
    return _stepped(path, header, count)


def _bytes(header: Any) -> tuple[Any, ...]:
    """Return the undecoded tags of a header but those in which slices always differ."""
    tags = [tag for tag in header.keys() if tag not in VARYING]  # noqa: SIM118, a dataset iterates its elements
    syntax = getattr(header, "file_meta", {}).get("TransferSyntaxUID")
    return (syntax, encoding(header), *((tag, str(header.get_item(tag).value)) for tag in tags))


def _enhanced(path: str, header: Any, count: int) -> list[Slice]:
    """Return the frames of a file with functional groups: of a frame, shared, or the header's own."""
    per_frame = header.PerFrameFunctionalGroupsSequence
    if len(per_frame) != count:
        raise InputFileError(f"'{path}' has {count} frames but functional groups of {len(per_frame)}; export it again")
    shared = list(header.get("SharedFunctionalGroupsSequence") or [])[:1]
    return [_slice(path, k, header, macros([per_frame[k], *shared])) for k in range(count)]


def macros(groups: Sequence[Any]) -> list[Any]:
    """Return the items of all functional groups of a frame."""
    return [item for group in groups for element in group if element.VR == "SQ" for item in list(element.value)[:1]]


def _slice(path: str, frame: int, header: Any, places: Sequence[Any]) -> Slice:
    """Return one frame; ``places`` are the datasets that may hold what differs between frames, first come first."""

    def found(tag: str) -> Any:
        return next((place for place in places if tag in place), {})

    rows, columns = (int(number(path, header, tag, 0)) for tag in ("Rows", "Columns"))
    if rows < 1 or columns < 1:
        raise InputFileError(f"'{path}': Rows and Columns must be at least 1, got {rows} and {columns}")
    bits, kind, unused = _stored(path, header)
    lut = header.get("ModalityLUTSequence")
    thickness = next((abs(v) for t in ("SpacingBetweenSlices", "SliceThickness") if (v := _plain(found(t), t))), 0.0)
    volume = [
        (tag, f"{_plain(found(tag), tag):.4g}" if tag.endswith("Time") else str(found(tag).get(tag)))
        for tag in ("TemporalPositionIdentifier", "TemporalPositionIndex", "StackID", "EffectiveEchoTime", "EchoTime")
        if found(tag).get(tag) not in (None, "")
    ]
    return Slice(
        path,
        frame,
        numbers(path, found("ImagePositionPatient"), "ImagePositionPatient", 3),
        numbers(path, found("ImageOrientationPatient"), "ImageOrientationPatient", 6),
        numbers(path, found("PixelSpacing"), "PixelSpacing", 2),
        (rows, columns),
        thickness,
        text(path, header, "PhotometricInterpretation"),
        bits,
        kind,
        unused,
        str(getattr(header, "file_meta", {}).get("TransferSyntaxUID") or ""),
        _rescale(path, header, found),
        0 if not lut else 8 if lut[0].LUTDescriptor[2] <= 8 else 16,
        text(path, header, "SOPInstanceUID"),
        tuple(volume),
        "LOCALIZER" in [str(part).upper() for part in header.get("ImageType") or ()],
    )


def _stored(path: str, header: Any) -> tuple[int, str, tuple[int, int]]:
    """Return how many bits a stored value has, its kind, and the unused bits above and below."""
    photometric = text(path, header, "PhotometricInterpretation")
    refuse_color(path, photometric)
    if number(path, header, "SamplesPerPixel", 1) != 1:
        raise InputFileError(f"'{path}' has several values per voxel ({photometric}); give a series of gray images")
    allocated = int(number(path, header, "BitsAllocated", 0))
    if allocated in (32, 64) and "BitsStored" not in header and "PixelRepresentation" not in header:
        return allocated, "f", (0, 0)  # a parametric map
    bits = int(number(path, header, "BitsStored", allocated))
    if allocated not in BITS or not 1 <= bits <= allocated:
        raise InputFileError(
            f"'{path}': BitsAllocated must be one of {', '.join(map(str, BITS))} and BitsStored between 1 and that, got"
            f" {allocated} and {bits}; export the series again"
        )
    signed = number(path, header, "PixelRepresentation", -1)
    if signed not in (0, 1):
        raise InputFileError(
            f"'{path}': PixelRepresentation must be 0 (unsigned) or 1 (signed), got"
            f" {header.get('PixelRepresentation')!r}; repair or remove the slice"
        )
    high = int(number(path, header, "HighBit", bits - 1))
    if not bits - 1 <= high < allocated:
        raise InputFileError(f"'{path}': HighBit must be BitsStored - 1 ({bits - 1}), got {high}; export it again")
    return bits, "i" if signed else "u", (allocated - 1 - high, high + 1 - bits)


def _rescale(path: str, header: Any, found: Any) -> tuple[float, float] | None:
    """Return slope and intercept of a frame, or None."""
    if header.get("SOPClassUID") == RT_DOSE:
        slope, intercept = number(path, header, "DoseGridScaling", 0), 0.0
    else:
        sources = {tag: found(tag) or header for tag in ("RescaleSlope", "RescaleIntercept")}
        if all(source.get(tag) in (None, "") for tag, source in sources.items()):
            return None
        slope = number(path, sources["RescaleSlope"], "RescaleSlope", 1)
        intercept = number(path, sources["RescaleIntercept"], "RescaleIntercept", 0)
    if slope == 0:
        raise InputFileError(f"'{path}': the slope of its values is 0, so all are equal; export the series again")
    return slope, intercept


def _stepped(path: str, header: Any, count: int) -> list[Slice]:
    """Return the frames of a file that has the position of the first frame and steps along the normal."""
    for tag in NM_VOLUMES:
        kinds = len(set(numbers(path, header, tag) or ()))
        if kinds > 1:
            raise InputFileError(f"'{path}' holds {kinds} volumes or views ({tag}); give one of them")
    detectors = list(header.get("DetectorInformationSequence") or [])
    places = [header, *detectors[:1]]
    if len(detectors) > 1:
        raise InputFileError(f"'{path}' holds the images of {len(detectors)} detectors; give one reconstructed volume")
    first = _slice(path, 0, header, places)
    if first.position is None or first.orientation is None:
        raise InputFileError(
            f"'{path}' has {count} frames but no ImagePositionPatient and ImageOrientationPatient of each: where they"
            " lie is unknown; export it as enhanced or single-frame DICOM, or convert it to NIfTI or NRRD"
        )
    normal = np.cross(first.orientation[:3], first.orientation[3:])
    steps = _steps(path, header, count, normal, first.position[2])
    return [
        first._replace(
            frame=k,
            position=tuple(float(v) for v in np.array(first.position) + steps[k] * normal),
            is_placed="GridFrameOffsetVector" in header,
        )
        for k in range(count)
    ]


def _steps(path: str, header: Any, count: int, normal: np.ndarray, z: float) -> np.ndarray:
    """Return how far the frames lie from the first along the normal, mm."""
    offsets = numbers(path, header, "GridFrameOffsetVector")
    if offsets is not None:
        absolute = offsets[0] != 0  # then these are z in the patient, of an axial grid
        axial = np.allclose(normal, [0, 0, 1], atol=1e-3)
        if len(offsets) != count or (absolute and not (axial and np.isclose(offsets[0], z, atol=0.01))):
            raise InputFileError(
                f"'{path}': GridFrameOffsetVector does not give the places of its {count} frames; export it again"
            )
        return np.array(offsets) - offsets[0]
    step = number(path, header, "SpacingBetweenSlices", 0)
    if step <= 0:
        raise InputFileError(
            f"'{path}' has {count} frames without positions of their own, and SpacingBetweenSlices is {step:g}: on"
            " which side the next frame lies is not certain; export it as enhanced or single-frame DICOM"
        )
    order = numbers(path, header, "SliceVector") or tuple(range(count))
    if len(order) != count:
        raise InputFileError(f"'{path}': SliceVector has {len(order)} numbers for {count} frames; export it again")
    return (np.array(order) - order[0]) * step


def refuse_color(path: str, photometric: str) -> None:
    """Refuse a PhotometricInterpretation of color; without one, an image is gray."""
    if photometric.strip().upper() not in ("", *GRAY):
        raise InputFileError(f"'{path}' is a color image ({photometric}); give a series of gray images")


def text(path: str, header: Any, tag: str, default: str = "") -> str:
    """Return a tag as text, or the default where it is absent."""
    try:
        value = header.get(tag)
        return default if value is None else str(value)
    except Exception as error:  # of many kinds: values are only decoded now
        raise InputFileError(f"'{path}': {tag} can't be read ({error}); repair or remove the slice") from error


def number(path: str, header: Any, tag: str, default: float) -> float:
    """Return the number of a tag, or the default where it is absent or empty."""
    try:
        value = header.get(tag)
        result = float(default if value is None or value == "" else value)
        if not np.isfinite(result):
            raise ValueError(f"got {result}")
    except Exception as error:
        raise InputFileError(f"'{path}': {tag} must be a number ({error}); repair or remove the slice") from error
    return result


def numbers(path: str, header: Any, tag: str, count: int | None = None) -> Numbers | None:
    """Return the numbers of a tag, or None where it is absent or empty."""
    try:
        value = header.get(tag)
        parts = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value]
        if parts in ([], [None], [""]):
            return None
        values = tuple(float(one) for one in parts)
        if (count is not None and len(values) != count) or not np.isfinite(values).all():
            raise ValueError(f"got {values}")
    except Exception as error:
        raise InputFileError(
            f"'{path}': {tag} must be {count or 'finite'} numbers ({error}); repair or remove the slice"
        ) from error
    return values


def _plain(header: Any, tag: str) -> float:
    """Return a number that only helps, 0 where it is no number."""
    try:
        value = float(header.get(tag) or 0)
    except Exception:
        return 0.0
    return value if np.isfinite(value) else 0.0
