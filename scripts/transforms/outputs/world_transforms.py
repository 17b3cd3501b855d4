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
"""The transforms of a case as files of ITK."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from scripts.data.case import Case
from scripts.data.itk_transforms import write_displacement_field, write_itk_transform
from scripts.transforms.outputs.base import Output, fixed_xform_code


class SaveTransforms(Output):
    """The transforms for ITK and 3D Slicer; the inverse one if there is one."""

    name = "transforms"
    files = ("forward_transform.h5", "inverse_transform.h5")
    runs_alone = True

    def write(self, data: Case, folder: Path) -> Iterable[str]:
        """Write the files."""
        found = zip(self.files, (data["transforms"].forward, data["transforms"].inverse), strict=True)
        given = {name: transform for name, transform in found if transform is not None}
        for name, transform in given.items():
            write_itk_transform(transform, folder / name)
        return given


class SaveDisplacement(Output):
    """The dense displacement field on the fixed grid."""

    name = "displacement"
    files = ("displacement.nii.gz",)

    def write(self, data: Case, folder: Path) -> Iterable[str]:
        """Write the file."""
        displacement_mm, affine = data["transforms"].displacement_mm, data["fixed"].affine
        write_displacement_field(displacement_mm, affine, folder / self.files[0], fixed_xform_code(data))
        return self.files
