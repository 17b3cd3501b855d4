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
"""Resampling images, labels and 4-D series through any ITK transform, with ITK."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import itk
import numpy as np
import torch
from torch import Tensor

from scripts.data.header import Header
from scripts.data.image_file import ImageFile, Volume, open_image
from scripts.data.itk_images import array_to_itk, field_ras, lps_geometry
from scripts.data.modality import outside_value
from scripts.geometry.warping import cast
from scripts.geometry.world_axes import LPS_RAS
from scripts.utils.errors import InputError

INTERPOLATIONS = ("linear", "bspline")
LABEL_INTERPOLATIONS = ("nearest", "smooth")


class Grid(NamedTuple):
    """Where voxels lie."""

    shape: tuple[int, int, int]
    """(I, J, K)."""
    affine_ras: Tensor
    """(4, 4) float64, voxel -> world RAS mm."""
    xform_code: int = 1
    """NIfTI's code of that world."""


def read_scalars(file: str | ImageFile) -> Volume:
    """Read an image file, 3-D or 4-D, or the DICOM series of a folder, as an ITK image with its header.

        Args:
            file: path, or the file that was opened.

        Raises:
            InputError: more than one value a voxel, another number of axes, or see
    <<<<<<< HEAD
                :func:`scripts.data.image_file.open_image`.
    =======
                :func:`scripts.data.reading.read_volume`.
    >>>>>>> main
    """
    opened = open_image(file) if isinstance(file, str) else file
    path, volume = opened.path, opened.read()
    image = volume.image
    if image.GetNumberOfComponentsPerPixel() != 1:
        raise InputError(f"'{path}' has {image.GetNumberOfComponentsPerPixel()} values per voxel; give one with one")
    if image.GetImageDimension() not in (3, 4):
        raise InputError(f"'{path}' is {image.GetImageDimension()}-D; give a 3-D or 4-D image")
    return volume


def grid_of(image: Any) -> Grid:
    """Return the grid of an ITK image, of a 4-D one that of its frames."""
    size = [int(n) for n in itk.size(image)][:3]
    affine = np.eye(4)
    spacing = np.array(image.GetSpacing())[:3]
    affine[:3, :3] = itk.array_from_matrix(image.GetDirection())[:3, :3] * spacing
    affine[:3, 3] = np.array(image.GetOrigin())[:3]
    return Grid((size[0], size[1], size[2]), LPS_RAS @ torch.from_numpy(affine))


def header_grid(header: Header) -> Grid:
    """Return the grid that a header states, of one of more axes that of the first three."""
    affine = np.eye(4)
    affine[:3, :3] = np.asarray(header.direction)[:3, :3] * np.asarray(header.spacing)[:3]
    affine[:3, 3] = header.origin[:3]
    size_i, size_j, size_k = (int(n) for n in header.shape[:3])
    return Grid((size_i, size_j, size_k), LPS_RAS @ torch.from_numpy(affine), header.xform_code)


def with_spacing(grid: Grid, spacing_mm: Sequence[float]) -> Grid:
    """Return a grid of another spacing (3 numbers, mm) over the same field of view, whose edges stay within a voxel.

    Raises:
        InputError: not three numbers above zero.
    """
    try:
        wanted = np.array([float(value) for value in spacing_mm])
    except (TypeError, ValueError):
        wanted = np.zeros(0)
    if wanted.shape != (3,) or not np.all(wanted > 0):
        raise InputError(f"spacing: give three numbers above 0 in mm, such as '[1, 1, 1]', got {spacing_mm!r}")
    affine = grid.affine_ras.numpy()
    old = np.linalg.norm(affine[:3, :3], axis=0)
    shape = np.maximum(1, np.round(np.array(grid.shape) * old / wanted)).astype(int)
    changed = affine.copy()
    changed[:3, :3] = affine[:3, :3] / old * wanted
    edge = affine[:3, :3] @ np.full(3, -0.5)
    changed[:3, 3] = affine[:3, 3] + edge - changed[:3, :3] @ np.full(3, -0.5)
    return Grid((int(shape[0]), int(shape[1]), int(shape[2])), torch.from_numpy(changed), grid.xform_code)


def resample(
    image: Any, transform: Any, grid: Grid, interpolation: str = "linear", outside: float | None = 0.0
) -> np.ndarray:
    """Resample an image onto a grid with ITK.

    Args:
        image: 3-D ITK image, or 4-D: each frame.
        transform: grid point -> image point, LPS mm.
        grid: of the result.
        interpolation: linear or bspline (cubic); nearest or smooth (label-wise Gaussian) for labels.
        outside: value outside the image; None is air for CT in HU and 0 otherwise, see
            :func:`scripts.data.modality.outside_value`.

    Returns:
        (I, J, K) or (I, J, K, T) in the image's type; integers are rounded and clipped.
    """
    values = itk.array_view_from_image(image)
    if outside is None:
        outside = outside_value(values, None)
    if image.GetImageDimension() == 4:
        own = grid_of(image)
        frames = [_resample_array(frame, own, transform, grid, interpolation, outside) for frame in values]
        return np.stack(frames, axis=-1)
    return _resample_array(values, grid_of(image), transform, grid, interpolation, outside)


def _resample_array(
    values: np.ndarray, own: Grid, transform: Any, grid: Grid, interpolation: str, outside: float
) -> np.ndarray:
    """Resample an array (K, J, I) on its own grid; return (I, J, K) in its type."""
    image = array_to_itk(values.astype(_working_type(values, interpolation)), own.affine_ras)
    kind = type(image)
    resampler = itk.ResampleImageFilter[kind, kind].New()
    resampler.SetInput(image)
    resampler.SetTransform(transform)
    resampler.SetDefaultPixelValue(_outside(outside, kind))
    if interpolation == "bspline":
        resampler.SetInterpolator(itk.BSplineInterpolateImageFunction[kind, itk.D, itk.template(kind)[1][0]].New())
    elif interpolation == "nearest":
        resampler.SetInterpolator(itk.NearestNeighborInterpolateImageFunction[kind, itk.D].New())
    elif interpolation == "smooth":
        interpolator = itk.LabelImageGaussianInterpolateImageFunction[kind, itk.D].New()
        interpolator.SetSigma([0.5 * float(value) for value in image.GetSpacing()])  # wider ones eat thin parts
        interpolator.SetAlpha(4.0)
        resampler.SetInterpolator(interpolator)
    _set_grid(resampler, grid)
    resampler.Update()
    return cast(itk.array_from_image(resampler.GetOutput()).transpose(2, 1, 0), values.dtype.name)


def _working_type(values: np.ndarray, interpolation: str) -> type:
    """Return a type that ITK's filters know and that holds the values exactly."""
    if interpolation == "smooth":
        if values.dtype.kind == "f" or values.min() < 0 or values.max() > np.iinfo(np.uint16).max:
            raise InputError(
                f"label_interpolation smooth takes whole numbers from 0 to 65535, got {values.dtype} from"
                f" {values.min():g} to {values.max():g}; use nearest"
            )
        return np.uint16
    small = values.dtype.itemsize <= 2 or values.dtype == np.float32
    return np.float32 if small else np.float64


def _outside(outside: float, kind: Any) -> float | int:
    """Return the value outside an image in the type that ITK's filter wants."""
    return int(outside) if itk.template(kind)[1][0] is itk.US else float(outside)


def _set_grid(filter_: Any, grid: Grid) -> None:
    """Set the grid of an ITK filter's output."""
    origin, spacing, direction = lps_geometry(grid.affine_ras)
    filter_.SetSize([int(n) for n in grid.shape])
    filter_.SetOutputOrigin(origin.tolist())
    filter_.SetOutputSpacing(spacing.tolist())
    filter_.SetOutputDirection(itk.matrix_from_array(np.ascontiguousarray(direction)))


def sample_transform(transform: Any, grid: Grid) -> Tensor:
    """Evaluate a transform on a grid as displacements of the world: (3, I, J, K) float32, RAS mm."""
    kind = itk.Image[itk.Vector[itk.F, 3], 3]
    sampler = itk.TransformToDisplacementFieldFilter[kind, itk.D].New()
    sampler.SetTransform(transform)
    _set_grid(sampler, grid)
    sampler.Update()
    field = itk.array_from_image(sampler.GetOutput())  # (K, J, I, 3)
    return field_ras(field.transpose(2, 1, 0, 3))
