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
"""Reading volumes: headers up front, and a MONAI transform that loads voxels with their RAS affine.

Everything is read through ITK, whatever the format, so that geometry means the same here as in the transforms that
are written (ITK and nibabel disagree on some NIfTI headers). Inputs are only ever opened for reading.
"""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import itk
import nibabel as nib
import numpy as np
from monai.config import KeysCollection
from monai.data import ITKReader
from monai.transforms import LoadImage, MapTransform

from .dicom_series import is_dicom, read_series, series_header
from .errors import InputError, InputFileError
from .file_form import (
    check_claim,
    check_complete,
    check_metaimage,
    check_nifti_numbers,
    check_nrrd,
    check_regular,
    lost_intercept,
    nifti_header,
)
from .header import Header
from .itk_types import readable_type

logger = logging.getLogger(__name__)
# MONAI warns at every LoadImage that a GPU decoder for DICOM is missing; DICOM is read by ITK here
logging.getLogger("monai.data.nvimgcodec_pydicom_plugin").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", message="NvImgCodecPydicomReader")

FORMATS = "NIfTI, NRRD, MHA/MHD or a folder with one DICOM series"
# what the rest of the bundle needs; the rest of a header (patient data in DICOM) is not carried along
_UNWRAPPED_NIFTI = {256: "int8", 1024: "int64", 1280: "uint64"}
KEPT_META = ("affine", "original_affine", "spatial_shape", "space", "original_channel_dim")


def read_header(path: str, series: str | None = None) -> Header:
    """Read the header of an image file or of a DICOM series in a folder, not the voxels.

    Args:
        path: file or folder.
        series: UID of the series, where the folder holds several.

    Raises:
        InputFileError: no reader knows the file, or the header is damaged; the message starts with the path.
    """
    check_regular(path)
    if Path(path).is_dir() or is_dicom(path):
        header = series_header(path, series)
        check_claim(path, header.shape, np.dtype(header.dtype).itemsize)
        return header
    image_io = _open(path)
    count = image_io.GetNumberOfDimensions()
    shape = [int(image_io.GetDimensions(axis)) for axis in range(count)]
    components = int(image_io.GetNumberOfComponents())
    check_claim(path, tuple(shape), components * int(image_io.GetComponentSize()))
    return Header(
        shape=tuple(shape),
        spacing=tuple(float(image_io.GetSpacing(axis)) for axis in range(count)),
        origin=tuple(float(image_io.GetOrigin(axis)) for axis in range(count)),
        direction=np.array([image_io.GetDirection(axis) for axis in range(count)]).T,
        components=components,
    )


def _open(path: str) -> Any:
    """Return ITK's reader of a file, with the header read."""
    check_nrrd(path)
    check_metaimage(path)
    check_nifti_numbers(path)
    try:
        image_io = itk.ImageIOFactory.CreateImageIO(path, itk.CommonEnums.IOFileMode_ReadMode)
        if image_io is None:
            raise InputFileError(f"'{path}' is not an image that can be read; give {FORMATS}")
        image_io.SetFileName(path)
        image_io.ReadImageInformation()
        image_io.GetComponentSize()  # raises for an unknown type
    except (RuntimeError, TypeError) as error:
        raise InputFileError(f"'{path}' can't be read: {itk_reason(error)}") from error
    return image_io


def itk_reason(error: Exception) -> str:
    """Return ITK's message without source file and line, as one line."""
    text = str(error).split("ITK ERROR:")[-1]
    reason = " ".join(re.sub(r"^\S+:\d+ \(.*?\):", "", text).split())[:500] or type(error).__name__
    if "orthonormal" in reason:
        return "its affine has a shear, a zero spacing or no inverse; resample it, or repair its header (sform)"
    return reason


def read_file(path: str) -> Any:
    """Read an image file, of any number of dimensions, into an ITK image.

    Raises:
        InputFileError: it is cut off or damaged.
    """
    check_regular(path)
    check_complete(path)
    image_io = _open(path)
    pixel = readable_type(image_io)
    try:
        image = itk.imread(path) if pixel is None else itk.imread(path, pixel)
    except MemoryError:
        raise
    except Exception as error:  # of many kinds: the library's, and those of its wrapping
        raise InputFileError(f"'{path}' can't be read: {itk_reason(error)}") from error
    added = lost_intercept(path)
    if added and not np.issubdtype(itk.array_view_from_image(image).dtype, np.integer):
        values = itk.array_view_from_image(image)  # floats: ITK has scaled them
        values -= values.dtype.type(added)
    return image


class VolumeReader(ITKReader):
    """MONAI's ITKReader for one 3-D volume: one DICOM series, one frame of a 4-D file, and the type on disk.

    Args:
        frame: which volume of a 4-D file is meant, from 0; ignored for a 3-D file.
        series: UID of the DICOM series that is meant, where a folder holds several.
    """

    def __init__(self, frame: int | None = None, series: str | None = None) -> None:
        super().__init__()
        self.frame, self.series = frame, series

    def read(self, data: Any, **kwargs: Any) -> Any:
        """Read one file or one DICOM series of a folder into an ITK image."""
        path = str(data[0] if isinstance(data, (tuple, list)) else data)
        check_regular(path)
        return read_series(path, self.series) if Path(path).is_dir() or is_dicom(path) else read_file(path)

    def get_data(self, img: Any) -> tuple[np.ndarray, dict]:
        """Return the voxels (I, J, K), a copy, and the few header entries that are used later."""
        img.SetMetaDataDictionary(itk.MetaDataDictionary())  # patient data, or bytes that are no text
        array, meta = super().get_data(img)
        if len(img.GetSpacing()) == 4:
            array = array[..., self.frame or 0]
            meta["original_channel_dim"] = float("nan")
        kept = {key: meta[key] for key in KEPT_META}
        kept["original_dtype"] = array.dtype.name
        return np.array(array), kept


class LoadVolumesd(MapTransform):
    """Load 3-D volumes as float32 MetaTensors (1, I, J, K) with their RAS affine.

    MONAI's LoadImage with :class:`VolumeReader` and nothing else: stock ``LoadImaged`` goes on to other readers, with
    other geometry, when ITK refuses a file, and forgets the type on disk. ``.meta["original_dtype"]`` keeps that type.
    The optional case entries ``frame``, ``fixed_frame`` and ``moving_frame`` select one volume of 4-D files,
    ``fixed_series`` and ``moving_series`` one DICOM series of a folder.

    Args:
        keys: case entries that are paths; entries that a case lacks are skipped.
    """

    def __init__(self, keys: KeysCollection) -> None:
        super().__init__(keys, allow_missing_keys=True)
        self.loader = LoadImage(image_only=True, dtype=np.float32, ensure_channel_first=True, expanduser=False)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Replace the paths by volumes."""
        result = dict(data)
        for key in self.key_iterator(result):
            path = str(result[key])
            frame = result.get(f"{str(key).partition('_')[0]}_frame", result.get("frame"))
            try:
                result[key] = self.loader(path, reader=VolumeReader(frame, result.get(f"{key}_series")))
            except InputError as error:
                raise type(error)(f"{key}: {error}") from error
            result[key].meta["original_dtype"] = _dtype_on_disk(path) or result[key].meta["original_dtype"]
            result[key].meta["hidden_non_finite"] = count_hidden_non_finite(path, frame)
        return result


def _dtype_on_disk(path: str) -> str | None:
    """Return the type of a NIfTI file that ITK for Python reads as another one, or None."""
    header = nifti_header(path)
    name = None if header is None else _UNWRAPPED_NIFTI.get(int(header["datatype"]))
    is_scaled = header is not None and float(header["scl_slope"]) not in (0, 1) and np.isfinite(header["scl_slope"])
    return None if is_scaled else name


def count_hidden_non_finite(path: str, frame: int | None = None) -> int:
    """Return how many voxels of a NIfTI file are NaN or infinite; 0 for other formats.

    ITK's NIfTI library turns them into 0 while reading, so they can't be seen in what was loaded.
    """
    if not path.lower().endswith((".nii", ".nii.gz", ".hdr", ".img")):
        return 0
    try:
        image: Any = nib.load(path)
        if image.get_data_dtype().kind != "f":
            return 0
        values = np.asanyarray(image.dataobj)
    except MemoryError:
        raise
    except Exception:  # of many kinds: no NIfTI, though ITK read it, or a header that nibabel refuses
        return 0
    values = values[..., frame or 0] if values.ndim == 4 else values
    return int(values.size - np.count_nonzero(np.isfinite(values)))


def source(volume: Any) -> str:
    """Return the path a loaded volume came from, quoted for messages."""
    return f"'{volume.meta.get('filename_or_obj', 'from memory')}'"


def shape_text(shape: Sequence[int]) -> str:
    """Return a shape as people write it, 4 x 5 x 6."""
    return " x ".join(str(int(size)) for size in shape)
