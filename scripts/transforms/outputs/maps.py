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
"""Maps on the fixed grid: change of volume, confidence, inconsistency."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from scripts.data.case import Case
from scripts.geometry.warping import on_grid
from scripts.metrics.registration_metrics import jacobian_determinant
from scripts.transforms.outputs.base import Output, write_on_fixed_grid
from scripts.utils.tensors import plain


class SaveJacobian(Output):
    """The forward transform's local change of volume."""

    name = "jacobian"
    files = ("jacobian_determinant.nii.gz",)

    def write(self, data: Case, folder: Path) -> Iterable[str]:
        """Compute and write."""
        determinant = jacobian_determinant(data["transforms"].displacement_mm, data["fixed"].affine)
        write_on_fixed_grid(folder / self.files[0], determinant.numpy(), data)
        return self.files


class SaveConfidence(Output):
    """Where the registration can be trusted, 0 to 1."""

    name = "confidence"
    files = ("confidence.nii.gz",)

    def write(self, data: Case, folder: Path) -> Iterable[str]:
        """Write, if the quality was measured."""
        if "quality_maps" not in data:
            return ()
        maps, fixed = data["quality_maps"], data["fixed"]
        values = on_grid(maps.confidence, maps.affine, fixed.shape[1:], plain(fixed.affine))
        write_on_fixed_grid(folder / self.files[0], values, data)
        return self.files


class SaveInconsistency(Output):
    """The distance of inverse(forward(x)) from x, mm; NaN where forward leaves the moving image, and outside a crop."""

    name = "inconsistency"
    files = ("inconsistency_mm.nii.gz",)

    def write(self, data: Case, folder: Path) -> Iterable[str]:
        """Write, if the quality was measured and there is an inverse."""
        if "quality_maps" not in data or data["transforms"].inverse is None:
            return ()
        maps, fixed = data["quality_maps"], data["fixed"]
        values = on_grid(maps.inconsistency_mm, maps.affine, fixed.shape[1:], plain(fixed.affine), float("nan"))
        write_on_fixed_grid(folder / self.files[0], values, data)
        return self.files
