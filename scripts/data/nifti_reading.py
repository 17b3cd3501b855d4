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
"""NIfTI files, 1 and 2: header and voxels, through nibabel, by the geometry of :mod:`scripts.data.nifti_geometry`.

ITK for Python would lose some of it: it takes NaN for 0, has no images of some integer types, and no NIfTI-2.
"""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import itk
import numpy as np
from nibabel.spatialimages import HeaderDataError
from nibabel.volumeutils import array_from_file

from scripts.data.header import Header
from scripts.data.itk_types import to_itk_type
from scripts.data.nifti_geometry import nifti_geometry, time_step
from scripts.data.nifti_writing import GzipFile
from scripts.data.volume_integrity import check_begin, check_claim, check_nifti_numbers, voxel_file
from scripts.geometry.world_axes import SIGNS
from scripts.utils.errors import InputFileError

_DEEPEST = 3


def nifti_file_header(path: str, raw: Any) -> Header:
    """Return what a raw header (nibabel's, unchecked) states.

    Raises:
        InputFileError: the header is damaged, or claims more than there is memory for.
    """
    check_nifti_numbers(path, raw)
    dtype, (shape, components) = _dtype(path, raw), _shape(path, raw)
    check_claim(path, shape, dtype.itemsize * (1 if dtype.names else components))
    full = (*shape, 1, 1)[:3]
    geometry = nifti_geometry(path, raw, full)
    axes = np.diag(SIGNS) @ geometry.affine[:3, :3]
    spacing, direction = np.linalg.norm(axes, axis=0), np.eye(len(shape))
    count = min(len(shape), _DEEPEST)
    direction[:count, :count] = (axes / spacing)[:count, :count]
    more = len(shape) - count
    return Header(
        shape=shape,
        spacing=(*(float(value) for value in spacing[:count]), *(time_step(raw),) * more),
        direction=direction,
        origin=(*(float(value) for value in (SIGNS * geometry.affine[:3, 3])[:count]), *(0.0,) * more),
        components=components,
        dtype="" if dtype.names else scaled_type(dtype, *_scale(path, raw)).name,  # colors have no single type
        xform_code=geometry.code,
        warnings=geometry.warnings,
    )


@dataclass(frozen=True)
class NiftiVoxels:
    """The voxels of a NIfTI file whose header was read."""

    path: str
    raw: Any
    """The header, as nibabel has it, unchecked."""
    has_colors: bool
    is_vector: bool

    def read(self) -> Any:
        """Return the voxels as an ITK image without geometry.

        Raises:
            InputFileError: the file is cut off or damaged, or has colors.
        """
        if self.has_colors:
            raise InputFileError(f"'{self.path}' has colors; give an image with one value per voxel")
        values = to_itk_type(read_nifti(self.path, self.raw))
        axes = values.ndim - self.is_vector
        order = (*range(axes)[::-1], *((axes,) if self.is_vector else ()))
        return itk.image_from_array(np.ascontiguousarray(values.transpose(order)), is_vector=self.is_vector)


def open_nifti(path: str, raw: Any) -> tuple[Header, NiftiVoxels]:
    """Return the header of a NIfTI file, and what reads its voxels.

    Raises:
        InputFileError: see :func:`nifti_file_header`.
    """
    header = nifti_file_header(path, raw)
    is_vector = header.components > 1
    return header, NiftiVoxels(path, raw, is_vector and header.dtype == "", is_vector)


def read_nifti(path: str, raw: Any) -> np.ndarray:
    """Return the voxels after the file's scaling, (I, J, K) or (I, J, K, T), of vectors (I, J, K, C).

    Raises:
        InputFileError: the file is cut off or damaged.
    """
    dtype, (shape, components) = _dtype(path, raw), _shape(path, raw)
    begins, needed, name = check_begin(path, raw), voxels_end(path, raw), voxel_file(path)
    whole = (*shape, components) if components > 1 and not dtype.names else shape
    held = Path(name).stat().st_size
    is_packed = name.lower().endswith(".gz")
    if not is_packed and held < needed:
        raise InputFileError(f"'{name}' is cut off: it has {held} bytes of {needed}; copy it again")
    try:
        with GzipFile(name, "rb") if is_packed else open(name, "rb") as stream:
            values = array_from_file(whole, dtype, stream, begins, mmap=False)
            while is_packed and stream.read(2**22):  # to the checksum at its end
                pass
    except MemoryError:
        raise
    except (OSError, EOFError, ValueError, zlib.error) as error:  # OSError of nibabel, the others of the compressors
        short = re.match(r"Expected (\d+) bytes, got (\d+) bytes", str(error))  # nibabel's, of the voxels alone
        if short:
            held = begins + int(short[2])
            raise InputFileError(f"'{name}' is cut off: it has {held} bytes of {needed}; copy it again") from error
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputFileError(f"'{name}' is cut off or damaged ({reason}); copy it again") from error
    slope, intercept = _scale(path, raw)
    kind = scaled_type(dtype, slope, intercept)
    if (slope, intercept) == (1.0, 0.0):
        return values.astype(kind, copy=False)
    return (values.astype(np.float64) * slope + intercept).astype(kind, copy=False)


def voxels_end(path: str, raw: Any) -> int:
    """Return how many bytes the file of the voxels holds at least, uncompressed.

    Raises:
        InputFileError: the header states no type, no shape or no beginning of the voxels.
    """
    shape, components = _shape(path, raw)
    dtype = _dtype(path, raw)
    count = int(np.prod(shape, dtype=object)) * (1 if dtype.names else components)
    return check_begin(path, raw) + count * dtype.itemsize


def _dtype(path: str, raw: Any) -> np.dtype:
    """Return the type in the file, of its byte order."""
    try:
        dtype = np.dtype(raw.get_data_dtype())
    except (HeaderDataError, KeyError):
        dtype = np.dtype("V")
    if dtype.kind == "c":
        raise InputFileError(f"'{path}' has complex values; give their magnitude")
    if dtype.kind not in "iuf" and dtype.names is None:
        raise InputFileError(f"'{path}' has values of a type (datatype {int(raw['datatype'])}) that can't be read")
    return dtype


def _shape(path: str, raw: Any) -> tuple[tuple[int, ...], int]:
    """Return the shape, at most (I, J, K, T), and the number of values a voxel; trailing axes of length 1 are none."""
    dims = [int(size) for size in raw["dim"]]
    if not 1 <= dims[0] <= 7 or min(dims[1 : dims[0] + 1][:_DEEPEST]) < 1:
        raise InputFileError(f"'{path}' has dim = {dims} in its header, no shape of voxels; repair it")
    sizes = [max(size, 1) for size in dims[1 : dims[0] + 1]]
    dtype = raw.get_data_dtype()
    components = len(dtype.names) if dtype.names else 1
    if len(sizes) == 5 and sizes[4] > 1 and not dtype.names:  # the fifth axis holds the values of a voxel
        components = sizes.pop()
    while len(sizes) > _DEEPEST and sizes[-1] == 1:
        sizes.pop()
    if len(sizes) > 4:
        raise InputFileError(f"'{path}' is {len(sizes)}-D ({' x '.join(map(str, sizes))}); give a 3-D volume")
    return tuple(sizes), components


def _scale(path: str, raw: Any) -> tuple[float, float]:
    """Return slope and intercept; 1 and 0 where a slope of 0 or none says that nothing is scaled."""
    slope, intercept = float(raw["scl_slope"]), float(raw["scl_inter"])
    if not np.isfinite(slope) or slope == 0:
        return 1.0, 0.0
    if not np.isfinite(intercept):
        raise InputFileError(f"'{path}' has scl_inter = {intercept:g} in its header; repair it")
    return slope, intercept


def scaled_type(dtype: np.dtype, slope: float, intercept: float) -> np.dtype:
    """Return the type of the values: the file's own unless they are scaled."""
    if dtype.kind == "f" and dtype.itemsize > 8:  # of 128 bits
        return np.dtype(np.float64)
    if (slope, intercept) == (1.0, 0.0) or dtype.names:
        return dtype.newbyteorder("=")
    return np.dtype(np.float32 if dtype.itemsize <= 2 or dtype == np.float32 else np.float64)
