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
"""The bundle beside other methods on the development pairs: tables, by configs/evaluate.yaml for all of them.

    python -m tools.benchmarks.methods --data FOLDER [--methods syn bundle_fast ...] [--out output/methods]

Pairs that are done are left out, so that a stopped table goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

from scripts.evaluation.plots import draw_box_plots
from scripts.evaluation.tables import markdown, read_run, summary_table, write_tables
from tools.benchmarks.pairs import bundle_options, read_pairs

ROOT = Path(__file__).resolve().parents[2]
METHODS: dict[str, list[str]] = {
    **{name: ["--method", name] for name in ("identity", "affine", "bspline", "syn", "convexadam")},
    "bundle_off": ["--optimization", "off"],
    "bundle_fast": ["--preset", "fast"],
    "bundle_default": [],
}


def main() -> None:
    """Evaluate all methods that were asked for on all anatomies."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    data = os.environ.get("REGISTRATION_TEST_DATA")
    parser.add_argument("--data", type=Path, default=data, required=data is None, help="folder that holds pairs.json")
    parser.add_argument("--out", type=Path, default=ROOT / "output" / "methods", help="where results go")
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=list(METHODS), help="all by default")
    given = parser.parse_args()
    lists = write_lists(given.data, given.out / "lists")
    folders = []
    for method in given.methods:
        for anatomy, path in lists.items():
            folders.append(given.out / method / anatomy)
            evaluate(path, folders[-1], anatomy, METHODS[method])
    runs = [read_run(folder) for folder in folders]
    write_tables(runs, given.out)
    draw_box_plots(runs, given.out / "box_plots.png")
    print(f"measured on: {', '.join(sorted({run.machine for run in runs}))}")
    for anatomy in lists:
        print(f"\n{anatomy}\n\n{markdown(*summary_table([run for run in runs if run.dataset == anatomy]))}", end="")


def write_lists(data: Path, folder: Path) -> dict[str, Path]:
    """Write one datalist for each anatomy (the pairs' names begin with it), and the landmark files they name."""
    found: dict[str, list[dict[str, str]]] = {}
    for name, pair in read_pairs(data).items():
        case = {"case": name, **bundle_options(data.resolve(), pair, folder.resolve() / name)}
        found.setdefault(name.split("_")[0], []).append(case)
    paths = {}
    for anatomy, cases in found.items():
        paths[anatomy] = folder / f"{anatomy}.json"
        paths[anatomy].parent.mkdir(parents=True, exist_ok=True)
        paths[anatomy].write_text(json.dumps(cases, indent=2) + "\n")
    return paths


def evaluate(datalist: Path, folder: Path, anatomy: str, options: list[str]) -> None:
    """Run the bundle's evaluation in a process of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    configs = [str(ROOT / "configs" / name) for name in ("inference.yaml", "evaluate.yaml")]
    command = [sys.executable, "-m", "monai.bundle", "run", "evaluate", "--bundle_root", str(ROOT)]
    command += ["--config_file", str(configs), "--datalist", str(datalist), "--output_dir", str(folder)]
    command += ["--dataset_name", anatomy, "--progress", "False", "--surface_distances", "False", *options]
    with open(folder / "log.txt", "w") as log:
        done = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, cwd=ROOT, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)} failed; see {folder / 'log.txt'}")
    print(f"{folder.parent.name}, {anatomy}: done", flush=True)


if __name__ == "__main__":
    main()
