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
"""Displacement fields in the form that Learn2Reg's evaluation reads: names, and voxels of the images' grids.

A field is ``disp_FIXED_MOVING.nii.gz`` (I, J, K, 3), float32, voxels: the moving image is sampled at voxel (i, j, k) +
displacement. Its evaluation passes those numbers to ``map_coordinates``; both images have one grid size.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import Tensor

from scripts.utils.errors import InputError
from scripts.utils.paths import stem
from scripts.utils.tensors import plain

_CASE = re.compile(r".*?_(\d{4})(?:_(\d{4}))?")  # the subject, and the modality or time point

PATTERN = "disp_*.nii.gz"


def field_name(fixed: str, moving: str) -> str:
    """Return the name of a pair's field.

    As the evaluation script: ``disp_0001_0002.nii.gz`` by subjects where both images are of one modality, or the fixed
    one is 0000 and the moving one 0001; else with the modalities, ``disp_0001_0001_0002_0000.nii.gz``.

    Raises:
        InputError: names that are not Learn2Reg's.
    """
    parts = []
    for path in (fixed, moving):
        match = _CASE.fullmatch(stem(path))
        if match is None:
            raise InputError(
                f"save::learn2reg: '{Path(path).name}' is not named as Learn2Reg's images are (Name_0001_0000.nii.gz)"
            )
        parts.append((match[1], match[2] or "0000"))
    (fixed_subject, fixed_kind), (moving_subject, moving_kind) = parts
    if fixed_kind == moving_kind or (fixed_kind, moving_kind) == ("0000", "0001"):
        return f"disp_{fixed_subject}_{moving_subject}.nii.gz"
    return f"disp_{fixed_subject}_{fixed_kind}_{moving_subject}_{moving_kind}.nii.gz"


def voxel_displacement(displacement_mm: Tensor, fixed_affine: Tensor, moving_affine: Tensor) -> Tensor:
    """Return where each fixed voxel lies in the moving image's voxels, less its own index: (3, I, J, K) float32.

    Args:
        displacement_mm: (3, I, J, K), RAS mm, on the fixed grid.
        fixed_affine: (4, 4), fixed voxel -> world RAS mm.
        moving_affine: (4, 4), moving voxel -> world RAS mm.
    """
    fixed, to_voxel = plain(fixed_affine).double(), torch.linalg.inv(plain(moving_affine).double())
    offset = to_voxel @ fixed - torch.eye(4, dtype=torch.float64)
    axes = [torch.arange(n, dtype=torch.float64) for n in displacement_mm.shape[1:]]
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij"))
    moved = torch.einsum("ab,bijk->aijk", offset[:3, :3], grid) + offset[:3, 3].view(3, 1, 1, 1)
    return (moved + torch.einsum("ab,bijk->aijk", to_voxel[:3, :3], plain(displacement_mm).double())).float()
