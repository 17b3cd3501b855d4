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
"""Many registrations in one process: memory, open files and threads must stay as they are.

python -m tools.campaigns.soak            # make soak: 200 registrations one by one, and a cohort of 200 pairs
python -m tools.campaigns.soak --count 50
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import os
import statistics
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from scripts.utils.memory import release_freed_memory
from scripts.workflow import run_workflow
from tests.helpers.known_pair import write_known_pair

GROWTH = 0.02  # of memory, that is allowed from the first quarter's end to the last quarter
SMALL = {"image_shape": [40, 40, 40], "field::levels": {"default": [[16, 3], [24, 3]]}, "device": "cpu"}


class State(NamedTuple):
    """What a process holds."""

    memory_mib: float
    files: int
    threads: int


def look() -> State:
    """Return the state of this process, garbage and freed memory not counted."""
    gc.collect()
    release_freed_memory()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    # what the system counts: threads of libraries, too
    threads = len(os.listdir("/proc/self/task"))
    return State(pages * os.sysconf("SC_PAGE_SIZE") / 2**20, len(os.listdir("/proc/self/fd")), threads)


def one_by_one(count: int, folder: Path, note: Callable[[State], None]) -> None:
    """Register a pair again and again, as a notebook or a server does: a new workflow each, all files written."""
    pair = write_known_pair(folder / "data")
    for number in range(count):
        # without a network, its pass alone, and fields from it
        model, optimization = (("none", "field"), ("default", "off"), ("default", "field"))[number % 3]
        options = {**pair, **SMALL, "model": model, "optimization": optimization, "seed": number, "save::page": True}
        run_workflow(
            ["inference.yaml"], {**options, "output_dir": str(folder / "out"), "progress": False, "summary": False}
        )
        note(look())


def cohort(count: int, folder: Path, note: Callable[[State], None]) -> None:
    """Register a cohort in one workflow; every eleventh pair fails."""
    pair = write_known_pair(folder / "data")
    rows = [
        {"case": f"{n:04d}", "fixed": pair["fixed"], "moving": pair["moving"] if n % 11 else "missing.nii.gz"}
        for n in range(count)
    ]
    (folder / "pairs.json").write_text(json.dumps(rows))
    done: list[int] = []
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(0.2):
            reports = len(list((folder / "cohort").glob("*/report.json")))
            if not done or reports > done[-1]:
                done.append(reports)
                note(look())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        options = {**SMALL, "datalist": str(folder / "pairs.json"), "output_dir": str(folder / "cohort")}
        run_workflow(["inference.yaml", "cohort.yaml"], {**options, "progress": False})
    finally:
        stop.set()
        watcher.join()


def judge(name: str, states: list[State]) -> bool:
    """Print how the states went, and tell whether they stayed."""
    quarter = max(1, len(states) // 4)
    early, late = states[quarter // 2 : quarter + quarter // 2], states[-quarter:]
    medians = [State(*(statistics.median(values) for values in zip(*part, strict=True))) for part in (early, late)]
    growth = medians[1].memory_mib / medians[0].memory_mib - 1
    for word, state in zip(("early", "late"), medians, strict=True):
        print(f"{name}, {word}: {state.memory_mib:.1f} MiB, {state.files:g} files, {state.threads:g} threads")
    print(f"{name}: {len(states)} states, memory {100 * growth:+.2f} %")
    return growth <= GROWTH and medians[1].files <= medians[0].files and medians[1].threads <= medians[0].threads


def main() -> int:
    """Run the campaign of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=200)
    count = parser.parse_args().count
    logging.disable(logging.WARNING)
    good = True
    for work in (one_by_one, cohort):
        states: list[State] = []
        with tempfile.TemporaryDirectory() as folder:
            work(count, Path(folder), states.append)
        good = judge(work.__name__, states) and good
    return 0 if good else 1


if __name__ == "__main__":
    raise SystemExit(main())
