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
"""Reading, composing and inverting transforms of the world that this bundle, ITK, ANTs, 3D Slicer and others wrote.

All of them map points of the grid that is resampled onto (fixed) to points of the image that is resampled (moving),
world LPS mm, as ITK's and ANTs' files do.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import itk
import numpy as np
import torch

from scripts.data.foreign_fields import read_field
from scripts.data.foreign_transforms import read_parts, refuse_other_tools
from scripts.data.itk_resampling import Grid
from scripts.geometry.coordinates import extent, identity_grid, jacobian_determinant, sample
from scripts.utils.errors import InputError, InputFileError
from scripts.utils.regular_files import check_file

logger = logging.getLogger(__name__)

TRANSFORM_SUFFIXES = (".h5", ".hdf5", ".hdf", ".mat", ".txt", ".tfm")
FIELD_SUFFIXES = (".nii.gz", ".nii", ".mha", ".mhd", ".nrrd", ".nhdr")
INVERSION_STEPS = 60
NEWTON_STEPS = 60
INVERSION_VOXELS = 1e-4  # voxels of the field
LARGEST_GAP = 0.05  # likewise: of inverse, then field


def read_transform(path: str, moving: Grid | None = None) -> Any:
    """Read a transform file, or a displacement field as an image, into an ``itk.CompositeTransform``.

    Args:
        path: ``.h5``, ``.mat``, ``.txt`` or ``.tfm`` of ITK, ANTs or 3D Slicer, or an image with 3 values a voxel: a
            field of one of the tools that ``scripts.data.field_kinds`` lists.
        moving: grid of the moving image, needed for the warps of FSL.

    Raises:
        InputFileError: the file can't be read, is not a 3-D transform, or can be read in more than one way.
    """
    try:
        check_file(path)
    except InputFileError as error:
        raise InputFileError(f"transform {error}") from error
    name = path.lower()
    if name.endswith(FIELD_SUFFIXES):
        try:
            displacement, grid = read_field(path, moving)
        except InputFileError as error:
            raise InputFileError(str(error) if str(error).startswith("transform") else f"transform {error}") from error
        for line in grid.warnings:
            logger.warning("transform %s", line)
        direction = np.asarray(grid.direction)[:3, :3]
        return _composite([field_transform(displacement, grid.origin[:3], grid.spacing[:3], direction)])
    refuse_other_tools(path)
    if not name.endswith(TRANSFORM_SUFFIXES):
        raise InputFileError(
            f"transform '{path}': give a transform of ITK, ANTs or 3D Slicer ({', '.join(TRANSFORM_SUFFIXES)}) or a"
            f" displacement field ({', '.join(FIELD_SUFFIXES)})"
        )
    parts = read_parts(path)
    if not parts:
        raise InputFileError(f"transform '{path}' holds no transform")
    if any(part.GetInputSpaceDimension() != 3 for part in parts):
        raise InputFileError(f"transform '{path}' is not 3-D; give a transform of 3-D images")
    try:
        return _composite(parts)
    except InputError as error:
        raise InputFileError(f"transform '{path}': {error}") from error


def field_transform(
    displacement: np.ndarray, origin: Sequence[float], spacing: Sequence[float], direction: np.ndarray
) -> Any:
    """Return an ``itk.DisplacementFieldTransform`` of displacements (K, J, I, 3), LPS mm, on a grid in LPS mm."""
    image = itk.image_from_array(np.ascontiguousarray(displacement, dtype=np.float64), is_vector=True)
    image.SetOrigin([float(value) for value in origin])
    image.SetSpacing([float(value) for value in spacing])
    image.SetDirection(itk.matrix_from_array(np.ascontiguousarray(direction, dtype=np.float64)))
    transform = itk.DisplacementFieldTransform[itk.D, 3].New()
    transform.SetDisplacementField(image)
    return transform


def compose(transforms: Sequence[Any]) -> Any:
    """Return one transform; as in ANTs' lists, a point goes through the first one first."""
    return _composite([part for transform in reversed(transforms) for part in flatten(transform)])


def flatten(transform: Any) -> list[Any]:
    """Return the parts of a composite, of composites in it, too; a point goes through the last one first."""
    if transform.GetTransformTypeAsString().startswith("CompositeTransform"):
        return [
            part
            for n in range(transform.GetNumberOfTransforms())
            for part in flatten(itk.down_cast(transform.GetNthTransform(n)))
        ]
    return [transform]


def _composite(parts: Sequence[Any]) -> Any:
    composite = itk.CompositeTransform[itk.D, 3].New()
    for part in (inner for outer in parts for inner in flatten(itk.down_cast(outer))):
        if not part.GetTransformTypeAsString().endswith("_double_3_3"):
            raise InputError(
                f"a transform of the kind {part.GetTransformTypeAsString()} can't be composed; give one of 3-D points"
                " to 3-D points in double precision"
            )
        composite.AddTransform(part)
    return composite


def invert(transform: Any) -> Any:
    """Return the inverse of a composite: exact for linear parts, by :func:`invert_ddf` for displacement fields.

    The inverse of a field lies on the field's own grid; its border's values go on outside.

    Raises:
        InputError: a part has no inverse: a kind that ITK does not invert, or a field that folds.
    """
    return _composite([_invert_part(part) for part in reversed(flatten(transform))])


def _invert_part(part: Any) -> Any:
    kind = part.GetTransformTypeAsString()
    if kind.startswith("DisplacementFieldTransform"):
        return _invert_field(part)
    try:
        inverse = part.GetInverseTransform()
    except RuntimeError:
        inverse = None
    if inverse is None:
        raise InputError(f"a transform of the kind {kind} has no inverse; give the inverse transform's own file")
    return itk.down_cast(inverse)


def _invert_field(part: Any) -> Any:
    image = part.GetDisplacementField()
    axes = itk.array_from_matrix(image.GetDirection()) * np.array(image.GetSpacing())  # columns: steps of i, j, k
    displacement = itk.array_view_from_image(image)
    voxels = (displacement @ np.linalg.inv(axes).T)[..., ::-1]  # components along (k, j, i), as the array's axes
    ddf = torch.from_numpy(np.ascontiguousarray(np.moveaxis(voxels, -1, 0)))[None]
    inverse = invert_ddf(ddf)[0].numpy()
    direction = itk.array_from_matrix(image.GetDirection())
    return field_transform(
        np.moveaxis(inverse, 0, -1)[..., ::-1] @ axes.T, image.GetOrigin(), image.GetSpacing(), direction
    )


def invert_ddf(ddf: torch.Tensor) -> torch.Tensor:
    """Return the displacement field v with v(x) = -ddf(x + v(x)) on the same grid.

    Fixed-point iteration (Chen et al., Med. Phys. 2008), which converges where the field's slopes are below 1; the
    points where it does not are found by damped Newton steps. The result is verified. Outside
    the grid, the border's values go on.

    Args:
        ddf: (1, 3, D, H, W), voxels.

    Raises:
        InputError: the field folds, or no inverse was found somewhere.
    """
    displacement = ddf.double() / extent(ddf).double()
    grid = identity_grid(ddf.shape[2:], dtype=torch.float64)
    if float(jacobian_determinant(grid + displacement).min()) <= 0:
        raise InputError("the displacement field can't be inverted: it folds; give the inverse transform's own file")
    inverse, scale = torch.zeros_like(displacement), extent(displacement)
    for _ in range(INVERSION_STEPS):
        following = -sample(displacement, grid + inverse, padding="border")
        change = ((following - inverse) * scale).abs().max()
        inverse = following
        if change < INVERSION_VOXELS:
            return (inverse * scale).to(ddf.dtype)
    left = ((inverse + sample(displacement, grid + inverse, padding="border")) * scale).abs().amax(
        dim=1
    ) > INVERSION_VOXELS
    targets = grid[0][:, left[0]].T
    inverse[0][:, left[0]] = _newton(displacement, targets, scale.view(1, 3)).T
    gap = float(((inverse + sample(displacement, grid + inverse, padding="border")) * scale).abs().max())
    if gap > LARGEST_GAP:
        raise InputError(
            f"the displacement field can't be inverted: at some points {gap:.2f} voxels are left; give the inverse"
            " transform's own file"
        )
    return (inverse * scale).to(ddf.dtype)


def _newton(displacement: torch.Tensor, targets: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Return displacements v (N, 3) with v + d(x + v) = 0 for points x (N, 3), normalized, by damped Newton steps."""
    shape = displacement.shape[2:]
    steps = [1 / (n - 1) for n in shape]
    slopes = torch.cat([torch.stack(torch.gradient(part, spacing=steps)) for part in displacement[0]])[None]

    def at(field: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
        return sample(field, points.T.reshape(1, 3, -1, 1, 1), padding="border").reshape(field.shape[1], -1).T

    inverse = -at(displacement, targets)
    residual, damping = inverse + at(displacement, targets + inverse), torch.ones(len(targets), 1, dtype=torch.float64)
    for _ in range(NEWTON_STEPS):
        jacobian = at(slopes, targets + inverse).view(-1, 3, 3) + torch.eye(3, dtype=torch.float64)
        step = torch.linalg.lstsq(jacobian, residual[..., None]).solution[..., 0]
        trial = inverse - damping * step
        found = trial + at(displacement, targets + trial)
        better = found.norm(dim=1, keepdim=True) < residual.norm(dim=1, keepdim=True)
        inverse, residual = torch.where(better, trial, inverse), torch.where(better, found, residual)
        damping = torch.where(better, (2 * damping).clamp(max=1), damping / 2)
        if float((residual * scale).abs().max()) < INVERSION_VOXELS:
            break
    return inverse
