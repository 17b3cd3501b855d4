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
"""Kill runs at random moments: no half file under a final name, and what is started again ends as if nothing had been.

python -m tools.campaigns.faults              # make faults: 10 kills each of inference, network, cohort and training
python -m tools.campaigns.faults --kills 3 --kinds training
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import itk
import nibabel as nib
import torch
from PIL import Image

from tests.cohort.test_run import results, write_list
from tests.helpers.known_pair import ROOT, write_known_pair
from tests.helpers.training_run import SMALL, assert_same_state, load, synthetic_list

QUICK = {"image_shape": [40, 40, 40], "field::levels": {"default": [[16, 10], [32, 20]]}}


class Kind(NamedTuple):
    """A command, and how its results are compared."""

    run_id: str
    configs: tuple[str, ...]
    folder_option: str
    options: dict[str, Any]
    again: dict[str, Any]  # further options when it is started again
    same: Callable[[Path, Path], str]  # of the uninterrupted folder and the other: what differs


def kinds(folder: Path) -> dict[str, Kind]:
    """Return what can be killed, on small data that is written into a folder."""
    pair = {**write_known_pair(folder / "pair"), **QUICK, "device": "cpu", "progress": False}
    cohort, _ = write_list(folder / "cohort", 5)
    lists = synthetic_list(folder / "lists")
    training = {**SMALL, "max_epochs": 6, "train_datalist": lists, "val_datalist": lists}
    network = {**pair, "optimization": "network", "network_optimization::steps": 4}
    cohort_options = {"datalist": str(cohort), **QUICK, "device": "cpu", "model": "none", "progress": False}
    return {
        "inference": Kind("inference", ("inference",), "output_dir", {**pair, "model": "none"}, {}, same_results),
        "network": Kind("inference", ("inference",), "output_dir", network, {}, same_results),
        "cohort": Kind("cohort", ("inference", "cohort"), "output_dir", cohort_options, {}, same_results),
        "training": Kind("training", ("train",), "ckpt_dir", training, {"resume": True}, same_training),
    }


def same_results(whole: Path, killed: Path) -> str:
    """Compare results byte by byte, times and memory left out."""
    one, other = results(whole), results(killed)
    return ", ".join(sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name)))


def same_training(whole: Path, killed: Path) -> str:
    """Compare the states at the end."""
    for name in ("last.pt", "best.pt"):
        try:
            assert_same_state(load(whole / name), load(killed / name))
        except AssertionError as error:
            return f"{name}: {error}"
    return ""


def command(kind: Kind, folder: Path, options: dict[str, Any]) -> list[str]:
    """Return the command that runs a kind into a folder."""
    files = str([str(ROOT / "configs" / f"{name}.yaml") for name in kind.configs])
    words = [*(sys.executable, "-W", "ignore", "-m", "monai.bundle", "run", kind.run_id, "--config_file", files)]
    for name, value in {**kind.options, **options, kind.folder_option: str(folder)}.items():
        words += [f"--{name}", str(value)]
    return words


def start(words: list[str]) -> subprocess.Popen[bytes]:
    """Start a command, its output thrown away."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(words, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def half_files(folder: Path) -> list[str]:
    """Return the files under final names that can't be read to their end."""
    wrong = []
    for path in folder.rglob("*"):
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts):
            try:
                _read(path)
            except Exception as error:
                wrong.append(f"{path.name} ({type(error).__name__}: {str(error)[:80]})")
    return wrong


def _read(path: Path) -> None:
    if path.name.endswith(".nii.gz"):
        nib.load(path).get_fdata()
    elif path.suffix == ".h5":
        itk.transformread(str(path))
    elif path.suffix == ".json":
        json.loads(path.read_text())
    elif path.suffix == ".png":
        Image.open(path).load()
    elif path.suffix == ".html":
        assert path.read_text().rstrip().endswith("</html>")
    elif path.suffix == ".pt":
        torch.load(path, weights_only=True)
    else:
        assert path.suffix != ".csv" or path.read_text().endswith("\n")


def campaign(name: str, kind: Kind, folder: Path, kills: int, chance: random.Random) -> list[str]:
    """Kill a kind again and again; return what went wrong."""
    began = time.monotonic()
    if start(command(kind, folder / "whole", {})).wait() != 0:
        return [f"{name}: the uninterrupted run failed"]
    seconds, wrong, hit, with_files = time.monotonic() - began, [], 0, 0
    killed, round_number = folder / "killed_0", 0
    while hit < kills:
        process = start(command(kind, killed, kind.again if killed.exists() else {}))
        time.sleep(chance.uniform(0.3, 1.0) * seconds)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            hit += 1
        process.wait()
        wrong += [f"{name}: half a file: {what}" for what in half_files(killed)] if killed.exists() else []
        with_files += killed.exists() and any(path.is_file() for path in killed.rglob("*"))
        if hit % 3 == 0 or hit == kills:  # finish, compare, begin anew
            if start(command(kind, killed, kind.again if killed.exists() else {})).wait() != 0:
                wrong.append(f"{name}: started again, it failed")
            elif differs := kind.same(folder / "whole", killed):
                wrong.append(f"{name}: differs from the uninterrupted run: {differs}")
            left = [path.name for path in killed.rglob(".[0-9]*")]
            wrong += [f"{name}: left behind: {left}"] if left else []
            round_number += 1
            killed = folder / f"killed_{round_number}"
    print(
        f"{name}: {hit} kills, {with_files} with files there, {round_number} runs compared, {len(wrong)} wrong",
        flush=True,
    )
    return wrong


def main() -> int:
    """Run the campaign of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--kinds", nargs="*")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    wrong = []
    with tempfile.TemporaryDirectory() as name:
        for kind_name, kind in kinds(Path(name)).items():
            if not options.kinds or kind_name in options.kinds:
                folder = Path(name) / f"runs_{kind_name}"
                folder.mkdir()
                wrong += campaign(kind_name, kind, folder, options.kills, random.Random(options.seed))
    print("\n".join(wrong) or "nothing wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
