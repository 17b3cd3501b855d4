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
"""Reading the transform files of ITK, ANTs and 3D Slicer, and knowing those of other tools by name."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import itk
import numpy as np

from scripts.utils.errors import InputFileError
from scripts.utils.itk_messages import itk_reason

# ANTs writes affine transforms under the name of ITK's base class, which ITK's own reader does not know, and older
# versions of ITK those of Rigid3DTransform: matrix, translation and center, in the form of an affine transform
_AS_AFFINE = rb"(?:MatrixOffsetTransformBase|Rigid3DTransform)_(double|float)_3_3"
_START_BYTES = 65536
_MATLAB_HEADER = 20  # bytes: five numbers before the name of each array of a MATLAB 4 file
_MATLAB_SIZES = {0: 8, 1: 4}  # of a number: double, float
OTHER_SUFFIXES = {
    ".lta": ("FreeSurfer", "lta_convert --inlta IN --outitk OUT.txt"),
    ".m3z": ("FreeSurfer", "mri_warp_convert --inm3z IN --outitk OUT.nii.gz"),
    ".mgz": ("FreeSurfer", "mri_warp_convert --infswarp IN --outitk OUT.nii.gz"),
    ".xfm": ("MINC or FreeSurfer", "lta_convert --inmni IN --src MOVING --trg FIXED --outitk OUT.txt"),
    ".1d": ("AFNI", "write it as an affine transform of ITK: matrix and shift in LPS mm, as AFNI has them"),
    ".dcm": ("DICOM", "3D Slicer, which saves a registration object as .h5 or .tfm"),
    ".x5": ("NiTransforms", "nitransforms' to_filename(OUT.txt, fmt='itk')"),
}


def refuse_other_tools(path: str) -> None:
    """Refuse the transforms of tools that can be known, with what converts them.

    Raises:
        InputFileError: naming the tool and what to do.
    """
    for suffix, (tool, command) in OTHER_SUFFIXES.items():
        if path.lower().endswith(suffix):
            raise InputFileError(f"transform '{path}' is of {tool}; convert it to ITK's form first ({command})")
    if not path.lower().endswith((".mat", ".txt", ".tfm")):
        return
    with open(path, "rb") as file:
        start = file.read(_START_BYTES)
    if re.search(rb'^\s*\(Transform\s+"', start, re.MULTILINE):
        raise InputFileError(
            f"transform '{path}' is a parameter file of elastix; write its field (transformix -def all -tp FILE -out"
            ' FOLDER) and give deformationField.mhd or .nii.gz, or set (WriteITKCompositeTransform "true")'
        )
    if start.startswith(b"MATLAB 5.0") or start.startswith(b"MATLAB 7"):
        raise InputFileError(
            f"transform '{path}' is a MATLAB file, as of SPM; write the deformation (SPM: Util, Deformations) and give"
            " y_*.nii"
        )
    _refuse_matrix(path)


def _refuse_matrix(path: str) -> None:
    """Refuse bare matrices, which are alike in several tools; FSL's mean nothing without the headers of both images."""
    try:
        values = np.loadtxt(path, ndmin=2)
    except (ValueError, UnicodeDecodeError, OSError):
        return
    if values.shape in ((4, 4), (3, 4)):
        raise InputFileError(
            f"transform '{path}' is a {values.shape[0]} x 4 matrix without a header, as of FSL, NiftyReg, greedy or"
            " MRtrix; convert it to ITK's form first"
            " (FSL: c3d_affine_tool -ref FIXED -src MOVING FILE -fsl2ras -oitk OUT.txt;"
            " NiftyReg, greedy: c3d_affine_tool FILE -oitk OUT.txt)"
        )


def read_parts(path: str) -> list[Any]:
    """Read the transforms of a file of ITK; a float transform becomes a double one.

    Raises:
        InputFileError: the file can't be read, or holds a transform that ITK does not read.
    """
    if path.lower().endswith(".mat"):  # of a short one, ITK reads numbers that are not there
        list(_matlab_arrays(path, Path(path).read_bytes()))
    try:
        return _read(path)
    except RuntimeError as error:
        unknown = _unknown_kind(error)
        if unknown is None:
            raise InputFileError(f"transform '{path}' can't be read: {_reason(error)}") from error
    try:
        if re.fullmatch(_AS_AFFINE, unknown.encode()):
            with tempfile.TemporaryDirectory() as folder:
                return _read(_renamed(path, folder))
    except RuntimeError as error:
        unknown = _unknown_kind(error)
        if unknown is None:
            raise InputFileError(f"transform '{path}' can't be read: {_reason(error)}") from error
    raise InputFileError(
        f"transform '{path}' holds a transform of the kind {unknown}, which ITK can't read; write it as an affine,"
        " B-spline or displacement field transform"
    )


def _read(path: str) -> list[Any]:
    return [itk.down_cast(part) for part in itk.transformread(path)]


def _unknown_kind(error: RuntimeError) -> str | None:
    """Return the kind of transform that ITK has no class for, if that is why it failed."""
    found = re.search(r'Could not create an instance of "([^"]+)"', str(error))
    return found[1] if found else None


def _reason(error: RuntimeError) -> str:
    return re.sub(r"\w+\(0x[0-9a-f]+\): ", "", itk_reason(error))


def _renamed(path: str, folder: str) -> str:
    """Return the path of a copy in which affine transforms of other names have the name that ITK knows."""
    content, copy = Path(path).read_bytes(), Path(folder) / f"transform{Path(path).suffix.lower()}"
    if copy.suffix == ".mat":
        content = b"".join(_matlab_arrays(path, content))
    elif copy.suffix in (".txt", ".tfm"):
        content = re.sub(rb"(?m)^(\s*Transform:\s*)" + _AS_AFFINE, rb"\1AffineTransform_\2_3_3", content)
    else:  # HDF5: a text of the same length, which ends where zeros begin
        content = re.sub(
            _AS_AFFINE, lambda old: (b"AffineTransform_%s_3_3" % old[1]).ljust(len(old[0]), b"\0"), content
        )
    copy.write_bytes(content)
    return str(copy)


def _matlab_arrays(path: str, content: bytes) -> Iterator[bytes]:
    """Yield the arrays of a MATLAB 4 file (ITK's ``.mat``), renamed: header, name, numbers."""
    at = 0
    while at < len(content):
        start = content[at : at + _MATLAB_HEADER].ljust(_MATLAB_HEADER, b"\xff")  # of a file cut off: below zero
        header = np.frombuffer(start, dtype="<i4")
        if min(header) < 0 or header[0] // 10 not in _MATLAB_SIZES:
            raise InputFileError(f"transform '{path}' can't be read: it is damaged or no MATLAB 4 file of ITK")
        size = int(header[1]) * int(header[2]) * _MATLAB_SIZES[int(header[0]) // 10]
        first, last = at + _MATLAB_HEADER, at + _MATLAB_HEADER + int(header[4])
        at = last + size
        if at > len(content):
            raise InputFileError(f"transform '{path}' is cut off: it has {len(content)} bytes of {at}; copy it again")
        name = re.sub(_AS_AFFINE, rb"AffineTransform_\1_3_3", content[first:last])
        yield np.array([*header[:4], len(name)], dtype="<i4").tobytes() + name + content[last:at]
