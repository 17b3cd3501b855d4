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
"""What an evaluation measures beyond each registration's own report: surface distances and the Jacobian."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from monai.data.utils import affine_to_spacing
from monai.transforms import Transform

from scripts.data.case import Case
from scripts.metrics import registration_metrics as metrics
from scripts.metrics.surface_distances import surface_distances_mm
from scripts.transforms.postprocessing import warp_onto_fixed
from scripts.utils.tensors import plain

SMALLEST_DETERMINANT, LARGEST_DETERMINANT = 1e-9, 1e9  # of the logarithm, as Learn2Reg


class AddEvaluationMetricsd(Transform):
    """Add to ``metrics``: ``jacobian``, and ``hd95_mm`` and ``assd_mm`` before and after, if both labels are there.

    Comes after :class:`scripts.transforms.postprocessing.AddMetricsd`. The Jacobian is that of the displacement on
    the fixed image's own grid, for all methods alike: ``negative_percent`` of voxels with a determinant of 0 or less,
    and ``sd_log``, the standard deviation of its logarithm.

    Args:
        surface_distances: False leaves HD95 and ASSD out; they take a second or two for each ten labels.
    """

    def __init__(self, surface_distances: bool = True) -> None:
        self.surface_distances = surface_distances

    def __call__(self, data: Case) -> Case:
        """Return the case with more metrics."""
        found = dict(data["metrics"])
        found["jacobian"] = jacobian_figures(
            metrics.jacobian_determinant(data["transforms"].displacement_mm, data["fixed"].affine)
        )
        if self.surface_distances and found.get("dice", {}).get("after", {}).get("per_label"):
            found |= self._surfaces(data, found["dice"]["after"]["per_label"])
        return {**data, "metrics": found}

    def _surfaces(self, data: Case, labels: Mapping[int, float]) -> dict[str, Any]:
        fixed = plain(data["fixed_label"])[0].numpy()
        spacing = affine_to_spacing(plain(data["fixed"].affine).double())
        before = warp_onto_fixed(data, "moving_label", data["transforms"].forward.without_displacement())
        found: dict[str, Any] = {}
        for when, warped in (("before", before), ("after", data["warped_label"])):
            for name, per_label in surface_distances_mm(fixed, warped, labels, spacing.tolist()).items():
                there = [value for value in per_label.values() if np.isfinite(value)]
                mean = float(np.mean(there)) if there else None
                found.setdefault(name, {})[when] = {"mean": mean, "per_label": per_label}
        return found


def jacobian_figures(determinant: torch.Tensor) -> dict[str, float]:
    """Return ``negative_percent`` and ``sd_log`` of determinants (I, J, K)."""
    values = plain(determinant).double()
    logarithm = values.clamp(SMALLEST_DETERMINANT, LARGEST_DETERMINANT).log()
    return {
        "negative_percent": 100.0 * float((values <= 0).double().mean()),
        "sd_log": float(logarithm.std(correction=0)),
    }
