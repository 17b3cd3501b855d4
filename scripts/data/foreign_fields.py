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
"""Reading displacement and deformation fields of other tools into displacements in LPS mm."""

from __future__ import annotations

import logging
from typing import Any

import itk
import nibabel as nib
import numpy as np

from scripts.data.field_formats import fsl_affine
from scripts.data.field_kinds import DISPLACEMENTS, EXPECTED, Kind, check_nrrd_vectors, nifti_kind
from scripts.data.header import Header
from scripts.data.image_file import ImageFile, open_image
from scripts.data.itk_reading import ItkVoxels
from scripts.data.itk_resampling import Grid, header_grid
from scripts.data.nifti_reading import NiftiVoxels, read_nifti
from scripts.geometry.world_axes import SIGNS
from scripts.utils.errors import InputFileError
from scripts.utils.itk_messages import itk_reason

logger = logging.getLogger(__name__)

ABSOLUTE_RESIDUAL = 1 / 3  # what coordinates leave, relative to themselves, without those of their own voxels
CHECKED_AT_MOST = 24  # voxels along each axis, to tell coordinates from displacements
_FLIP = SIGNS  # of components: from RAS to LPS, and back


def read_field(path: str, moving: Grid | None = None) -> tuple[np.ndarray, Header]:
    """Read a field of ITK, ANTs, elastix, greedy, 3D Slicer, SPM, NiftyReg or FSL.

    Args:
        path: an image with 3 values a voxel.
        moving: grid of the moving image, on which the numbers of FSL's warps depend.

    Returns:
        displacements (K, J, I, 3), LPS mm, fixed point -> moving point; the header of their grid.

    Raises:
        InputFileError: the file can't be read, is no field, or its numbers can be taken in more than one way.
    """
    opened = open_image(path)
    header = opened.header
    raw = opened.voxels.raw if isinstance(opened.voxels, (NiftiVoxels, ItkVoxels)) else None
    if raw is None:
        kind, values = DISPLACEMENTS, _image_values(opened)
        check_nrrd_vectors(path)
    else:
        kind = nifti_kind(path, raw, header)
        values = _nifti_values(path, raw)
    if not np.isfinite(values).all():
        raise InputFileError(
            f"transform '{path}' has displacements that are not finite numbers; replace them"
            " (of a displacement by 0, of a deformation by the voxel's own coordinates)"
        )
    affine = header_grid(header).affine_ras.numpy()
    if kind.space == "FSL":
        kind, values = _from_fsl(path, values, affine, moving)
    if not kind.stated:
        _check_absolute(path, kind, values, affine)
    if kind is not DISPLACEMENTS:
        logger.info("transform '%s' is read as %s", path, kind.name)
    if kind.absolute:
        values = values - _coordinates(affine, values.shape[:3])
    if kind.space != "LPS":
        values = values * _FLIP
    return values.transpose(2, 1, 0, 3), header


def _nifti_values(path: str, raw: Any) -> np.ndarray:
    """Return the numbers of a field (I, J, K, 3) as they are written: ITK changes the signs of some."""
    values = read_nifti(path, raw)
    if values.dtype.kind not in "fiu":
        raise InputFileError(f"transform '{path}' has values of the type {values.dtype}; give real numbers")
    values = values.reshape(*values.shape[:3], 3)
    return values if values.dtype.kind == "f" and values.dtype.itemsize >= 4 else values.astype(np.float64)


def _image_values(opened: ImageFile) -> np.ndarray:
    """Return the numbers of a field (I, J, K, 3) of another format, which ITK reads as they are written."""
    try:
        image = opened.read().image
    except RuntimeError as error:
        raise InputFileError(f"transform '{opened.path}' can't be read: {itk_reason(error)}") from error
    if image.GetImageDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 3:
        raise InputFileError(
            f"transform '{opened.path}' is an image with {image.GetNumberOfComponentsPerPixel()} values a voxel and"
            f" {image.GetImageDimension()} axes; a displacement field is 3-D with 3 values (LPS mm)"
        )
    return itk.array_from_image(image).transpose(2, 1, 0, 3)


def _coordinates(affine: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return affine @ voxel for all voxels, (I, J, K, 3)."""
    i, j, k = (np.arange(size, dtype=np.float64) for size in shape)
    along = (i[:, None, None, None], j[:, None, None], k[:, None])
    start = affine[:3, 3]
    return start + sum(places * affine[:3, axis] for axis, places in enumerate(along))


def _check_absolute(path: str, kind: Kind, values: np.ndarray, affine: np.ndarray) -> None:
    """Refuse coordinates where displacements are expected, and the other way round."""
    steps = [max(1, size // CHECKED_AT_MOST) for size in values.shape[:3]]
    some = values[tuple(slice(None, None, step) for step in steps)].astype(np.float64)
    world = _coordinates(affine @ np.diag([*steps, 1.0]), some.shape[:3])
    candidates = {"RAS mm": world, "LPS mm": world * _FLIP}
    found = next((name for name, own in candidates.items() if _follows(some, own)), None)
    if kind.absolute and found != f"{kind.space} mm":
        raise InputFileError(
            f"transform '{path}' says it is {kind.name}, and its numbers are no coordinates; {EXPECTED}"
        )
    if found and not kind.absolute:
        raise InputFileError(
            f"transform '{path}' looks like a deformation (absolute coordinates in {found}), not displacements;"
            f" subtract the coordinates of the voxels first (NiftyReg: reg_transform -ref FIXED -disp FIELD OUT), and"
            f" {EXPECTED}"
        )


def _follows(values: np.ndarray, own: np.ndarray) -> bool:
    """Tell whether values (I, J, K, 3) vary with ``own``: without it, less than a third of their spread is left."""
    axes = tuple(range(3))
    varied = own.std(axis=axes) > 0
    left = (values - own).std(axis=axes)
    return varied.sum() > 1 and bool((left < ABSOLUTE_RESIDUAL * values.std(axis=axes))[varied].all())


def _from_fsl(path: str, values: np.ndarray, affine: np.ndarray, moving: Grid | None) -> tuple[Kind, np.ndarray]:
    """Return coordinates in the moving image, RAS mm, of a warp of FSL.

    Absolute warps are told from relative ones as FSL does: those without their own coordinates vary less.
    """
    if moving is None:
        raise InputFileError(
            f"transform '{path}' is a warp of FSL, whose values depend on the moving image's header; give --moving FILE"
        )
    shape, moving_affine = values.shape[:3], moving.affine_ras.numpy()
    own = _coordinates(fsl_affine(shape, affine), shape)
    spread = [float(part.std(axis=(0, 1, 2), dtype=np.float64).sum()) for part in (values, values - own)]
    is_absolute = spread[0] > spread[1]
    there = values if is_absolute else values + own
    to_world = moving_affine @ np.linalg.inv(fsl_affine(moving.shape, moving_affine))
    name = f"{'an absolute' if is_absolute else 'a relative'} warp of FSL"
    return Kind(name, "RAS", absolute=True), nib.affines.apply_affine(to_world, there)
