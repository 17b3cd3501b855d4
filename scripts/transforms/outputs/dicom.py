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
"""The warped image as a DICOM series in the study of the moving one."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from scripts.data.case import Case, CaseFiles
from scripts.data.dicom_writing import case_series, derived_series, frame_of_reference, moving_series, write_series
from scripts.data.volumes import FROM_MEMORY
from scripts.transforms.outputs.base import Output
from scripts.transforms.postprocessing import warp_onto_fixed
from scripts.utils.tensors import plain


class SaveDicom(Output):
    """The moving image on the fixed grid as a DICOM series, if the moving image is one."""

    name = "dicom"
    files = ("warped_moving_dicom",)

    def check(self, case: CaseFiles) -> None:
        """Refuse a moving image that is not a DICOM series of single slices."""
        moving_series(case, case["moving"] if isinstance(case["moving"], str) else FROM_MEMORY)

    def write(self, data: Case, folder: Path) -> Iterable[str]:
        """Warp and write; the folder appears whole or not at all.

        Raises:
            InputError: the moving image is not a DICOM series, or the folder can't be written.
        """
        moving, fixed = (
            str(volume.meta.get("filename_or_obj", FROM_MEMORY)) for volume in (data["moving"], data["fixed"])
        )
        series = moving_series(data, moving)
        warped = warp_onto_fixed(data, "moving", data["transforms"].displacement_mm, "float32")
        frame = frame_of_reference(case_series(data, "fixed", fixed)) if Path(fixed).is_dir() else None
        write_series(derived_series(warped, plain(data["fixed"].affine).numpy(), series, frame), folder / self.files[0])
        return self.files
