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
"""Images in memory, of any library, as the volumes that files are loaded into.

SimpleITK and ANTs are not needed by the bundle: their images are known by the module of their class. Voxels are shared
with the image that was given where their type allows.
"""

from __future__ import annotations

import sys
import warnings
from typing import Any, NamedTuple

import itk
import nibabel as nib
import numpy as np
import torch
from monai.data import MetaTensor
from torch import Tensor

from scripts.data.header import Header
from scripts.data.header_checks import check_one_volume
from scripts.data.header_geometry import without_shear
from scripts.data.nifti_geometry import nifti_geometry
from scripts.data.nifti_reading import scaled_type
from scripts.data.reading import EXACT_IN_FLOAT32
from scripts.data.volumes import FROM_MEMORY
from scripts.geometry.world_axes import LPS_RAS
from scripts.utils.errors import InputError

KINDS = "a path, a MetaTensor, a nibabel, ITK, SimpleITK or ANTs image, or an array with its affine"
_FLIP = LPS_RAS.numpy()


class _Image(NamedTuple):
    """An image of any kind."""

    values: Any
    """numpy array or tensor, (I, J, K), or (I, J, K, T) of several volumes."""
    affine_ras: np.ndarray
    """(4, 4)."""
    xform_code: int = 1
    components: int = 1
    warnings: tuple[str, ...] = ()


def volume_in_memory(option: str, image: Any, affine: Any = None, frame: int | None = None) -> MetaTensor:
    """Return an image in memory as ``scripts.transforms.LoadVolumesd`` returns one of a file.

    Args:
        option: name of the option, for messages; labels are named ``..._label``.
        image: see :data:`KINDS`; MetaTensors are (1, I, J, K) or (I, J, K), arrays also (I, J, K, T).
        affine: (4, 4), voxel (i, j, k) -> world RAS mm, of an array.
        frame: volume to take of (I, J, K, T), from 0.

    Returns:
        (1, I, J, K) float32; float64 for a label whose numbers float32 would round.

    Raises:
        InputError: no such image, or one that is not one 3-D volume of scalars with a usable geometry.
    """
    try:
        found = _image(image, affine)
    except InputError as error:
        raise type(error)(f"{option}: {error}") from error
    shape = tuple(int(size) for size in found.values.shape)
    check_one_volume(option, FROM_MEMORY, _header(found, shape), frame)
    values = found.values[..., frame or 0] if len(shape) == 4 else found.values
    try:
        straight, said = without_shear(FROM_MEMORY, found.affine_ras, shape[:3], "its affine")
        tensor, dtype = _tensor(values, option.endswith("label"))
    except InputError as error:
        raise type(error)(f"{option}: {error}") from error
    meta = {"original_dtype": dtype, "xform_code": found.xform_code, "warnings": [*found.warnings, *said]}
    return MetaTensor(tensor[None], affine=torch.from_numpy(straight.copy()), meta=meta)


def is_array(image: Any) -> bool:
    """Tell whether an image has no geometry of its own."""
    return isinstance(image, (np.ndarray, Tensor)) and not isinstance(image, MetaTensor)


def _image(image: Any, affine: Any) -> _Image:
    library = type(image).__module__.partition(".")[0]
    if is_array(image):
        if affine is None:
            raise InputError("an array has no geometry; give its affine, (4, 4), voxel -> world RAS mm")
        try:
            matrix = np.asarray(torch.as_tensor(affine).cpu(), dtype=np.float64)
        except (TypeError, ValueError, RuntimeError):
            matrix = np.empty(0)  # refused by its shape
        if matrix.shape != (4, 4) or not np.isfinite(matrix).all() or not np.array_equal(matrix[3], (0, 0, 0, 1)):
            raise InputError(
                f"the affine of an array must be a finite (4, 4) matrix with the last row 0 0 0 1: {affine}"
            )
        return _Image(_without_channel(image), matrix)
    if isinstance(image, MetaTensor):
        matrix = np.asarray(image.affine.cpu(), dtype=np.float64)
        matrix = _FLIP @ matrix if str(image.meta.get("space", "")).upper() == "LPS" else matrix
        values = _without_channel(image.as_tensor())
        if values.ndim == 4:
            raise InputError(f"expected one 3-D volume, got a MetaTensor of the shape {tuple(image.shape)}")
        return _Image(values, matrix, int(image.meta.get("xform_code", 1)))
    if isinstance(image, nib.spatialimages.SpatialImage):
        return _of_nibabel(image)
    if isinstance(image, itk.Object) and hasattr(image, "GetBufferedRegion"):
        start = list(image.TransformIndexToPhysicalPoint(image.GetBufferedRegion().GetIndex()))
        direction = itk.array_from_matrix(image.GetDirection())
        values = itk.array_view_from_image(image)
        return _of_itk(values, list(image.GetSpacing()), start, direction, image.GetNumberOfComponentsPerPixel())
    if library == "SimpleITK" and hasattr(image, "GetDirection"):
        values = sys.modules["SimpleITK"].GetArrayViewFromImage(image)
        direction = np.reshape(image.GetDirection(), (image.GetDimension(),) * 2)
        components = image.GetNumberOfComponentsPerPixel()
        return _of_itk(values, image.GetSpacing(), image.GetOrigin(), direction, components)
    if library == "ants" and hasattr(image, "direction"):
        values = np.asarray(image.numpy())
        order = (*range(image.dimension)[::-1], *range(image.dimension, values.ndim))
        return _of_itk(values.transpose(order), image.spacing, image.origin, image.direction, image.components)
    raise InputError(f"expected {KINDS}, got a {type(image).__name__}")


def _of_itk(values: np.ndarray, spacing: Any, origin: Any, direction: Any, components: int) -> _Image:
    """Return an image in ITK's terms: values (K, J, I) or with components last, geometry LPS mm."""
    axes = np.asarray(direction, dtype=np.float64) @ np.diag(np.asarray(spacing, dtype=np.float64))
    affine = np.eye(4)
    count = min(3, len(axes))
    affine[:count, :count], affine[:count, 3] = axes[:count, :count], np.asarray(origin, dtype=np.float64)[:count]
    if components > 1:
        values = values[..., 0]  # refused, by their number
    return _Image(values.T, _FLIP @ affine, components=int(components))


def _of_nibabel(image: Any) -> _Image:
    """Return a nibabel image; of NIfTI the geometry and type that its file would be read with."""
    values, header = np.asanyarray(image.dataobj), image.header
    if not isinstance(header, nib.Nifti1Header):
        return _Image(values, np.asarray(image.affine, dtype=np.float64))
    if not np.allclose(image.affine, header.get_best_affine()):  # changed in place: its file would have that one
        header = type(image)(image.dataobj, image.affine, header).header
    while values.ndim > 3 and values.shape[-1] == 1:
        values = values[..., 0]
    if nib.is_proxy(image.dataobj):
        slope, intercept = (float(value) for value in (image.dataobj.slope, image.dataobj.inter))
        values = values.astype(scaled_type(image.dataobj.dtype, slope, intercept), copy=False)
    geometry = nifti_geometry(FROM_MEMORY, header, (*values.shape, 1, 1)[:3])
    affine = _FLIP @ geometry.affine
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    affine[:3, :3] = (affine[:3, :3] / spacing) @ np.diag(spacing)  # as of a file, to the last bit
    return _Image(values, _FLIP @ affine, geometry.code, warnings=geometry.warnings)


def _without_channel(values: Any) -> Any:
    """Return an array without a channel axis of length 1, which MONAI has first."""
    return values[0] if values.ndim == 4 and values.shape[0] == 1 else values


def _header(found: _Image, shape: tuple[int, ...]) -> Header:
    axes = (_FLIP @ found.affine_ras)[:3, :3]
    spacing = np.linalg.norm(axes, axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        direction = np.nan_to_num(axes / spacing)
    return Header(
        shape=shape,
        spacing=tuple(float(value) for value in spacing),
        direction=direction,
        origin=tuple(float(value) for value in (_FLIP @ found.affine_ras)[:3, 3]),
        components=found.components,
    )


def _tensor(values: Any, is_label: bool) -> tuple[Tensor, str]:
    """Return voxels in the type that is computed in, and numpy's name of their own type."""
    if isinstance(values, Tensor):
        tensor, dtype = values.detach().cpu(), str(values.dtype).removeprefix("torch.")
        if tensor.is_complex():
            raise InputError(f"its voxels are of the type {dtype}; give numbers that are real")
        dtype = "float32" if tensor.dtype == torch.bfloat16 else dtype  # which numpy lacks
    else:
        array = np.asarray(values)
        dtype = array.dtype.name
        if array.dtype.kind not in "biuf":
            raise InputError(f"its voxels are of the type {dtype}; give numbers that are real")
        array = array.astype(array.dtype.newbyteorder("=") if is_label else np.float32, copy=False)
        array = array if min(array.strides, default=0) >= 0 else array.copy()  # torch has no negative strides
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*not writable")  # nothing writes to the voxels of an input
            tensor = torch.from_numpy(array)
    is_large = is_label and tensor.numel() > 0 and float(tensor.double().abs().max()) >= EXACT_IN_FLOAT32
    return tensor.to(torch.float64 if is_large else torch.float32), dtype
