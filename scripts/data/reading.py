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
"""Reading volumes: the one place where headers of images are read, and a reader for MONAI's ``LoadImage``.

NIfTI is read by nibabel, DICOM by ``scripts.data.dicom_series``, all else by ITK; :func:`read_header` settles what
their headers leave open, so that geometry means the same whatever the format. Inputs are only ever opened for reading.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import itk
import numpy as np
from monai.data import ITKReader

from scripts.data.dicom_series import is_dicom, read_series, series_header
from scripts.data.header import Header
from scripts.data.header_geometry import without_shear
from scripts.data.itk_types import numpy_type_name, readable_type, to_itk_type
from scripts.data.nifti_reading import nifti_file_header, read_nifti
from scripts.data.text_headers import is_text_header, length_in_mm, names_no_world, unscaled
from scripts.data.volume_integrity import (
    check_analyze,
    check_claim,
    check_complete,
    check_compression,
    check_metaimage,
    check_nrrd,
    is_nifti,
    nifti_header,
)
from scripts.utils.errors import InputFileError
from scripts.utils.itk_messages import itk_reason
from scripts.utils.regular_files import check_regular

logger = logging.getLogger(__name__)
# MONAI warns at every LoadImage that a GPU decoder for DICOM is missing; DICOM is read by ITK here
logging.getLogger("monai.data.nvimgcodec_pydicom_plugin").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", message="NvImgCodecPydicomReader")

FORMATS = "NIfTI, NRRD, MHA/MHD or a folder with one DICOM series"
# what the rest of the bundle needs; the rest of a header (patient data in DICOM) is not carried along
KEPT_META = ("affine", "original_affine", "spatial_shape", "space", "original_channel_dim")
_WITH_WORLD = ("NrrdImageIO", "MetaImageIO", "MINCImageIO", "HDF5ImageIO", "MGHImageIO")
_EXACT_IN_FLOAT32 = 2**24


class Volume(NamedTuple):
    """A file that was read."""

    image: Any
    """ITK image, with the header's geometry."""
    header: Header


def read_header(path: str, series: str | None = None) -> Header:
    """Read the header of an image file or of a DICOM series in a folder, not the voxels.

    Args:
        path: file or folder.
        series: UID of the series, where the folder holds several.

    Raises:
        InputFileError: no reader knows the file, or the header is damaged or says nothing that can be relied on; the
            message starts with the path.
    """
    check_regular(path)
    check_compression(path)
    raw = nifti_header(path)
    if raw is not None and is_nifti(raw):
        return nifti_file_header(path, raw)
    if raw is not None:
        check_analyze(path, raw)
    if Path(path).is_dir() or is_dicom(path):
        header = series_header(path, series)
        check_claim(path, header.shape, np.dtype(header.dtype).itemsize)
        return header
    image_io = _open(path)
    if raw is None and image_io.GetNameOfClass() == "NiftiImageIO":  # ITK has rules of its own for its geometry
        raise InputFileError(f"'{path}' has a damaged NIfTI header (sizeof_hdr); repair it, or write the file again")
    count = image_io.GetNumberOfDimensions()
    shape = [int(image_io.GetDimensions(axis)) for axis in range(count)]
    components = int(image_io.GetNumberOfComponents())
    check_claim(path, tuple(shape), components * int(image_io.GetComponentSize()))
    return _settled(path, image_io, tuple(shape), components)


def _settled(path: str, image_io: Any, shape: tuple[int, ...], components: int) -> Header:
    """Return the header that ITK read, in mm, with perpendicular axes."""
    axes = range(len(shape))
    spacing = np.array([float(image_io.GetSpacing(axis)) for axis in axes])
    direction = np.array([image_io.GetDirection(axis) for axis in axes]).T
    origin = np.array([float(image_io.GetOrigin(axis)) for axis in axes])
    said: list[str] = []
    count = min(3, len(shape))
    if not np.all(np.isfinite(spacing[:count])) or np.any(spacing[:count] <= 0):
        raise InputFileError(
            f"'{path}' has the spacing {' x '.join(f'{value:g}' for value in spacing[:count])} mm; it must be above"
            " zero: repair the header"
        )
    if image_io.GetNameOfClass() not in _WITH_WORLD or names_no_world(path):
        said.append(
            f"'{path}' records no orientation: left and right are unknown; its axes are taken for left,"
            " posterior and superior. Convert it to NIfTI, NRRD or MHA with the right geometry"
        )
    if is_text_header(path):
        said += unscaled(path)
        scale, unit = length_in_mm(path)
        if unit is not None:
            spacing[:count], origin[:count] = spacing[:count] * scale, origin[:count] * scale
            text = " x ".join(f"{value:.6g}" for value in spacing[:count])
            said.append(f"'{path}': its header states lengths in {unit}: its spacing is {text} mm")
    if count == 3:
        affine = np.eye(4)
        affine[:3, :3], affine[:3, 3] = direction[:3, :3] * spacing[:3], origin[:3]
        affine, of_shear = without_shear(path, affine, shape, "directions of the axes")
        direction[:3, :3], origin[:3] = affine[:3, :3] / spacing[:3], affine[:3, 3]
        said += of_shear
    kind = image_io.GetComponentTypeAsString(image_io.GetComponentType())
    return Header(
        shape=shape,
        spacing=tuple(float(value) for value in spacing),
        direction=direction,
        origin=tuple(float(value) for value in origin),
        components=components,
        dtype=numpy_type_name(kind),
        warnings=tuple(said),
    )


def _open(path: str) -> Any:
    """Return ITK's reader of a file, with the header read."""
    check_nrrd(path)
    check_metaimage(path)
    try:
        with _silent_itk():
            image_io = itk.ImageIOFactory.CreateImageIO(path, itk.CommonEnums.IOFileMode_ReadMode)
            if image_io is None:
                raise InputFileError(f"'{path}' is not an image that can be read; give {FORMATS}")
            image_io.SetFileName(path)
            image_io.ReadImageInformation()
            image_io.GetComponentSize()  # raises for an unknown type
    except (RuntimeError, TypeError) as error:
        raise InputFileError(f"'{path}' can't be read: {itk_reason(error)}") from error
    return image_io


@contextmanager
def _silent_itk() -> Iterator[None]:
    """Keep ITK from writing warnings with names of its source files to standard error; ours say what is at stake."""
    before = itk.Object.GetGlobalWarningDisplay()
    itk.Object.SetGlobalWarningDisplay(False)
    try:
        yield
    finally:
        itk.Object.SetGlobalWarningDisplay(before)


def read_volume(path: str, series: str | None = None) -> Volume:
    """Read an image file, of any number of dimensions, or one DICOM series of a folder.

    Raises:
        InputFileError: see :func:`read_header`; or the file is cut off or damaged.
    """
    check_regular(path)
    if Path(path).is_dir() or is_dicom(path):
        return Volume(*read_series(path, series))
    header = read_header(path, series)
    raw = nifti_header(path)
    if raw is not None and is_nifti(raw):
        if header.components > 1 and header.dtype == "":
            raise InputFileError(f"'{path}' has colors; give an image with one value per voxel")
        values = to_itk_type(read_nifti(path, raw))
        is_vector = header.components > 1
        order = (*range(len(header.shape))[::-1], *((len(header.shape),) if is_vector else ()))
        image = itk.image_from_array(np.ascontiguousarray(values.transpose(order)), is_vector=is_vector)
    else:
        image = _read_by_itk(path)
    image.SetSpacing(list(header.spacing))
    image.SetOrigin(list(header.origin))
    image.SetDirection(itk.matrix_from_array(np.ascontiguousarray(header.direction)))
    return Volume(image, header)


def _read_by_itk(path: str) -> Any:
    check_complete(path)
    pixel = readable_type(_open(path))
    try:
        with _silent_itk():
            return itk.imread(path) if pixel is None else itk.imread(path, pixel)
    except MemoryError:
        raise
    except Exception as error:  # of many kinds: the library's, and those of its wrapping
        reason = itk_reason(error)
        if "No such file" in reason:  # the system's last error, of a file that was read up to its end
            reason = "it is cut off or damaged; copy it again"
        raise InputFileError(f"'{path}' can't be read: {reason}") from error


def read_file(path: str) -> Any:
    """Read an image file, of any number of dimensions, into an ITK image; see :func:`read_volume`."""
    return read_volume(path).image


class VolumeReader(ITKReader):
    """MONAI's ITKReader for one 3-D volume: one DICOM series, one frame of a 4-D file, and the type on disk.

    Args:
        frame: which volume of a 4-D file is meant, from 0; ignored for a 3-D file.
        series: UID of the DICOM series that is meant, where a folder holds several.
        is_label: keep integers exactly that float32 would round, as float64.
        dtype: numpy type of the voxels, instead.
    """

    def __init__(
        self, frame: int | None = None, series: str | None = None, is_label: bool = False, dtype: Any = None
    ) -> None:
        super().__init__()
        self.frame, self.series, self.is_label, self.dtype = frame, series, is_label, dtype

    def read(self, data: Any, **kwargs: Any) -> Volume:
        """Read one file or one DICOM series of a folder."""
        return read_volume(str(data[0] if isinstance(data, (tuple, list)) else data), self.series)

    def get_data(self, img: Any) -> tuple[np.ndarray, dict]:
        """Return the voxels (I, J, K), a copy, float32 by default, and the few header entries that are used later."""
        image, header = img
        image.SetMetaDataDictionary(itk.MetaDataDictionary())  # patient data, or bytes that are no text
        array, meta = super().get_data(image)
        if len(image.GetSpacing()) == 4:
            array = array[..., self.frame or 0]
            meta["original_channel_dim"] = float("nan")
        kept = {key: meta[key] for key in KEPT_META}
        kept["original_dtype"] = header.dtype or array.dtype.name
        kept["xform_code"] = header.xform_code
        kept["warnings"] = list(header.warnings)
        is_large = self.is_label and array.size > 0 and float(np.abs(array).max()) >= _EXACT_IN_FLOAT32
        return np.array(array, dtype=self.dtype or (np.float64 if is_large else np.float32)), kept
