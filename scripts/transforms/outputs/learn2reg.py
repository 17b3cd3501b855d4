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
"""The displacement field of a case in the form of Learn2Reg."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import nibabel as nib
import numpy as np

from scripts.data.case import Case
from scripts.data.learn2reg_fields import PATTERN, field_name, voxel_displacement
from scripts.data.volumes import FROM_MEMORY
from scripts.transforms.outputs.base import Output
from scripts.utils.atomic import replacing
from scripts.utils.errors import InputError
from scripts.utils.tensors import plain


class SaveLearn2RegField(Output):
    """The displacement field in Learn2Reg's form, named after the pair by :func:`field_name`."""

    name = "learn2reg"
    files = (PATTERN,)

    def write(self, data: Case, folder: Path) -> Iterable[str]:
        """Write the file.

        Raises:
            InputError: the images are not named as Learn2Reg's, or differ in their grid size.
        """
        fixed, moving = data["fixed"], data["moving"]
        name = field_name(*(str(image.meta.get("filename_or_obj", FROM_MEMORY)) for image in (fixed, moving)))
        if fixed.shape != moving.shape:
            raise InputError(
                f"save::learn2reg: Learn2Reg's images have one grid size; fixed has {tuple(fixed.shape[1:])} voxels,"
                f" moving {tuple(moving.shape[1:])}"
            )
        field = voxel_displacement(data["transforms"].displacement_mm, fixed.affine, moving.affine)
        image = nib.Nifti1Image(np.ascontiguousarray(field.permute(1, 2, 3, 0).numpy()), plain(fixed.affine).numpy())
        with replacing(folder / name) as temporary:
            image.to_filename(temporary)
        return (name,)
