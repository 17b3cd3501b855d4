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
"""Check the header of one file, before its voxels are read: one 3-D volume of scalars with a usable geometry."""

from __future__ import annotations

import numpy as np

from scripts.data.header import Header
from scripts.data.image_file import ImageFile, open_image
from scripts.data.volumes import shape_text
from scripts.utils.errors import InputError


def check_header(option: str, path: str, frame: int | None = None, series: str | None = None) -> ImageFile:
    """Return a file, opened, that is one 3-D volume of scalars with a usable geometry; only its header is read.

    Args:
        option: name of the option, for the message.
        path: file, or folder with one DICOM series.
        frame: volume to take of a 4-D file, from 0.
        series: UID of the DICOM series, where a folder holds several.

    Raises:
        InputError: the message names option and path and says what to do.
    """
    try:
        opened = open_image(path, series)
    except InputError as error:
        raise type(error)(f"{option}: {error}") from error
    check_one_volume(option, path, opened.header, frame)
    return opened


def check_one_volume(option: str, path: str, header: Header, frame: int | None = None) -> None:
    """Check that a header is that of one 3-D volume of scalars with a usable geometry.

    Args:
        option: name of the option, for the message.
        path: file, for the message.
        header: of the file.
        frame: volume to take of a 4-D file, from 0.

    Raises:
        InputError: the message names option and path and says what to do.
    """
    named = f"{option}: '{path}'"
    if header.components > 1:
        raise InputError(
            f"{named} has {header.components} values per voxel (a color or vector image);"
            " give an image with one value per voxel"
        )
    dimensions = len(header.shape)
    if dimensions == 4:
        frames = header.shape[3]
        if frame is None:
            raise InputError(f"{named} is 4-D with {frames} frames; select one with --frame N (0 to {frames - 1})")
        if frame >= frames:
            raise InputError(f"{named} has {frames} frames, but frame is {frame}; give 0 to {frames - 1}")
    elif dimensions != 3:
        raise InputError(f"{named} is {dimensions}-D ({shape_text(header.shape)}); give a 3-D volume")
    if min(header.shape[:3]) < 2:
        raise InputError(
            f"{named} is a single slice ({shape_text(header.shape[:3])}), so 2-D; give a 3-D volume"
            " (for DICOM the folder with the series)"
        )
    spacing = np.array(header.spacing[:3])
    if not np.all(np.isfinite(spacing)) or np.any(spacing <= 0):
        raise InputError(f"{named} has the spacing {shape_text_mm(spacing)}; it must be above zero: repair the header")
    if not abs(np.linalg.det(header.direction[:3, :3])) >= 1e-6:
        raise InputError(f"{named} has axes that do not span space (non-invertible affine); repair the header")


def shape_text_mm(spacing: np.ndarray) -> str:
    """Return a spacing in mm as people write it."""
    return " x ".join(f"{value:g}" for value in spacing) + " mm"
