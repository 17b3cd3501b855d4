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
"""What intensities tell: images that are not what they are said to be, and the value outside an image."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from scripts.data.modality import modality_warning, outside_value
from tests.helpers.chain import chain, pair, write

OFFSET = "stored as HU \\+ 1024"


def phantom(noise_hu: float = 15.0) -> np.ndarray:
    """A trunk in air, with lungs, fat and bone, HU, (I, J, K) int16."""
    i, j, k = (
        np.linspace(-1, 1, n).reshape([-1 if a == b else 1 for a in range(3)]) for b, n in enumerate((40, 34, 12))
    )
    radius = (i / 0.8) ** 2 + (j / 0.7) ** 2 + 0 * k
    values = np.full(radius.shape, -1000.0)
    values[radius < 1] = -90
    values[radius < 0.8] = 45
    for side in (-0.35, 0.35):
        values[((i - side) / 0.22) ** 2 + (j / 0.35) ** 2 + 0 * k < 1] = -850
    values[(i / 0.1) ** 2 + ((j - 0.42) / 0.1) ** 2 + 0 * k < 1] = 700
    values += np.random.default_rng(0).normal(0, noise_hu, values.shape)
    return np.clip(np.rint(values), -1024, 3071).astype(np.int16)


def padded(values: np.ndarray, padding: int) -> np.ndarray:
    i, j = (np.linspace(-1, 1, n).reshape([-1 if a == b else 1 for a in range(3)]) for b, n in enumerate((40, 34)))
    return np.where(i**2 + j**2 + 0 * values > 1, padding, values).astype(np.int16)


def mr(low: float = 0.0) -> np.ndarray:
    """Tissue of 300 to 900 on a noisy background."""
    values = np.abs(np.random.default_rng(1).normal(low, 12, (40, 34, 12)))
    values[8:30, 6:28] += np.random.default_rng(2).uniform(300, 900, (22, 22, 12))
    return values.astype(np.float32)


HU = phantom()
RISING = np.random.default_rng(3).uniform(-4096, 4095, HU.shape)


@pytest.mark.parametrize(
    ("values", "modality", "words"),
    [
        (HU, "ct", None),
        (phantom(0), "ct", None),
        (padded(HU, -2000), "ct", None),
        (padded(HU, -1024), "ct", None),
        (HU[12:28, 20:27], "ct", None),  # a crop of soft tissue and bone: no air
        (np.clip(HU, -200, 300), "ct", None),
        (np.clip(HU, -160, 240), "ct", None),
        (np.clip(HU, -100, 400), "ct", None),
        (np.where(HU < -200, -1000, HU), "ct", None),
        (np.where(HU < -500, 0, HU), "ct", None),  # masked
        (HU + 1024, "ct", OFFSET),
        ((HU.astype(np.int32) + 1024).astype(np.uint16), "ct", OFFSET),
        (HU + 1000, "ct", OFFSET),
        (np.clip(HU, -1000, 3071) + 1000.0, "ct", OFFSET),
        (padded(HU, -2000) + 1024, "ct", OFFSET),
        (HU[12:28, 20:27] + 1024, "ct", OFFSET),
        (mr(), "ct", "give the modality mr"),
        ((HU + 1000) / 2000.0, "ct", "can't be HU"),
        ((HU - HU.mean()) / HU.std(), "ct", "can't be HU"),
        (np.clip((HU + 1000) / 8, 0, 255).astype(np.uint8), "ct", "8 bit"),
        (np.clip(HU + 160, 0, 255).astype(np.float32), "ct", "8 bit"),
        (HU, "mr", "modality ct"),
        (padded(HU, -3024), "mr", "modality ct"),
        (mr(), "mr", None),
        (mr() - 300, "mr", None),
        (RISING, "mr", None),  # such as a phase map
        ((HU + 1000) / 2000.0, "mr", None),
        (np.zeros((3, 3, 3)), "mr", None),
        (np.full((3, 3, 3), np.nan), "ct", None),
    ],
)
def test_values_that_speak_against_the_modality(values: np.ndarray, modality: str, words: str | None) -> None:
    found = modality_warning(values, modality)
    assert modality_warning(torch.as_tensor(values.astype(np.float32)), modality) == found
    if words is None:
        assert found is None
    else:
        assert found is not None
        assert "\n" not in found
        assert re.search(words, found)


def test_the_warning_is_logged_and_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shifted = write(tmp_path / "shifted.nii.gz", HU + 1024)
    straight = write(tmp_path / "straight.nii.gz", HU)
    with caplog.at_level(logging.WARNING):
        done = chain()(pair(tmp_path, fixed=straight, moving=shifted))
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 1
    assert lines[0].startswith(f"moving: '{shifted}' is said to be CT")
    assert "--ct_window '[24, 2024]'" in lines[0]
    assert "--moving_modality mr" in lines[0]
    assert done["moving"].meta["warnings"] == lines
    assert not done["fixed"].meta.get("warnings")


@pytest.mark.parametrize(
    ("values", "modality", "expected"),
    [
        (phantom(0), "ct", -1000),
        (HU, "ct", -1000),
        (padded(HU, -2000), "ct", -1000),
        (padded(HU, -3024), None, -1000),
        (HU, None, -1000),
        (np.clip(HU, -300, 300), "ct", -300),
        (np.clip(HU, -300, 300), None, 0),  # MR may look so
        (phantom(0) + 1024, "ct", 24),
        (phantom(0) + 1000, "ct", 0),
        (mr(), "mr", 0),
        (HU, "mr", 0),
        (mr(), None, 0),
        (np.linspace(-9, 9, 27).reshape(3, 3, 3), None, 0),
        (np.array([np.nan, -700.0, 40.0]), None, 0),
        (np.array([np.nan]), "ct", 0),
    ],
)
def test_the_value_outside(values: np.ndarray, modality: str | None, expected: float) -> None:
    assert outside_value(values, modality) == expected
