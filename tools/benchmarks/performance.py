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
"""Time and memory of the published packages and of this project, side by side: the tables of docs/performance.md.

    python -m tools.benchmarks.performance [--tasks forward register ...] [--shapes 96 175]
        [--repeats 5] [--device cuda]
                                     [--precision float32|tf32|bf16] [--out output/performance.json]

Each measurement is a fresh process on the same random pair with the same random weights; the variants take turns, the
median counts. Seconds of a single pass or registration are those of the first in the process, as a user sees it; of a
step, of the second one. Needs `make dev`, and at 175 about 13 GB of memory.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tools.benchmarks.performance_tasks import TASKS, measure

ROOT = Path(__file__).resolve().parents[2]
FIGURES = ("seconds", "cpu_seconds", "gigabytes", "page_faults")
HEADER = (
    "| work | variant | seconds | against the first | CPU seconds | peak GB | of the first | page faults, million |\n"
    "| --- | --- | --- | --- | --- | --- | --- | --- |"
)


def main() -> None:
    """Print a Markdown table for each shape."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--tasks", nargs="*", default=list(TASKS), choices=list(TASKS), help="all by default")
    parser.add_argument("--shapes", nargs="*", type=int, default=[96, 175], help="voxels along each axis")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="float32", choices=["float32", "tf32", "bf16"], help="of this project")
    parser.add_argument("--out", type=Path, default=ROOT / "output" / "performance.json", help="all figures")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(measure(given.tasks[0], given.one, given.shapes[0], given.device, given.precision)))
        return
    rows: list[dict[str, Any]] = []
    for shape in given.shapes:
        print(f"\n{shape}^3, {given.device}, {given.precision}, median of {given.repeats}\n\n{HEADER}", flush=True)
        for task in given.tasks:
            variants = list(TASKS[task])
            found: dict[str, list[dict[str, float]]] = {variant: [] for variant in variants}
            for _ in range(given.repeats):
                for variant in variants:
                    found[variant].append(_measure_apart(task, variant, shape, given.device, given.precision))
            medians = {variant: _medians(found[variant]) for variant in variants}
            for variant in variants:
                rows.append({"task": task, "variant": variant, "shape": shape, "all": found[variant]})
                print(_table_row(task, variant, medians[variant], medians[variants[0]]), flush=True)
            given.out.parent.mkdir(parents=True, exist_ok=True)
            given.out.write_text(json.dumps(rows, indent=2) + "\n")


def _measure_apart(task: str, variant: str, shape: int, device: str, precision: str) -> dict[str, float]:
    words = [sys.executable, "-m", "tools.benchmarks.performance", "--one", variant, "--tasks", task]
    words += ["--shapes", str(shape), "--device", device, "--precision", precision]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(words)} failed:\n{done.stderr}")
    figures: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return figures


def _medians(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.median(row[name] for row in rows) for name in FIGURES}


def _table_row(task: str, variant: str, found: dict[str, float], base: dict[str, float]) -> str:
    faster, lighter = base["seconds"] / found["seconds"], found["gigabytes"] / base["gigabytes"]
    ratios = ("", "") if found is base else (f"{faster:.1f} x faster", f"{lighter:.0%}")
    return (
        f"| {task} | {variant} | {found['seconds']:.2f} | {ratios[0]} | {found['cpu_seconds']:.1f} |"
        f" {found['gigabytes']:.2f} | {ratios[1]} | {found['page_faults'] / 1e6:.2f} |"
    )


if __name__ == "__main__":
    main()
