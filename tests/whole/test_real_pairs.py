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
"""Real pairs, where they are at hand: preset fast beats SyN (antspyx, its defaults), and a brain stays on itself."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from tests.helpers.inference import run_inference
from tests.helpers.known_pair import evaluate
from tools.benchmarks.pairs import bundle_options


@pytest.mark.parametrize(
    ("name", "measure", "start"),
    [("lung", "tre_mm", 8.13), ("brain_1000_1001", "dice", 0.317), ("liver_dataset23_cyc_1_4", "tre_mm", 7.68)],
)
def test_the_evaluation_of_the_start_gives_its_known_figures(
    real_data: Path, tmp_path: Path, name: str, measure: str, start: float
) -> None:
    pair = json.loads((real_data / "pairs.json").read_text())[name]
    options = bundle_options(real_data, pair, tmp_path)
    summary = evaluate(tmp_path / "out", method="identity", surface_distances=False, **options)
    (row,) = summary["pairs"]
    assert row[f"{measure}_after"] == pytest.approx(start, rel=2e-3)
    assert row[f"{measure}_before"] == pytest.approx(row[f"{measure}_after"], rel=1e-4)


@pytest.mark.parametrize(
    ("name", "measure", "bound"),
    [
        ("liver_dataset19_cyc_1_9", "tre_mm", 1.89),
        ("lung", "tre_mm", 2.32),
        ("brain_1000_1001", "dice", 0.56),
    ],
)
def test_the_fast_preset_beats_syn(real_data: Path, tmp_path: Path, name: str, measure: str, bound: float) -> None:
    pair = json.loads((real_data / "pairs.json").read_text())[name]
    report = run_inference(
        tmp_path / "out",
        **bundle_options(real_data, pair, tmp_path),
        preset="fast",
        **{"save::overview": False},
        **{"save::transforms": False},
        **{"save::displacement": False},
        **{"save::jacobian": False},
    )
    after, before = report[measure]["after"]["mean"], report[measure]["before"]["mean"]
    if measure == "tre_mm":
        assert after < bound < before
    else:
        assert after > bound > before
    assert report["folding_percent"] < 0.3
    assert report["similarity"]["after"] < report["similarity"]["before"]


@pytest.mark.parametrize("model", ["none", "default"])
def test_a_brain_registered_to_itself_stays(real_data: Path, tmp_path: Path, model: str) -> None:
    """Where it has no contrast, too: outside, and within white matter."""
    image = str(real_data / "brain_t1" / "1000_SS.nii.gz")
    options = {"save::overview": False, "save::transforms": False, "save::jacobian": False}
    run_inference(tmp_path / "out", fixed=image, moving=image, model=model, preset="fast", **options)
    displacement = np.asarray(nib.load(tmp_path / "out" / "displacement.nii.gz").dataobj)  # voxels of 1 mm
    assert np.abs(displacement).max() < 0.1
