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
"""Files that ITK reads: header and voxels, of NRRD, MetaImage, Analyze and other formats."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import itk
import numpy as np

from scripts.data.header import Header
from scripts.data.header_geometry import without_shear
from scripts.data.itk_types import numpy_type_name, readable_type
from scripts.data.text_headers import is_text_header, length_in_mm, names_no_world, unscaled
from scripts.data.volume_integrity import check_claim, check_complete, check_held, check_metaimage, check_nrrd
from scripts.utils.errors import InputFileError
from scripts.utils.itk_messages import itk_reason

FORMATS = "NIfTI, NRRD, MHA/MHD or a folder with one DICOM series"
_WITH_WORLD = ("NrrdImageIO", "MetaImageIO", "MINCImageIO", "HDF5ImageIO", "MGHImageIO")
_BY_NAME = {".nrrd": "NrrdImageIO", ".nhdr": "NrrdImageIO", ".mha": "MetaImageIO", ".mhd": "MetaImageIO"}


@dataclass(frozen=True)
class ItkVoxels:
    """The voxels of a file whose header ITK read.

    It names ITK's reader instead of holding it: such an object can't be pickled. ITK parses the header once more when
    it reads the voxels, whatever it is handed.
    """

    path: str
    reader: str
    """Name of the class of ITK's reader."""
    component: str
    """ITK's name of the type of a value."""
    shape: tuple[int, ...]
    components: int
    raw: Any
    """Header of an Analyze file, as nibabel has it; None for other formats."""

    def read(self) -> Any:
        """Return the voxels as an ITK image, with the geometry as ITK takes it.

        Raises:
            InputFileError: the file is cut off or damaged.
        """
        check_complete(self.path, self.raw)
        try:
            with _silent_itk():
                return self._read()
        except MemoryError:
            raise
        except Exception as error:  # of many kinds: the library's, and those of its wrapping
            reason = itk_reason(error)
            if "No such file" in reason:  # the system's last error, of a file that was read up to its end
                reason = "it is cut off or damaged; copy it again"
            raise InputFileError(f"'{self.path}' can't be read: {reason}") from error

    def _read(self) -> Any:
        pixel = readable_type(self.component) if self.components == 1 else None
        options = {"FileName": self.path}
        if hasattr(itk, self.reader):  # else ITK looks for the reader again
            options["ImageIO"] = getattr(itk, self.reader).New()
        kind = itk.ImageFileReader if pixel is None else itk.ImageFileReader[itk.Image[pixel, len(self.shape)]]
        reader = kind.New(**options)
        reader.Update()
        return reader.GetOutput()


def open_by_itk(path: str, start: bytes, raw: Any) -> tuple[Header, ItkVoxels]:
    """Return the header of a file, and what reads its voxels.

    Args:
        path: file.
        start: its first bytes, of :func:`scripts.utils.regular_files.read_start`.
        raw: header of an Analyze file, as nibabel has it, or None.

    Raises:
        InputFileError: ITK does not know the file, or its header is damaged or claims more than the file can hold.
    """
    check_nrrd(path, start)
    check_metaimage(path, start)
    image_io = _image_io(path)
    name = image_io.GetNameOfClass()
    if raw is None and name == "NiftiImageIO":  # ITK has rules of its own for its geometry
        raise InputFileError(f"'{path}' has a damaged NIfTI header (sizeof_hdr); repair it, or write the file again")
    shape = tuple(int(image_io.GetDimensions(axis)) for axis in range(image_io.GetNumberOfDimensions()))
    components = int(image_io.GetNumberOfComponents())
    bytes_per_voxel = components * int(image_io.GetComponentSize())
    check_claim(path, shape, bytes_per_voxel)
    check_held(path, start, shape, bytes_per_voxel)
    component = image_io.GetComponentTypeAsString(image_io.GetComponentType())
    return _settled(path, start, image_io, shape), ItkVoxels(path, name, component, shape, components, raw)


def _settled(path: str, start: bytes, image_io: Any, shape: tuple[int, ...]) -> Header:
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
    if image_io.GetNameOfClass() not in _WITH_WORLD or names_no_world(path, start):
        said.append(
            f"'{path}' records no orientation: left and right are unknown; its axes are taken for left,"
            " posterior and superior. Convert it to NIfTI, NRRD or MHA with the right geometry"
        )
    if is_text_header(path):
        said += unscaled(path, start)
        scale, unit = length_in_mm(path, start)
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
        components=int(image_io.GetNumberOfComponents()),
        dtype=numpy_type_name(kind),
        warnings=tuple(said),
    )


def _image_io(path: str) -> Any:
    """Return ITK's reader of a file, with the header read."""
    try:
        with _silent_itk():
            image_io = _known_io(path) or itk.ImageIOFactory.CreateImageIO(path, itk.CommonEnums.IOFileMode_ReadMode)
            if image_io is None:
                raise InputFileError(f"'{path}' is not an image that can be read; give {FORMATS}")
            image_io.SetFileName(path)
            image_io.ReadImageInformation()
            image_io.GetComponentSize()  # raises for an unknown type
    except (RuntimeError, TypeError) as error:
        raise InputFileError(f"'{path}' can't be read: {itk_reason(error)}") from error
    return image_io


def _known_io(path: str) -> Any:
    """Return the reader that a file's name asks for, if it knows the file: ITK tries twenty that each open the file."""
    name = _BY_NAME.get(Path(path).suffix.lower())
    image_io = None if name is None else getattr(itk, name).New()
    return image_io if image_io is not None and image_io.CanReadFile(path) else None


@contextmanager
def _silent_itk() -> Iterator[None]:
    """Keep ITK from writing warnings with names of its source files to standard error; ours say what is at stake."""
    before = itk.Object.GetGlobalWarningDisplay()
    itk.Object.SetGlobalWarningDisplay(False)
    try:
        yield
    finally:
        itk.Object.SetGlobalWarningDisplay(before)
