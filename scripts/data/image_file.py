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
"""An image file that was opened: its header, parsed once, and what reading its voxels goes by.

The one place where the formats part: NIfTI is read by nibabel, DICOM by ``scripts.data.dicom_series``, all else by
ITK. :func:`open_image` settles what their headers leave open, so that geometry means the same whatever the format.
Inputs are only ever opened for reading, and no file is held open.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import itk
import numpy as np

from scripts.data.dicom_series import is_dicom, open_series
from scripts.data.header import Header
from scripts.data.itk_reading import open_by_itk
from scripts.data.nifti_reading import open_nifti
from scripts.data.volume_integrity import check_analyze, check_claim, check_compression, is_nifti, nifti_header
from scripts.utils.regular_files import check_data_file, check_file, file_state, read_start


class Voxels(Protocol):
    """What reading the voxels of a file goes by, once its header is parsed; can be pickled."""

    def read(self) -> Any:
        """Return the voxels as an ITK image, whose geometry is not settled yet."""


class Volume(NamedTuple):
    """A file that was read."""

    image: Any
    """ITK image, with the header's geometry."""
    header: Header


@dataclass(frozen=True, eq=False)
class ImageFile:
    """An image file, or a DICOM series of a folder, whose header was parsed."""

    path: str
    series: str | None
    """UID that was asked for, of a folder with several series."""
    header: Header
    voxels: Voxels
    state: str
    """Of ``scripts.utils.regular_files.file_state``, before the header was read."""

    def is_current(self) -> bool:
        """Tell whether the file is still the one that was opened."""
        return file_state(self.path) == self.state

    def read(self) -> Volume:
        """Read the voxels.

        Raises:
            InputFileError: the file is cut off or damaged.
        """
        dtype = np.dtype(self.header.dtype or np.uint8)
        check_claim(self.path, self.header.shape, self.header.components * dtype.itemsize)  # memory changes with time
        image = self.voxels.read()
        image.SetSpacing(list(self.header.spacing))
        image.SetOrigin(list(self.header.origin))
        image.SetDirection(itk.matrix_from_array(np.ascontiguousarray(self.header.direction)))
        return Volume(image, self.header)


def open_image(path: str, series: str | None = None) -> ImageFile:
    """Read the header of an image file or of a DICOM series in a folder, not the voxels.

    Args:
        path: file or folder.
        series: UID of the series, where the folder holds several.

    Raises:
        InputFileError: no reader knows the file, or the header is damaged or says nothing that can be relied on; the
            message starts with the path.
    """
    check_file(path)
    state, start = file_state(path), read_start(path)
    check_data_file(path, start)
    check_compression(path, start)
    raw = nifti_header(path, start)
    if raw is not None and is_nifti(raw):
        return ImageFile(path, series, *open_nifti(path, raw), state)
    if raw is not None:
        check_analyze(path, raw)
    if Path(path).is_dir() or is_dicom(path, start):
        header, voxels = open_series(path, series)
        check_claim(path, header.shape, np.dtype(header.dtype).itemsize)
        return ImageFile(path, series, header, voxels, state)
    return ImageFile(path, series, *open_by_itk(path, start, raw), state)
