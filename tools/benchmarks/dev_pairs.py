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
"""Register the development pairs with the bundle's own command and print one table.

    python -m tools.benchmarks.dev_pairs --data FOLDER [--preset fast] [--pairs lung ...] [--motion 25]
        [--variant flipped]

Accuracy is read from each report.json; seconds, processor seconds and peak memory are those of the whole process,
from start to the last file, Python's imports included.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from tools.benchmarks.pairs import VARIANTS, add_motion, bundle_options, read_pairs, read_points, vary, write_points

ROOT = Path(__file__).resolve().parents[2]


def main() -> None:
    """Run all pairs that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    data = os.environ.get("REGISTRATION_TEST_DATA")
    parser.add_argument("--data", type=Path, default=data, required=data is None, help="folder that holds pairs.json")
    parser.add_argument("--out", type=Path, default=ROOT / "output" / "dev_pairs", help="where results go")
    parser.add_argument("--pairs", nargs="*", help="names; all by default")
    parser.add_argument("--motion", type=float, help="first warp moving images with landmarks by this many mm at most")
    parser.add_argument("--seed", type=int, default=0, help="of that motion")
    parser.add_argument("--variant", choices=["backwards", *VARIANTS], help="pose each pair differently")
    arguments, options = parser.parse_known_args()  # what is not known goes to the bundle
    pairs = read_pairs(arguments.data)
    names = arguments.pairs or list(pairs)
    rows = []
    print(HEADER, flush=True)
    for name in names:
        if arguments.motion and "fixed_landmarks" not in pairs[name]:
            continue
        folder = arguments.out / name
        given = bundle_options(arguments.data, pairs[name], folder / "input")
        if arguments.motion:
            points = [read_points(arguments.data / file) for file in pairs[name]["moving_landmarks"]]
            moved_image = folder / "input" / "moving.mha"
            moved = add_motion(
                Path(given["moving"]), np.concatenate(points), moved_image, arguments.motion, arguments.seed
            )
            given["moving"] = str(moved_image)
            given["moving_landmarks"] = str(write_points(folder / "input" / "moving_landmarks.csv", moved))
        if arguments.variant:
            given = vary(given, arguments.variant, folder / "input")
        rows.append({"pair": name, **run_pair(given, folder / "result", options)})
        print(table_row(rows[-1]), flush=True)
    (arguments.out / "table.json").write_text(json.dumps(rows, indent=2) + "\n")


HEADER = (
    "| pair | measure | before | after | folding % | seconds | CPU seconds | peak MB |\n"
    "| --- | --- | --- | --- | --- | --- | --- | --- |"
)


def run_pair(given: dict[str, str], result: Path, options: list[str]) -> dict[str, Any]:
    """Run the bundle's command on one pair and return the figures of the table."""
    result.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "monai.bundle", "run", "inference", "--bundle_root", str(ROOT)]
    command += ["--config_file", str(ROOT / "configs" / "inference.yaml"), "--output_dir", str(result)]
    for key, value in given.items():
        command += [f"--{key}", value]
    began = time.perf_counter()
    with open(result.with_suffix(".log"), "w") as log:
        process = subprocess.Popen([*command, *options], stdout=log, stderr=subprocess.STDOUT, cwd=ROOT)
        _, status, usage = os.wait4(process.pid, 0)
    if status != 0:
        raise SystemExit(f"{' '.join(command)} failed; see {log.name}")
    report = json.loads((result / "report.json").read_text())
    measure, scores, scale = (
        ("TRE mm", report.get("tre_mm"), 1.0) if "tre_mm" in report else ("Dice %", report["dice"], 100.0)
    )
    return {
        "measure": measure,
        "before": scale * scores["before"]["mean"],
        "after": scale * scores["after"]["mean"],
        "folding": report["folding_percent"],
        "seconds": time.perf_counter() - began,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "peak_mb": usage.ru_maxrss / 1024,
    }


def table_row(row: dict[str, Any]) -> str:
    """Return one line of the table."""
    return (
        f"| {row['pair']} | {row['measure']} | {row['before']:.2f} | {row['after']:.2f} | {row['folding']:.3f} |"
        f" {row['seconds']:.0f} | {row['cpu_seconds']:.0f} | {row['peak_mb']:.0f} |"
    )


if __name__ == "__main__":
    main()
