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
"""DICOM series, in a folder or in one file: which there are, in which order their slices lie, and their geometry.

Positions alone decide order, spacing and direction. What does not make one regular volume is refused.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import itk
import numpy as np
import pydicom
from pydicom.tag import BaseTag, Tag
from pydicom.uid import UID

from scripts.data.dicom_frames import NM_VOLUMES, RT_DOSE, TAGS, Slice, slices_of, text
from scripts.data.dicom_order import Stack, even_places, in_order, stack, without_copies
from scripts.data.dicom_packing import PackedSlices
from scripts.data.dicom_voxels import read_values, values_type
from scripts.data.header import Header
from scripts.utils.errors import InputError, InputFileError
from scripts.utils.regular_files import read_start

READ_TAGS: list[BaseTag] = [Tag(name) for name in (*TAGS, *NM_VOLUMES)]
SEGMENTATIONS = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")
# what may bear a series' UID without being a slice of its volume: captured screens, doses
NO_SLICES = (RT_DOSE, *(f"1.2.840.10008.5.1.4.1.1.7{part}" for part in ("", ".1", ".2", ".3", ".4")))
LONGEST_UID = 64  # characters; a damaged header may have anything in its place
NAMES = (".dcm", ".dicom", ".ima")


class Series(NamedTuple):
    """The slices of one volume, in the order of their position."""

    uid: str
    description: str
    modality: str
    slices: tuple[Slice, ...]
    problem: str | None = None
    """Why it can't be used."""
    files: int = 0
    warnings: tuple[str, ...] = ()
    """One line each, for a person."""

    def __str__(self) -> str:
        """Return what a person needs to choose."""
        # of damaged files, texts may be long
        return f"{self.uid[:64]} ({self.modality[:16]} '{self.description[:64]}', {self.files} files)"


def is_dicom(path: str, start: bytes | None = None) -> bool:
    """Tell whether a file is DICOM: by its preamble, its name, or its first tag if it has no preamble.

    Args:
        path: file or folder.
        start: first bytes of the file, where the caller has them already.
    """
    if not Path(path).is_file():
        return False
    start = (read_start(path) if start is None else start)[:132]
    return (
        start[128:] == b"DICM"
        or (path.lower().endswith(NAMES) and not start.startswith((b"\x1f\x8b", b"NRRD", b"n+1")))
        or (start[:2] in (b"\x02\x00", b"\x08\x00") and len(start) == 132 and start[2] <= 0x20 and start[3] == 0)
    )


def list_series(folder: str) -> list[Series]:
    """Return the image series in a folder, or of one file, by their UIDs.

    What holds no images (structures, segmentations, reports) is left out.
    """
    return _listed(folder)[0]


def _listed(folder: str) -> tuple[list[Series], set[str], list[str]]:
    """Return the series, what else of DICOM there is, and the DICOM files that can't be read."""
    found: dict[str, list[tuple[str, Any]]] = {}
    others: set[str] = set()
    broken: list[str] = []
    for path in sorted(Path(folder).iterdir()) if Path(folder).is_dir() else [Path(folder)]:
        if not path.is_file() or path.name.startswith(".") or path.name == "DICOMDIR":
            continue
        try:
            # files without a preamble are DICOM, too; the tags decide
            header = pydicom.dcmread(path, force=True, stop_before_pixels=True, specific_tags=READ_TAGS)
            kind, uid = UID(str(header.get("SOPClassUID") or "")), str(header.get("SeriesInstanceUID") or "")
        except Exception:  # of many kinds, from files of any other format
            if is_dicom(str(path)):
                broken.append(str(path))
            continue
        is_image = "Image Storage" in kind.name
        if ("Rows" in header or is_image) and kind not in SEGMENTATIONS:
            found.setdefault(uid, []).append((str(path), header))
        elif kind:
            others.add("".join(letter for letter in kind.name if letter.isprintable())[:LONGEST_UID])
        elif is_dicom(str(path)):
            broken.append(str(path))
    return [_series_or_problem(uid, files) for uid, files in sorted(found.items())], others, broken


def _series_or_problem(uid: str, files: Sequence[tuple[str, Any]]) -> Series:
    """Return a series; one that is broken does no harm to others in the folder."""
    described = []
    for tag in ("SeriesDescription", "Modality"):
        try:
            described.append(text(*files[0], tag))
        except InputFileError:
            described.append("")
    series = Series(uid, described[0], described[1] or "?", ())
    try:
        return _series(series, files)
    except InputError as error:
        return series._replace(problem=str(error), files=len(files))
    except Exception as error:  # of many kinds, from sequences that are cut off
        line = f"'{files[0][0]}' or a slice beside it can't be read ({error}); export the series again"
        return series._replace(problem=line, files=len(files))


def _series(series: Series, files: Sequence[tuple[str, Any]]) -> Series:
    """Return a series with its slices; what belongs to no volume is left out with a warning."""
    warnings = []
    kinds = Counter(UID(str(header.get("SOPClassUID") or "")) for _, header in files)
    volumes = [kind for kind in kinds if kind not in NO_SLICES] or list(kinds)
    if len(volumes) > 1:
        raise InputFileError(
            f"'{files[0][0]}': its series {series.uid} mixes {' and '.join(sorted(kind.name for kind in volumes))};"
            " move each to its own folder"
        )
    used = [(path, header) for path, header in files if header.get("SOPClassUID", "") == volumes[0]]
    if len(used) < len(files):
        names = ", ".join(sorted(kind.name for kind in kinds if kind != volumes[0]))
        warnings.append(
            f"'{Path(files[0][0]).parent}': {len(files) - len(used)} files of the series {series.uid} are no slices of"
            f" its volume ({names}) and are left out"
        )
    known: dict[Any, Slice] = {}
    slices = [one for path, header in used for one in slices_of(path, header, known)]
    localizers = [one for one in slices if one.is_localizer]
    if 0 < len(localizers) < len(slices):
        slices = [one for one in slices if not one.is_localizer]
        warnings.append(
            f"{localizers[0].name()} and its like are localizers ({len(localizers)} slices) and are left out"
        )
    slices, copies = without_copies(slices)
    return series._replace(
        slices=tuple(in_order(slices)), files=len({one.path for one in slices}), warnings=(*warnings, *copies)
    )


def choose_series(folder: str, uid: str | None = None) -> Series:
    """Return the series of a folder or a file, or the one that is named.

    Args:
        folder: with the files; or one file.
        uid: SeriesInstanceUID, or its last components if they are unique; needed where there are several.

    Raises:
        InputError: no series, several without a choice, or a choice that is not there.
    """
    series, others, broken = _listed(folder)
    if not series:
        held = f" (it holds {', '.join(sorted(others))})" if others else ""
        inner = [path.name for path in sorted(Path(folder).iterdir()) if path.is_dir()] if Path(folder).is_dir() else []
        if inner:
            held += f" (its folders, one of which may have the series: {', '.join(inner[:5])})"
        what = "a folder without DICOM images" if Path(folder).is_dir() else "not a DICOM image"
        raise InputFileError(f"'{folder}' is {what}{held}; give NIfTI, NRRD, MHA/MHD or a folder with a DICOM series")
    listed = "; ".join(str(one) for one in series[:8])
    if uid is None:
        # a dose lies beside the images it was planned on
        images = [one for one in series if one.modality != "RTDOSE"] or series
        if len(images) > 1:
            raise InputError(
                f"'{folder}' holds {len(series)} DICOM series: {listed}; choose one by its UID (fixed_series or"
                " moving_series of a registration), or move it to its own folder"
            )
        return _usable(images[0], broken)
    matching = [one for one in series if one.uid == uid] or [one for one in series if one.uid.endswith(f".{uid}")]
    if len(matching) != 1:
        what = "no" if not matching else "more than one"
        raise InputError(f"'{folder}' holds {what} DICOM series with the UID '{uid}'; it holds {listed}")
    return _usable(matching[0], broken)


def _usable(series: Series, broken: Sequence[str]) -> Series:
    if series.problem is not None:
        raise InputFileError(series.problem)
    if not broken:
        return series
    more = f" and {len(broken) - 1} more files" if len(broken) > 1 else ""
    line = f"'{broken[0]}'{more} can't be read as DICOM: if it is a slice, the series lacks it"
    return series._replace(warnings=(*series.warnings, line))


@dataclass(frozen=True)
class SeriesVoxels:
    """The voxels of a series whose headers were read."""

    head: Series
    """Without its slices."""
    packed: PackedSlices
    grid: Stack

    @property
    def series(self) -> Series:
        """The series, with its slices."""
        return self.head._replace(slices=self.packed.slices())

    def read(self) -> Any:
        """Return the voxels as an ITK image without geometry; slices with uneven gaps are resampled to even ones.

        Raises:
            InputFileError: naming the file whose voxels can't be read.
        """
        values = read_values(self.packed.slices())
        if not self.grid.is_even:
            values = _even(values, self.grid.places, self.grid.spacing[2])
        return itk.image_from_array(values)


def open_series(path: str, uid: str | None = None) -> tuple[Header, SeriesVoxels]:
    """Return the header of the volume of a series, and what reads its voxels; no voxel is read.

    Args:
        path: folder, or one DICOM file.
        uid: which series of the folder.

    Raises:
        InputError: there is no such series, or it is no regular volume.
    """
    series = choose_series(path, uid)
    grid = stack(path, series.uid, series.slices)
    return _header(path, series, grid), SeriesVoxels(series._replace(slices=()), PackedSlices.of(series.slices), grid)


def _header(path: str, series: Series, grid: Stack) -> Header:
    warnings = [*series.warnings, *grid.warnings]
    if any(one.photometric.strip().upper() == "MONOCHROME1" for one in series.slices):
        warnings.append(
            f"'{path}': the series {series.uid} is MONOCHROME1 (low values are shown bright): its values are used as"
            " they are stored, not inverted"
        )
    if not all(one.is_placed for one in series.slices):
        warnings.append(
            f"'{path}': only the first frame of the series {series.uid} has a position: the others are placed"
            f" every {grid.spacing[2]:g} mm along the normal, by SpacingBetweenSlices"
        )
    return Header(
        shape=grid.shape,
        spacing=grid.spacing,
        direction=grid.direction,
        origin=grid.origin,
        components=1,
        dtype=values_type(series.slices).name,
        warnings=tuple(warnings),
    )


def _even(values: np.ndarray, places: np.ndarray, gap: float) -> np.ndarray:
    """Return slices (K, J, I), at the given places in mm, interpolated to even gaps."""
    wanted = even_places(places, gap)
    above = np.clip(np.searchsorted(places, wanted, side="right"), 1, len(places) - 1)
    exact = np.float32 if values.dtype.itemsize <= 2 else np.float64
    share = ((wanted - places[above - 1]) / (places[above] - places[above - 1])).astype(exact)[:, None, None]
    mixed = values[above - 1] * (1 - share) + values[above] * share
    mixed = np.rint(mixed) if values.dtype.kind in "iu" else mixed
    return np.ascontiguousarray(mixed.astype(values.dtype))
