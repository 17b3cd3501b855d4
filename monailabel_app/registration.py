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
"""One registration through the bundle's own ``configs/inference.yaml``, as the command line runs it."""

from __future__ import annotations

import gc
import json
import threading
from pathlib import Path
from typing import Any

import torch

from monailabel_app.request_options import InferOptions
from monailabel_app.studies import Study
from scripts.utils.memory import release_freed_memory
from scripts.workflow import run_workflow

# what auto, fuse and the active learning strategy compare studies with: coarse, without a network
QUICK_SHAPE = [64, 64, 64]
QUICK_LEVELS = {"quick": [[32, 40]]}
_SAVES = {
    "label": "save::warped",
    "warped": "save::warped",
    "displacement": "save::displacement",
    "transform": "save::transforms",
}
FILES = {
    "label": "warped_label.nii.gz",
    "warped": "warped_moving.nii.gz",
    "displacement": "displacement.nii.gz",
    "transform": "forward_transform.h5",
}
_one_at_a_time = threading.Lock()  # a registration takes all processors and gigabytes of memory


def register(
    fixed: Study, moving: Study, options: InferOptions, weights: dict[str, str], device: str, folder: Path
) -> dict[str, Any]:
    """Register a study and write the file of :data:`FILES` that is asked for into a folder.

    Args:
        fixed: study to align to.
        moving: study to be aligned; its label is carried along if the result is ``label``.
        options: of the request.
        weights: the bundle's options that select them.
        device: where to compute.
        folder: for the results.

    Returns:
        the bundle's report.

    Raises:
        InputError: of the bundle.
    """
    saves = dict.fromkeys(set(_SAVES.values()) | {"save::jacobian", "save::overview", "save::confidence"}, False)
    saves[_SAVES[options.result]] = True
    given = {
        **_pair(fixed, moving),
        **weights,
        **saves,
        "optimization": options.optimization,
        "preset": options.preset,
        "network_optimization::steps": options.steps,
        "similarity": options.similarity,
        "device": device,
        "output_dir": str(folder),
    }
    if options.result == "label":
        given["moving_label"] = moving.label
    with _one_at_a_time:
        _run(given)
        return dict(json.loads((folder / "report.json").read_text(encoding="utf-8")))


def quick_similarity(fixed: Study, moving: Study, device: str, folder: Path) -> float:
    """Return ``1 - LNCC`` of a coarse registration without a network: lower is more similar, 0 is the least.

    Raises:
        InputError: of the bundle.
    """
    given = {
        **_pair(fixed, moving),
        "model": "none",
        "image_shape": QUICK_SHAPE,
        "field::levels": QUICK_LEVELS,
        "preset": "quick",
        "device": device,
        "output_dir": str(folder),
        "evaluator::postprocessing": None,
    }
    with _one_at_a_time:
        output = _run(given).get_parsed_content("evaluator").state.output
        return float(output[0]["pred"]["terms"]["similarity_after"])


def release_memory(device: str) -> None:
    """Give the memory of what has ended back to the system."""
    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.empty_cache()
    release_freed_memory()


def _pair(fixed: Study, moving: Study) -> dict[str, Any]:
    return {
        "fixed": fixed.image,
        "moving": moving.image,
        "fixed_modality": fixed.modality,
        "moving_modality": moving.modality,
    }


def _run(given: dict[str, Any]) -> Any:
    """Run the config with options and return its parser."""
    return run_workflow(("inference.yaml",), {"progress": False, "overlap": False, **given})
