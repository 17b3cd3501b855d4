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
"""Run the training configs in this process, on small synthetic pairs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigWorkflow
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

ROOT = Path(__file__).resolve().parents[2]
SHAPE = [20, 20, 20]
SMALL: dict[str, Any] = {
    "network_shape": SHAPE,
    "down_channels": [2, 4, 6, 8],
    "up_channels": [3, 4, 6],
    "learning_rate": 1e-3,
    "batch_size": 1,
    "num_workers": 0,
    "max_epochs": 2,
    "progress": False,
    "hd95": False,
    "device": "cpu",
}


def synthetic_list(folder: Path, pairs: int = 4, name: str = "synthetic", **options: Any) -> str:
    """Write a list with one set of synthetic pairs, two of them for validation."""
    folder.mkdir(parents=True, exist_ok=True)
    synthetic = {"landmarks": 8, "pairs": 2, "partial_view": 0, **options}
    path = folder / f"{name}.json"
    path.write_text(json.dumps({"datasets": [{"name": name, "pairs_per_epoch": pairs, "synthetic": synthetic}]}))
    return str(path)


def training_workflow(ckpt_dir: Path, configs: Sequence[str] = ("train.yaml",), **options: Any) -> ConfigWorkflow:
    """Return the initialized workflow of config files with options."""
    workflow = ConfigWorkflow(
        config_file=[str(ROOT / "configs" / name) for name in configs],
        workflow_type="train",
        ckpt_dir=str(ckpt_dir),
        **{"bundle_root": str(ROOT), **SMALL, **options},
    )
    workflow.initialize()
    return workflow


def train(ckpt_dir: Path, configs: Sequence[str] = ("train.yaml",), **options: Any) -> dict[str, Any]:
    """Run training; return the content of last.pt."""
    if "train_datalist" not in options:
        path = synthetic_list(ckpt_dir.parent / "lists")
        options |= {"train_datalist": path, "val_datalist": path}
    training_workflow(ckpt_dir, configs, **options).run()
    return load(ckpt_dir / "last.pt")


def load(path: Path) -> dict[str, Any]:
    """Return a checkpoint's content."""
    return torch.load(path, weights_only=True)


def scalars(ckpt_dir: Path, tag: str) -> list[float]:
    """Return what TensorBoard logged under a tag, in order."""
    return [event.value for event in events(ckpt_dir).Scalars(tag)]


def events(ckpt_dir: Path) -> EventAccumulator:
    """Return the TensorBoard logs of a run."""
    accumulator = EventAccumulator(str(ckpt_dir / "tensorboard"))
    accumulator.Reload()
    return accumulator


def assert_same_state(first: Any, second: Any, path: str = "") -> None:
    """Compare checkpoints bit for bit."""
    assert type(first) is type(second), path
    if isinstance(first, dict):
        assert list(first) == list(second), path
        for key in first:
            assert_same_state(first[key], second[key], f"{path}/{key}")
    elif isinstance(first, (list, tuple)):
        assert len(first) == len(second), path
        for number, (one, other) in enumerate(zip(first, second, strict=True)):
            assert_same_state(one, other, f"{path}/{number}")
    elif isinstance(first, torch.Tensor):
        assert torch.equal(first, second), path
    else:
        assert first == second, path
