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
"""Print where a registration's results are and how good they are: ``python -m scripts.summary report.json``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def summarize(report: dict[str, Any], folder: Path) -> str:
    """Return a few lines for a person.

    Args:
        report: content of a report.json.
        folder: where it lies, with the other results.
    """
    lines = [f"results in {folder}:", *(f"  {name}" for name in (*report["outputs"], "report.json"))]
    before, after = report["similarity"]["before"], report["similarity"]["after"]
    lines.append(f"similarity loss   {before:.3f} -> {after:.3f} (lower is better)")
    if "tre_mm" in report:
        tre = report["tre_mm"]
        lines.append(f"landmark error    {tre['before']['mean']:.2f} -> {tre['after']['mean']:.2f} mm (mean TRE)")
    if report.get("dice", {}).get("after", {}).get("mean") is not None:
        dice = report["dice"]
        lines.append(f"label overlap     {dice['before']['mean']:.3f} -> {dice['after']['mean']:.3f} (mean Dice)")
    lines.append(f"folding           {report['folding_percent']:.3f} % of the voxels")
    lines.append(f"inconsistency     {report['inconsistency_mm']:.2f} mm (forward, then inverse)")
    memory = report["peak_memory_mib"]  # None where the system does not tell
    lines.append(f"registration took {report['seconds']:.0f} s" + (f", peak memory {memory:.0f} MiB" if memory else ""))
    lines.append(f"weights           {report['weights']['name']}")
    return "\n".join(lines)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("usage: python -m scripts.summary REPORT.json")
    path = Path(sys.argv[1])
    print(summarize(json.loads(path.read_text()), path.parent))
