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
"""Transforms of the world as those of ITK, and as files that ITK, ANTs, 3D Slicer and SimpleITK read."""

from __future__ import annotations

import importlib
import os
from typing import Any

import itk
import numpy as np
import torch
from torch import Tensor

from scripts.data.nifti_writing import write_nifti
from scripts.geometry.grid_transform import GridTransform
from scripts.geometry.world_axes import LPS_RAS, SIGNS
from scripts.utils.atomic import replacing, reserve, unwritable
from scripts.utils.tensors import plain

HDF5_OVERHEAD = 2**17  # bytes that a file takes beside its numbers


def to_itk(transform: GridTransform) -> Any:
    """Return the transform as an ``itk.CompositeTransform`` of world LPS mm.

    Three parts, as the reference writes them: affine (world -> index of the ddf's grid), displacement field
    on the index grid, affine (index of the moving image's like grid -> world). ITK applies the last one added first.
    """
    image = itk.Image[itk.Vector[itk.D, 3], 3].New()
    image.SetRegions([int(n) for n in reversed(transform.shape)])
    image.Allocate()
    components = itk.array_view_from_image(image)  # filled in place: at full size, a copy is hundreds of megabytes
    for axis in range(3):
        components[..., axis] = transform.ddf[2 - axis].numpy()  # (d, h, w) -> ITK's (x, y, z)
    field = _itk_class("DisplacementFieldTransform", 3).New()
    field.SetDisplacementField(image)
    composite = itk.CompositeTransform[itk.D, 3].New()
    composite.AddTransform(_itk_affine(_index_to_lps(transform.moving_affine)))
    composite.AddTransform(field)
    composite.AddTransform(_itk_affine(torch.linalg.inv(_index_to_lps(transform.fixed_affine))))
    return composite


def _itk_class(name: str, *parameters: Any) -> Any:
    """Return a class of ITK, from its own file where that works.

    ``itk.DisplacementFieldTransform`` and ``itk.transformwrite`` load all of ITK's image filters first: 10 s.
    """
    wrapped = f"itk{name}D" + "".join(str(parameter) for parameter in parameters)
    try:
        return getattr(importlib.import_module(f"itk.itk{name.removesuffix('Template')}Python"), wrapped)
    except (ImportError, AttributeError):
        return getattr(itk, name)[(itk.D, *parameters) if parameters else itk.D]


def _index_to_lps(affine_ras: Tensor) -> Tensor:
    """Return the affine of ITK: index (x, y, z) = voxel (w, h, d) -> world LPS mm."""
    return (LPS_RAS @ affine_ras)[:, [2, 1, 0, 3]]


def _itk_affine(matrix: Tensor) -> Any:
    affine = itk.AffineTransform[itk.D, 3].New()
    affine.SetMatrix(itk.matrix_from_array(np.ascontiguousarray(matrix[:3, :3].numpy())))
    affine.SetTranslation([float(value) for value in matrix[:3, 3]])
    return affine


def write_itk_transform(transform: GridTransform, path: str | os.PathLike[str]) -> None:
    """Write a transform for ITK, 3D Slicer and SimpleITK, world LPS mm; ``path`` ends in .h5.

    Raises:
        ValueError: another ending, which ITK would not know how to read.
        InputError: the file can't be written.
    """
    if not str(path).endswith(".h5"):
        raise ValueError(f"write_itk_transform: the file must end in .h5, got '{path}'")
    write_itk(to_itk(transform), path)


def write_itk(transform: Any, path: str | os.PathLike[str]) -> None:
    """Write any transform of ITK (double precision) as HDF5.

    Raises:
        InputError: the file can't be written.
    """
    with replacing(path) as temporary:
        # on a full disk HDF5 ends the process
        reserve(temporary, 8 * _count_numbers(transform) + HDF5_OVERHEAD)
        writer = _itk_class("TransformFileWriterTemplate").New()
        writer.SetTransformIO(_itk_class("HDF5TransformIOTemplate").New())
        writer.SetFileName(str(temporary))
        writer.SetInput(transform)
        try:
            writer.Update()
        except RuntimeError as error:
            raise unwritable(path, "ITK's HDF5 writer failed") from error


def _count_numbers(transform: Any) -> int:
    if "Composite" in transform.GetNameOfClass():
        return sum(_count_numbers(transform.GetNthTransform(n)) for n in range(transform.GetNumberOfTransforms()))
    return int(transform.GetNumberOfParameters()) + int(transform.GetNumberOfFixedParameters())


def write_displacement_field(
    displacement_mm: Tensor, affine_ras: Tensor, path: str | os.PathLike[str], xform_code: int = 1
) -> None:
    """Write a dense displacement field that ITK and ANTs read: NIfTI vector image, components in LPS mm.

    Args:
        displacement_mm: (3, I, J, K), RAS mm, from :func:`displacement_field`.
        affine_ras: (4, 4) of its grid.
        path: ends in .nii.gz.
        xform_code: NIfTI's code of the grid's world.

    Raises:
        InputError: the file can't be written.
    """
    components = (
        -part.numpy() if sign < 0 else part.numpy() for sign, part in zip(SIGNS, plain(displacement_mm), strict=True)
    )
    write_nifti(path, components, plain(affine_ras).numpy(), vector=True, xform_code=xform_code)
