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
# 0.32 mm and lose 28 to 85 % of the dissimilarity. docs/monailabel.md has the figures of pairs that do not match.
MOST_FOLDING_PERCENT = 0.5
MOST_INCONSISTENCY_MM = 2.0
LEAST_GAIN = 0.1  # of the dissimilarity before
SIMILAR_ALREADY = 0.2  # 1 - LNCC before, where little can be gained
MOST_DISSIMILAR = 0.75  # 1 - LNCC after


def quality(report: Mapping[str, Any]) -> dict[str, Any]:
    """Return the figures of a report that tell how good it is: similarity is 1 - correlation, lower is better."""
    return {
        "similarity_before": report["similarity"]["before"],
        "similarity_after": report["similarity"]["after"],
        "folding_percent": report.get("folding_percent"),
        "inconsistency_mm": report.get("inconsistency_mm"),
    }


def doubts(figures: Mapping[str, Any], similarity: str = "lncc") -> list[str]:
    """Return what speaks against a registration, one short text each; nothing if all is well.

    Args:
        figures: of :func:`quality`.
        similarity: the measure; the dissimilarity itself is only judged for ``lncc``.
    """
    found = []
    before, after = figures["similarity_before"], figures["similarity_after"]
    folding, inconsistency = figures["folding_percent"], figures["inconsistency_mm"]
    if before is None or after is None:
        found.append("the similarity could not be computed")
    elif similarity == "lncc" and after > MOST_DISSIMILAR:
        found.append(f"the images still differ much (1 - correlation {after:.2f}): they may show different anatomy")
    elif similarity == "lncc" and before > SIMILAR_ALREADY and before - after < LEAST_GAIN * before:
        found.append(f"the images became hardly more similar (1 - correlation {before:.2f} to {after:.2f})")
    elif after > before:
        found.append(f"the images became less similar ({before:.3g} to {after:.3g})")
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
