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
"""What a training run says at its end: how good it started, how good it became, and how to register with the result."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from scripts.networks.published_weights import bundle_folder
from scripts.networks.registration_network import RegistrationNetwork
from scripts.training.metrics_table import NAME, read_metrics
from scripts.training.run_checkpoints import BEST, LAST
from scripts.training.validation_metrics import is_better
from scripts.utils.paths import absolute

_WORDS = {
    "tre_mm": "landmark error, mm, lower is better",
    "dice": "Dice, higher is better",
    "hd95_mm": "HD95, mm, lower is better",
    "similarity": "similarity loss, lower is better",
}


def print_training(
    ckpt_dir: str,
    figure: str,
    val_records: Sequence[Mapping[str, Any]] = (),
    network: nn.Module | None = None,
    bundle_root: str | Path = ".",
    rank: int = 0,
) -> None:
    """Print the baseline and the best of the key metric, the file of weights, and a command that registers with it.

    Args:
        ckpt_dir: folder of the run, with its ``metrics.csv``.
        figure: the key metric.
        val_records: the first pair of real images among them is the command's example.
        network: that was trained; inference knows one kind only.
        bundle_root: folder of the bundle.
        rank: of this process; the first one prints.
    """
    if rank == 0:
        rows = read_metrics(absolute(ckpt_dir) / NAME)
        print("\n".join(summarize_training(rows, ckpt_dir, figure, val_records, network, bundle_root)))


def summarize_training(
    rows: Sequence[Mapping[str, float]],
    ckpt_dir: str,
    figure: str,
    val_records: Sequence[Mapping[str, Any]] = (),
    network: nn.Module | None = None,
    bundle_root: str | Path = ".",
) -> list[str]:
    """Return the lines of :func:`print_training`, with its arguments; ``rows`` are those of ``metrics.csv``."""
    folder, name = absolute(ckpt_dir), f"val_{figure}"
    lines = [f"training ended: {folder}"]
    measured = [row for row in rows if name in row]
    if measured:
        best = measured[0]
        for row in measured[1:]:
            best = row if is_better(figure)(row[name], best[name]) else best
        start = f"{measured[0][name]:.4g}" if measured[0]["epoch"] == 0 else "not measured"
        lines.append(
            f"{name}: {start} at the start -> {best[name]:.4g} at epoch {best['epoch']:.0f} ({_WORDS[figure]})"
        )
        if best["epoch"] == 0 and len(measured) > 1:
            lines.append("no epoch was better than the start: best.pt holds the weights that training started from")
    path = next((folder / file for file in (BEST, LAST) if (folder / file).is_file()), None)
    if path is None:
        return lines
    lines.append(f"weights: {path}")
    if isinstance(network, RegistrationNetwork):
        lines += ["register with them:", f"  {registration_command(path, val_records, bundle_root)}"]
    return lines


def registration_command(
    path: Path, val_records: Sequence[Mapping[str, Any]] = (), bundle_root: str | Path = "."
) -> str:
    """Return the command that registers a pair with a file of weights, in any folder.

    Args:
        path: the weights.
        val_records: its pair is the first one of these; FIXED and MOVING where there is none.
        bundle_root: folder of the bundle.
    """
    found = shutil.which("python")
    python = "python" if found and Path(found).resolve() == Path(sys.executable).resolve() else sys.executable
    config = bundle_folder(bundle_root).absolute() / "configs" / "inference.yaml"
    words = [python, "-m", "monai.bundle", "run", "inference", "--config_file", str(config), "--ckpt_path", str(path)]
    fixed, moving = _example(val_records)
    for side, (image, modality) in (("fixed", fixed), ("moving", moving)):
        words += [f"--{side}", image, f"--{side}_modality", modality]
    return shlex.join([*words, "--output_dir", "results"])


def _example(records: Sequence[Mapping[str, Any]]) -> tuple[tuple[str, str], tuple[str, str]]:
    """Return path and modality of the fixed and of the moving image of the first validation pair."""
    for record in records:
        if "fixed" in record and "frame" not in record["fixed"]:
            return _first(record["fixed"]), _first(record["moving"])
    images = [record for record in records if "images" in record and "frame" not in record]
    if len(images) > 1:
        return _first(images[0]), _first(images[1])
    return ("FIXED", "mr"), ("MOVING", "mr")


def _first(image: Mapping[str, Any]) -> tuple[str, str]:
    name, path = next(iter(image["images"].items()))
    return str(path), str(image["modalities"][name])
