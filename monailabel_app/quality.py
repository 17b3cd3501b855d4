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
"""How good a registration is, from its report, and a plain warning where it is doubtful."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# On the real pairs of docs/evaluation.md good registrations (preset fast and default) fold nowhere, return to within
# 0.32 mm, lose 28 to 85 % of the dissimilarity, and have 0.02 to 0.27 after the coarse registration; pairs of different
# anatomy have 0.38 to 0.51 there, while their final similarity looks as good as that of brains (docs/monailabel.md).
MOST_FOLDING_PERCENT = 0.5
MOST_INCONSISTENCY_MM = 2.0
LEAST_GAIN = 0.1  # of the dissimilarity before
SIMILAR_ALREADY = 0.2  # 1 - LNCC before, where little can be gained
MOST_DISSIMILAR = 0.33  # 1 - LNCC after the coarse registration


def quality(report: Mapping[str, Any], coarse: float | None = None) -> dict[str, Any]:
    """Return the figures that tell how good a registration is: similarity is 1 - correlation, lower is better.

    Args:
        report: of the bundle.
        coarse: similarity after a coarse registration of the pair, where it means something.
    """
    return {
        "coarse_similarity": coarse,
        "similarity_before": report["similarity"]["before"],
        "similarity_after": report["similarity"]["after"],
        "folding_percent": report.get("folding_percent"),
        "inconsistency_mm": report.get("inconsistency_mm"),
    }


def doubts(figures: Mapping[str, Any], similarity: str = "lncc") -> list[str]:
    """Return what speaks against a registration, one short text each; nothing if all is well.

    Args:
        figures: of :func:`quality`.
        similarity: the measure; gains are judged for ``lncc`` only.
    """
    found = []
    before, after = figures["similarity_before"], figures["similarity_after"]
    folding, inconsistency = figures["folding_percent"], figures["inconsistency_mm"]
    if before is None or after is None:
        found.append("the similarity could not be computed")
    elif similarity == "lncc" and before > SIMILAR_ALREADY and before - after < LEAST_GAIN * before:
        found.append(f"the images became hardly more similar (1 - correlation {before:.2f} to {after:.2f})")
    elif after > before:
        found.append(f"the images became less similar ({before:.3g} to {after:.3g})")
    coarse = figures.get("coarse_similarity")
    if coarse is not None and coarse > MOST_DISSIMILAR:
        found.append(f"the images differ even coarsely (1 - correlation {coarse:.2f}): they may show different anatomy")
    if folding is not None and folding > MOST_FOLDING_PERCENT:
        found.append(f"the transform folds at {folding:.1f} % of the voxels")
    if inconsistency is not None and inconsistency > MOST_INCONSISTENCY_MM:
        found.append(f"forward and inverse transform disagree by {inconsistency:.1f} mm")
    return found


def warning(doubts_found: list[str]) -> str | None:
    """Return one sentence for an annotator, or None."""
    if not doubts_found:
        return None
    return f"Doubtful registration, check the result before use: {'; '.join(doubts_found)}."
