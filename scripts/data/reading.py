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
"""Reading volumes in one call, and a reader for MONAI's ``LoadImage``, over :mod:`scripts.data.image_file`."""

from __future__ import annotations

import logging
import warnings
from typing import Any

import itk
import numpy as np
from monai.data import ITKReader

from scripts.data.header import Header
from scripts.data.image_file import Volume, open_image

logging.getLogger("monai.data.nvimgcodec_pydicom_plugin").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", message="NvImgCodecPydicomReader")

KEPT_META = ("affine", "original_affine", "spatial_shape", "space", "original_channel_dim")
EXACT_IN_FLOAT32 = 2**24


def read_header(path: str, series: str | None = None) -> Header:
    """Read the header of an image file or of a DICOM series in a folder, not the voxels.

    See :func:`scripts.data.image_file.open_image`.
    """
    return open_image(path, series).header


def read_volume(path: str, series: str | None = None) -> Volume:
    """Read an image file, of any number of dimensions, or one DICOM series of a folder.

    Raises:
        InputFileError: see :func:`scripts.data.image_file.open_image`; or the file is cut off or damaged.
    """
    return open_image(path, series).read()


class VolumeReader(ITKReader):
    """MONAI's ITKReader for one 3-D volume: one DICOM series, one frame of a 4-D file, and the type on disk.

    Args:
        frame: which volume of a 4-D file is meant, from 0; ignored for a 3-D file.
        series: UID of the DICOM series that is meant, where a folder holds several.
        is_label: keep integers exactly that float32 would round, as float64.
        dtype: numpy type of the voxels, instead.
        volume: the file, where it was read before.
    """

    def __init__(
        self,
        frame: int | None = None,
        series: str | None = None,
        is_label: bool = False,
        dtype: Any = None,
        volume: Volume | None = None,
    ) -> None:
        super().__init__()
        self.frame, self.series, self.is_label, self.dtype = frame, series, is_label, dtype
        self.volume = volume

    def read(self, data: Any, **kwargs: Any) -> Volume:
        """Read one file or one DICOM series of a folder."""
        path = str(data[0] if isinstance(data, (tuple, list)) else data)
        return self.volume or read_volume(path, self.series)

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
        is_large = self.is_label and array.size > 0 and float(np.abs(array).max()) >= EXACT_IN_FLOAT32
        return np.array(array, dtype=self.dtype or (np.float64 if is_large else np.float32)), kept
