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
"""Displacement fields in the conventions of other tools, on the grid of the fixed image.

``itk`` and ``ants`` are the same file: NIfTI, 5-D, intent vector, LPS mm. ``nifti`` has the
components along NIfTI's own axes, RAS mm, and the intent displacement vector. ``fsl`` is FSL's relative warp (FNIRT,
applywarp --rel): 4-D, mm of FSL's voxel-aligned coordinates. ``numpy`` is an .npz with ``displacement_ras_mm``
(I, J, K, 3) and ``affine_ras``.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from torch import Tensor

from scripts.data.itk_transforms import write_displacement_field
from scripts.data.nifti_writing import write_nifti
from scripts.utils.atomic import replacing
from scripts.utils.errors import InputError

DISPVECT = 1006  # NIfTI's displacements along its own axes; readers know from it that they are not LPS
FSL_INTENT = 2006  # FSL_FNIRT_DISPLACEMENT_FIELD: applywarp takes the values as relative without being told


def write_itk(displacement_mm: Tensor, affine_ras: Tensor, path: Path, xform_code: int = 1) -> None:
    """Write for ITK, SimpleITK, ANTs and 3D Slicer: components in LPS mm."""
    write_displacement_field(displacement_mm, affine_ras, path, xform_code)


def write_nifti_vector(displacement_mm: Tensor, affine_ras: Tensor, path: Path, xform_code: int = 1) -> None:
    """Write as NIfTI's standard says: components along the axes of its world, RAS mm."""
    parts = [part.numpy() for part in displacement_mm]
    write_nifti(path, parts, affine_ras.numpy(), vector=True, intent_code=DISPVECT, xform_code=xform_code)


def write_numpy(displacement_mm: Tensor, affine_ras: Tensor, path: Path, xform_code: int = 1) -> None:
    """Write an .npz that loads without pickle; it has no place for a code."""
    with replacing(path) as temporary:
        np.savez_compressed(
            temporary,
            displacement_ras_mm=np.ascontiguousarray(np.moveaxis(displacement_mm.numpy(), 0, -1)),
            affine_ras=affine_ras.numpy(),
        )


def write_fsl(
    displacement_mm: Tensor,
    affine_ras: Tensor,
    path: Path,
    moving_shape: tuple[int, ...],
    moving_affine_ras: Tensor,
    xform_code: int = 1,
) -> None:
    """Write FSL's relative warp field: moving point - fixed point, each in its image's own FSL coordinates."""
    field = fsl_displacement(displacement_mm, affine_ras, moving_shape, moving_affine_ras)
    write_nifti(path, [field], affine_ras.numpy(), intent_code=FSL_INTENT, xform_code=xform_code)


def fsl_affine(shape: tuple[int, ...], affine_ras: np.ndarray) -> np.ndarray:
    """Return (4, 4): voxel -> FSL's coordinates of an image.

    FSL counts mm from the corner voxel along the voxel axes, and turns the first axis around if the affine's
    determinant is positive (FSL wiki, "What is the format of the matrix used by FLIRT?").
    """
    spacing = nib.affines.voxel_sizes(affine_ras)
    matrix = np.diag([*spacing, 1.0])
    if np.linalg.det(affine_ras[:3, :3]) > 0:
        matrix[0, 0] = -spacing[0]
        matrix[0, 3] = (shape[0] - 1) * spacing[0]
    return matrix


def fsl_displacement(
    displacement_mm: Tensor, affine_ras: Tensor, moving_shape: tuple[int, ...], moving_affine_ras: Tensor
) -> np.ndarray:
    """Return the values of FSL's relative warp, (I, J, K, 3) float32.

    Args:
        displacement_mm: (3, I, J, K), RAS mm, fixed point -> moving point.
        affine_ras: (4, 4) of the fixed grid.
        moving_shape: (I, J, K) of the moving image.
        moving_affine_ras: (4, 4) of the moving image.
    """
    shape = tuple(displacement_mm.shape[1:])
    fixed, moving = affine_ras.numpy(), moving_affine_ras.numpy()
    voxels = np.stack(np.meshgrid(*(np.arange(n, dtype=np.float64) for n in shape), indexing="ij"), axis=-1)
    there = nib.affines.apply_affine(fixed, voxels) + np.moveaxis(displacement_mm.double().numpy(), 0, -1)
    to_fsl = fsl_affine(moving_shape, moving) @ np.linalg.inv(moving)
    return (
        nib.affines.apply_affine(to_fsl, there) - nib.affines.apply_affine(fsl_affine(shape, fixed), voxels)
    ).astype(np.float32)


WRITERS: dict[str, tuple[str, Callable[[Tensor, Tensor, Path, int], None]]] = {
    "itk": ("displacement_itk.nii.gz", write_itk),
    "ants": ("displacement_ants.nii.gz", write_itk),
    "nifti": ("displacement_ras.nii.gz", write_nifti_vector),
    "numpy": ("displacement.npz", write_numpy),
}
FSL_NAME = "displacement_fsl.nii.gz"


def convert_field(
    name: str,
    displacement_mm: Tensor,
    affine_ras: Tensor,
    folder: Path,
    moving: tuple[tuple[int, ...], Tensor] | None = None,
    xform_code: int = 1,
) -> str:
    """Write a displacement field in another tool's convention and return the name of the file.

    Args:
        name: itk, ants, nifti, fsl or numpy.
        displacement_mm: (3, I, J, K), RAS mm.
        affine_ras: (4, 4) of its grid.
        folder: where the file goes.
        moving: shape and affine of the moving image, for fsl.
        xform_code: NIfTI's code of the grid's world.

    Raises:
        InputError: an unknown name, or fsl without a moving image.
    """
    affine = torch.as_tensor(affine_ras, dtype=torch.float64)
    if name == "fsl":
        if moving is None:
            raise InputError("convert 'fsl' needs the moving image, whose header its values depend on: give --moving")
        write_fsl(displacement_mm, affine, folder / FSL_NAME, *moving[:2], xform_code)
        return FSL_NAME
    file_name, write = WRITERS[check_format(name)]
    write(displacement_mm, affine, folder / file_name, xform_code)
    return file_name


def check_format(name: str) -> str:
    """Return the name of a known format.

    Raises:
        InputError: it is not known.
    """
    if name != "fsl" and name not in WRITERS:
        raise InputError(f"convert: expected one of {', '.join((*WRITERS, 'fsl'))}, got '{name}'")
    return name
