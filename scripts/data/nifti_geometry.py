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
"""The affine of a NIfTI file: one rule for headers that store it twice.

A NIfTI header may hold two affines, sform and qform, and the spacing a third time (pixdim). The sform counts if its
code is above 0, else the qform if its code is (nifti1.h, methods 3 and 2; so does nibabel). Where the others contradict
it by more than a tenth of a voxel, a warning says how much is at stake: ITK and 3D Slicer choose otherwise.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from nibabel.quaternions import quat2mat

from scripts.data.header_geometry import AGREE_VOXELS, corner_gap_mm, without_shear
from scripts.geometry.world_axes import SIGNS
from scripts.utils.errors import InputFileError

XFORM_CODES = range(6)
MM_OF_UNIT = {1: 1000.0, 2: 1.0, 3: 0.001}  # of xyzt_units; 0 says nothing: mm
SECONDS_OF_UNIT = {8: 1.0, 16: 1e-3, 24: 1e-6}
_UNIT_NAMES = {1: "meters", 3: "micrometers"}
_LONGEST_QUATERNION = 1.01  # squared length of (b, c, d): longer is no rounding


class NiftiGeometry(NamedTuple):
    """A header's grid."""

    affine: np.ndarray
    """(4, 4), voxel (i, j, k) -> world RAS mm, axes perpendicular."""
    code: int
    """xform code of the affine: what world it is (1 scanner, 2 aligned, 3 Talairach, 4 MNI, 5 template); 0: none."""
    warnings: tuple[str, ...]


def nifti_geometry(path: str, header: Any, shape: tuple[int, ...]) -> NiftiGeometry:
    """Return the geometry of a raw header (nibabel's, unchecked).

    Args:
        path: file, for messages.
        header: of :func:`scripts.data.volume_integrity.nifti_header`, NIfTI 1 or 2.
        shape: (I, J, K).

    Raises:
        InputFileError: it has no usable geometry.
    """
    pixdim = np.array(header["pixdim"][1:4], float)
    sform_code, qform_code = int(header["sform_code"]), int(header["qform_code"])
    for name, code in (("sform_code", sform_code), ("qform_code", qform_code)):
        if code not in XFORM_CODES:
            raise InputFileError(
                f"'{path}' has {name} = {code} in its header, which names no world; repair it (0 to 5)"
            )
    said: list[str] = []
    if sform_code > 0:
        name = f"sform, code {sform_code}"
        rows = [header["srow_x"], header["srow_y"], header["srow_z"], [0, 0, 0, 1]]
        sform = _with_spacing(np.vstack(rows).astype(float), pixdim)
        affine, said_of_shear = without_shear(path, sform, shape, name)
        code = sform_code
        said += [*said_of_shear, *_contradictions(path, header, affine, shape, pixdim)]
    elif qform_code > 0:
        if not (pixdim > 0).all():
            raise InputFileError(
                f"'{path}' has pixdim = {_text(pixdim)} in its header, and its affine (qform) needs numbers above 0;"
                " repair it"
            )
        affine, code = _qform(path, header, pixdim), qform_code
    else:
        if not (pixdim > 0).all():
            raise InputFileError(f"'{path}' has pixdim = {_text(pixdim)} and no affine in its header; repair it")
        affine, code = np.diag([*(SIGNS * pixdim[:3]), 1.0]), 0
        said.append(
            f"'{path}' records no orientation (qform_code and sform_code are 0): left and right, and its"
            " place, are unknown; its axes are taken for left, posterior and superior, as ITK and 3D Slicer do, where"
            " nibabel takes the second for anterior. Write its affine into the header if you know it"
        )
    unit = int(header["xyzt_units"]) & 0x07
    scale = MM_OF_UNIT.get(unit, 1.0)
    if scale != 1:
        affine[:3] *= scale
        said.append(
            f"'{path}': its header states lengths in {_UNIT_NAMES[unit]} (xyzt_units {unit}): its spacing is"
            f" {_text(np.linalg.norm(affine[:3, :3], axis=0))} mm; nibabel does not convert it"
        )
    return NiftiGeometry(affine, code, tuple(said))


def _with_spacing(sform: np.ndarray, pixdim: np.ndarray) -> np.ndarray:
    """Return an sform with the lengths of pixdim where these are its own but for rounding, as ITK reads it."""
    lengths = np.linalg.norm(sform[:3, :3], axis=0)
    if not (lengths > 0).all() or not np.allclose(lengths, pixdim, rtol=1e-5):
        return sform
    exact = sform.copy()
    exact[:3, :3] *= pixdim / lengths
    return exact


def time_step(header: Any) -> float:
    """Return the seconds from frame to frame; 1 where the header says nothing that can be."""
    step = float(header["pixdim"][4]) * SECONDS_OF_UNIT.get(int(header["xyzt_units"]) & 0x38, 1.0)
    return step if np.isfinite(step) and step > 0 else 1.0


def _contradictions(path: str, header: Any, sform: np.ndarray, shape: tuple[int, ...], pixdim: np.ndarray) -> list[str]:
    """Return a line where the qform, or without it the spacing, is not that of the sform that is used."""
    spacing = np.linalg.norm(sform[:3, :3], axis=0)
    near = AGREE_VOXELS * spacing.min()
    if int(header["qform_code"]) > 0 and (pixdim > 0).all():
        try:
            qform = _qform(path, header, pixdim)
        except InputFileError as error:
            return [f"{error}. The sform is used, as nibabel does; ITK and 3D Slicer may not. Repair the header"]
        gap = corner_gap_mm(qform, sform, shape)
        if gap <= near:
            return []
        codes = f"sform (code {int(header['sform_code'])}) and qform (code {int(header['qform_code'])})"
        return [
            f"'{path}': {codes} contradict each other by up to {gap:.3g} mm: the sform is used, as nibabel does; ITK"
            " and 3D Slicer may use the other. Repair the header (copy the right one into both)"
        ]
    gap = float((np.abs(pixdim - spacing) * (np.array(shape[:3]) - 1)).max())
    if (pixdim > 0).all() and gap <= near:
        return []
    return [
        f"'{path}': pixdim is {_text(pixdim)} mm and the sform's spacing {_text(spacing)} mm (up to {gap:.3g} mm over"
        " the image): the sform is used, as nibabel does; ITK and 3D Slicer may use the other. Repair the header"
    ]


def _qform(path: str, header: Any, pixdim: np.ndarray) -> np.ndarray:
    """Return the affine of quaternion, pixdim and offset, as nifti1.h's method 2 computes it."""
    vector = np.array([float(header[f"quatern_{name}"]) for name in "bcd"])
    squared = float(vector @ vector)
    offset = np.array([float(header[f"qoffset_{axis}"]) for axis in "xyz"])
    if not np.isfinite(offset).all():
        raise InputFileError(f"'{path}' has qoffset = {_text(offset)} in its header (qform): no place")
    if not squared <= _LONGEST_QUATERNION:
        raise InputFileError(f"'{path}' has quatern_b, c, d = {_text(vector)} in its header (qform): no rotation")
    vector = vector / max(1.0, np.sqrt(squared))
    first = np.sqrt(max(0.0, 1.0 - float(vector @ vector)))
    affine = np.eye(4)
    affine[:3, :3] = quat2mat([first, *vector]) * pixdim
    if float(header["pixdim"][0]) < 0:
        affine[:3, 2] *= -1
    affine[:3, 3] = offset
    return affine


def _text(values: np.ndarray) -> str:
    return " x ".join(f"{float(value):.6g}" for value in values)
