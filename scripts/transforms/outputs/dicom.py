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
from scripts.data.dicom_writing import check_source, derived_series, frame_of_reference, write_series
from scripts.transforms.outputs.base import Output
from scripts.transforms.postprocessing import warp_onto_fixed
from scripts.utils.tensors import plain


class SaveDicom(Output):
    """The moving image on the fixed grid as a DICOM series, if the moving image is one."""

    name = "dicom"
    files = ("warped_moving_dicom",)

    def check(self, case: CaseFiles) -> None:
        """Refuse a moving image that is not a DICOM series of single slices."""
        check_source(str(case["moving"]), case.get("moving_series"))

    def write(self, data: Case, folder: Path) -> Iterable[str]:
        """Warp and write; the folder appears whole or not at all.

        Raises:
            InputError: the moving image is not a DICOM series, or the folder can't be written.
        """
        source, uid = str(data["moving"].meta.get("filename_or_obj", "")), data.get("moving_series")
        check_source(source, uid)
        warped = warp_onto_fixed(data, "moving", data["transforms"].displacement_mm, "float32")
        fixed = str(data["fixed"].meta.get("filename_or_obj", ""))
        frame = frame_of_reference(fixed, data.get("fixed_series")) if Path(fixed).is_dir() else None
        slices = derived_series(warped, plain(data["fixed"].affine).numpy(), source, uid, frame)
        write_series(slices, folder / self.files[0])
        return self.files
