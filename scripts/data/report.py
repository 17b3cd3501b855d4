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
"""The report of one registration: what was done, with what, how well, and at what cost."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

from monai.data import MetaTensor
from torch import Tensor

from scripts.data.case import Case, CaseFiles
from scripts.data.volumes import FROM_MEMORY
from scripts.utils.memory import peak_gpu_memory_mib, peak_memory_mib
from scripts.utils.strict_json import strict
from scripts.utils.versions import versions

REPORT_NAME = "report.json"
ERROR_NAME = "error.json"  # instead of the report, of a case of a cohort that failed
INPUTS = (
    *("fixed", "moving", "fixed_modality", "moving_modality", "frame", "fixed_frame", "moving_frame"),
    *("fixed_series", "moving_series", "landmark_space"),
    *("fixed_mask", "moving_mask"),
    *("fixed_label", "moving_label", "fixed_landmarks", "moving_landmarks"),
)


def input_paths(data: CaseFiles | Case) -> dict[str, Any]:
    """Return what the case was made of: paths (of loaded volumes too), "from memory", and modalities."""
    entries, found = cast(Mapping[str, Any], data), dict[str, Any]()
    for key in INPUTS:
        value = entries.get(key)
        if isinstance(value, Tensor):
            value = value.meta.get("filename_or_obj", FROM_MEMORY) if isinstance(value, MetaTensor) else FROM_MEMORY
        if isinstance(value, (str, int, os.PathLike)):
            found[key] = value
    return found


def input_warnings(data: Case) -> list[str]:
    """Return what was said of the case's loaded images, each line once: ``warnings`` of their meta data."""
    entries = cast(Mapping[str, Any], data)
    volumes = [entries[key] for key in INPUTS if isinstance(entries.get(key), MetaTensor)]
    return list(dict.fromkeys(str(line) for volume in volumes for line in volume.meta.get("warnings") or ()))


def without_folders(line: str) -> str:
    """Return a line in which files are named without their folders: these may be named after patients."""
    return re.sub(r"'[^']*[/\\]([^'/\\]+)'", r"'\1'", line)


def file_states(inputs: Mapping[str, Any]) -> dict[str, list[int]]:
    """Return size and time of change of each input file (of a folder: number of files, sizes together, newest time).

    Args:
        inputs: of :func:`input_paths`.
    """
    states = {}
    for key, value in inputs.items():
        path = Path(str(value))
        with suppress(OSError):
            if path.is_dir():
                found = [entry.stat() for entry in path.iterdir() if entry.is_file()]
                states[key] = [
                    len(found),
                    sum(s.st_size for s in found),
                    max((s.st_mtime_ns for s in found), default=0),
                ]
            elif path.is_file():
                states[key] = [path.stat().st_size, path.stat().st_mtime_ns]
    return states


def build_report(
    data: Case, settings: Mapping[str, Any], weights: Mapping[str, Any], seed: int | None
) -> dict[str, Any]:
    """Return the report of a case that has been registered and measured.

    Args:
        data: the case; uses ``case``, the inputs, the terms of ``pred``, ``metrics``, ``quality`` and ``written``.
        settings: options the registration ran with.
        weights: ``name`` and ``sha256`` of the network's weights; empty without a network.
        seed: of the random numbers.
    """
    terms = dict(data.get("pred", {}).get("terms", {}))
    seconds = terms.pop("seconds_registration", None)
    return {
        "case": data.get("case"),
        "inputs": input_paths(data),
        "warnings": input_warnings(data),
        "input_states": file_states(input_paths(data)),
        "outputs": list(data.get("written", ())),
        "similarity": {"before": terms.pop("similarity_before", None), "after": terms.pop("similarity_after", None)},
        "terms": terms,
        **({"prealign": data["prealign"]} if "prealign" in data else {}),
        **data.get("metrics", {}),
        **({"quality": data["quality"]} if "quality" in data else {}),
        "seconds": seconds,
        "peak_memory_mib": peak_memory_mib(),
        "peak_gpu_memory_mib": peak_gpu_memory_mib(),
        "weights": dict(weights),
        "seed": seed,
        "settings": dict(settings),
        "versions": versions(),
    }


def is_done(case: CaseFiles, settings: Mapping[str, Any], weights: Mapping[str, Any], seed: int | None = None) -> bool:
    """Tell whether a case's folder holds the report of exactly this registration, of files that are as they were."""
    try:
        report = json.loads((Path(case["case_dir"]) / REPORT_NAME).read_text(encoding="utf-8"))
        found = {
            "inputs": report["inputs"],
            "input_states": report["input_states"],
            "settings": _compared(report["settings"]),
            "sha256": report["weights"].get("sha256"),
            "seed": report["seed"],
            "bundle": report["versions"]["bundle"],
        }
    except (
        OSError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
    ):  # none, half, or not ours
        return False
    wanted = {
        "inputs": input_paths(case),
        "input_states": file_states(input_paths(case)),
        "settings": _compared(settings),
        "sha256": weights.get("sha256"),
        "seed": seed,
        "bundle": versions()["bundle"],
    }
    return bool(found == strict(wanted))


def _compared(settings: Mapping[str, Any]) -> dict[str, Any]:
    # another GPU does the same, and what the fallback cut short is as good as it gets
    return {key: value for key, value in settings.items() if key not in ("device", "oom_fallback")}
