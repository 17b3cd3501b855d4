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

# Good registrations of the real pairs of docs/evaluation.md (preset fast and default) lose 28 to 85 % of the
# dissimilarity. All other limits are the bundle's own (scripts/metrics/quality.py): its report holds the reasons.
LEAST_GAIN = 0.1  # of the dissimilarity before
SIMILAR_ALREADY = 0.2  # 1 - LNCC before, where little can be gained


def quality(report: Mapping[str, Any], coarse: float | None = None) -> dict[str, Any]:
    """Return the figures that tell how good a registration is: similarity is 1 - correlation, lower is better.

    Args:
        report: of the bundle.
        coarse: similarity after a coarse registration of the pair, where it means something; not judged.
    """
    judged = report.get("quality") or {}
    return {
        "coarse_similarity": coarse,
        "similarity_before": report["similarity"]["before"],
        "similarity_after": report["similarity"]["after"],
        "folding_percent": report.get("folding_percent"),
        "inconsistency_mm": report.get("inconsistency_mm"),
        "verdict": judged.get("verdict"),
        "reasons": list(judged.get("reasons", ())),
    }


def doubts(figures: Mapping[str, Any], similarity: str = "lncc") -> list[str]:
    """Return what speaks against a registration, one short text each; nothing if all is well.

    Args:
        figures: of :func:`quality`.
        similarity: the measure; gains are judged for ``lncc`` only.
    """
    found = list(figures["reasons"])
    before, after = figures["similarity_before"], figures["similarity_after"]
    if before is None or after is None:
        return found or ["the similarity could not be computed"]
    if similarity == "lncc" and before > SIMILAR_ALREADY and 0 <= before - after < LEAST_GAIN * before:
        found.append(f"the images became hardly more similar (1 - correlation {before:.2f} to {after:.2f})")
    return found


def warning(doubts_found: list[str]) -> str | None:
    """Return one sentence for an annotator, or None."""
    if not doubts_found:
        return None
    return f"Doubtful registration, check the result before use: {'; '.join(doubts_found)}."
