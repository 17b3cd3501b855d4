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
"""Add the figures of trust, the verdict and the map of confidence to a case."""

from __future__ import annotations

from typing import Any

from monai.transforms import Transform

from scripts.data.case import Case
from scripts.metrics.quality import maps_and_figures, rounded, verdict
from scripts.utils.tensors import plain


class AddQualityd(Transform):
    """Add ``quality`` (figures, ``verdict``, ``reasons``) and ``quality_maps`` to a case with transforms and metrics.

    Args:
        enabled: False adds nothing.
        similarity: that was optimized; the coarse dissimilarity counts for images of one contrast only.
        optimization: of the pair; "off" has limits of its own.
    """

    def __init__(self, enabled: bool = True, similarity: str = "lncc", optimization: str | bool = "field") -> None:
        self.enabled, self.similarity = enabled, similarity
        self.optimized = optimization not in ("off", False)  # YAML reads a bare off as False

    def __call__(self, data: Case) -> Case:
        """Return the case with its quality."""
        if not self.enabled:
            return data
        forward, inverse = data["transforms"].network_forward, data["transforms"].network_inverse
        fixed, moving = (plain(image)[None].float() for image in (data["fixed_image"], data["moving_image"]))
        same_contrast = self.similarity == "lncc" and data.get("fixed_modality") == data.get("moving_modality")
        folding = data["metrics"]["folding_percent"]
        maps, figures = maps_and_figures(forward, inverse, fixed, moving, data["moving"], folding, same_contrast)
        terms = data.get("pred", {}).get("terms", {})
        before, after = (_number(terms.get(f"similarity_{when}")) for when in ("before", "after"))
        figures["similarity_gain"] = None if before is None or after is None else before - after
        figures = rounded(figures)
        return {**data, "quality": {**figures, **verdict(figures, self.optimized)}, "quality_maps": maps}


def _number(value: Any) -> float | None:
    return None if value is None else float(value)
