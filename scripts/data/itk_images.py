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
"""Volumes as ITK images and back, for the packages that work on these: world RAS in memory, LPS in ITK."""

from __future__ import annotations

from typing import Any, NamedTuple

import itk
import numpy as np
import torch
from torch import Tensor

from scripts.geometry.world_axes import LPS_RAS
from scripts.utils.tensors import plain


class Volume(NamedTuple):
    """An image on its own grid."""

    values: Tensor
    """(I, J, K) float32."""
    affine_ras: Tensor
    """(4, 4) float64, voxel -> world RAS mm."""


def lps_geometry(affine_ras: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return origin (3,), spacing (3,) and direction (3, 3), LPS mm, of a grid without shear."""
    affine = (LPS_RAS @ plain(affine_ras).double()).numpy()
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    return affine[:3, 3], spacing, affine[:3, :3] / spacing


def to_itk_image(volume: Volume) -> Any:
    """Return the volume as an ``itk.Image[itk.F, 3]``."""
    return array_to_itk(plain(volume.values).float().numpy().transpose(2, 1, 0), volume.affine_ras)


def array_to_itk(values: np.ndarray, affine_ras: Tensor) -> Any:
    """Return an array (K, J, I) as an ITK image of its type on the grid of an affine (i, j, k) -> world RAS mm."""
    image = itk.image_from_array(np.ascontiguousarray(values))
    origin, spacing, direction = lps_geometry(affine_ras)
    image.SetOrigin(origin.tolist())
    image.SetSpacing(spacing.tolist())
    image.SetDirection(itk.matrix_from_array(np.ascontiguousarray(direction)))
    return image


def field_ras(field_lps: np.ndarray) -> Tensor:
    """Return displacements (I, J, K, 3), LPS mm, as (3, I, J, K) float32, RAS mm."""
    field = torch.from_numpy(np.ascontiguousarray(np.moveaxis(field_lps, -1, 0))).float()
    return field * LPS_RAS.diagonal()[:3].float().view(3, 1, 1, 1)
