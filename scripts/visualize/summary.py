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
"""Print where a registration's results are and how good they are: ``python -m scripts summary report.json``.

``configs/inference.yaml`` ends with it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def summarize(report: dict[str, Any], folder: Path) -> str:
    """Return a few lines for a person.

    Args:
        report: content of a report.json.
        folder: where it lies, with the other results.
    """
    lines = [f"results in {folder}:", *(f"  {name}" for name in (*report["outputs"], "report.json"))]
    lines.append(f"similarity loss   {_similarity(report)} (lower is better)")
    if "tre_mm" in report:
        tre = report["tre_mm"]
        lines.append(f"landmark error    {tre['before']['mean']:.2f} -> {tre['after']['mean']:.2f} mm (mean TRE)")
    if report.get("dice", {}).get("after", {}).get("mean") is not None:
        dice = report["dice"]
        lines.append(f"label overlap     {dice['before']['mean']:.3f} -> {dice['after']['mean']:.3f} (mean Dice)")
    if "quality" in report:
        reasons = "; ".join(report["quality"]["reasons"])
        lines.append(f"verdict           {report['quality']['verdict']}{': ' + reasons if reasons else ''}")
    lines += [f"warning           {line}" for line in report.get("warnings", ())]
    lines.append(f"folding           {report['folding_percent']:.3f} % of the cells")
    if report.get("inconsistency_mm") is not None:  # there may be no inverse
        lines.append(f"inconsistency     {report['inconsistency_mm']:.2f} mm (forward, then inverse, mean)")
    memory = report["peak_memory_mib"]  # None where the system does not tell
    lines.append(f"registration took {report['seconds']:.0f} s" + (f", peak memory {memory:.0f} MiB" if memory else ""))
    lines.append(f"weights           {report['weights']['name'] or report['weights'].get('path') or 'none'}")
    return "\n".join(lines)


def _similarity(report: Mapping[str, Any]) -> str:
    return " -> ".join(
        "unknown" if report["similarity"][when] is None else f"{report['similarity'][when]:.3f}"
        for when in ("before", "after")
    )


def print_results(cases: Sequence[Mapping[str, Any]], enabled: bool = True) -> None:
    """Print the summary of a pair, or one line each of several; cases without a report are left out.

    Args:
        cases: of :func:`scripts.data.cases.load_cases`.
        enabled: False prints nothing.
    """
    for case in cases if enabled else ():
        path = Path(case["case_dir"]) / "report.json"
        if not path.is_file():
            continue
        report = json.loads(path.read_text(encoding="utf-8"))
        if len(cases) == 1:
            print(summarize(report, path.parent))
            continue
        verdict = report.get("quality", {}).get("verdict", "done")
        print(f"{case['case']}: {verdict}, similarity loss {_similarity(report)}, results in {path.parent}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the summary of the report that the command line names."""
    parser = argparse.ArgumentParser("python -m scripts summary", description="Print the figures of a registration.")
    parser.add_argument("report", type=Path, help="report.json")
    path = parser.parse_args(arguments).report
    print(summarize(json.loads(path.read_text(encoding="utf-8")), path.parent))
