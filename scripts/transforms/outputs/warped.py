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
"""What the transforms carry: the moving image and label on the fixed grid, and landmarks."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from scripts.data.case import Case
from scripts.data.landmarks import case_landmarks, write_warped_landmarks
from scripts.transforms.outputs.base import Output, write_on_fixed_grid
from scripts.transforms.postprocessing import warp_onto_fixed


class SaveWarpedMoving(Output):
    """The moving image on the fixed grid, linear, in its type on disk."""

    name = "warped"
    files = ("warped_moving.nii.gz",)

    def write(self, data: Case, folder: Path) -> Iterable[str]:
        """Warp and write."""
        warped = warp_onto_fixed(data, "moving", data["transforms"].displacement_mm)
        write_on_fixed_grid(folder / self.files[0], warped, data)
        return self.files


class SaveWarpedLabel(Output):
    """The warped label on the fixed grid, exact values in its type on disk."""

    name = "warped"
    files = ("warped_label.nii.gz",)

    def write(self, data: Case, folder: Path) -> Iterable[str]:
        """Write, if there is a warped label."""
        if "warped_label" not in data:
            return ()
        write_on_fixed_grid(folder / self.files[0], data["warped_label"], data)
        return self.files


class SaveWarpedLandmarks(Output):
    """The landmarks of either image carried to the other one, in the world of the landmark files."""

    name = "warped"
    files = ("warped_landmarks.csv",)

    def write(self, data: Case, folder: Path) -> Iterable[str]:
        """Carry and write, if there are landmarks."""
        space, transforms = data.get("landmark_space", "LPS"), data["transforms"]
        groups = []
        if "fixed_landmarks" in data:
            landmarks = case_landmarks(data, "fixed_landmarks", space).landmarks(data["fixed"].affine)
            groups.append(("fixed", landmarks, transforms.forward))
        if "moving_landmarks" in data and transforms.inverse is not None:
            landmarks = case_landmarks(data, "moving_landmarks", space).landmarks(data["moving"].affine)
            groups.append(("moving", landmarks, transforms.inverse))
        if not groups:
            return ()
        write_warped_landmarks(folder / self.files[0], groups, space)
        return self.files
