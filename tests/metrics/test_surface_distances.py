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
"""HD95 and ASSD against distances from scipy, on anisotropic voxels."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import ndimage

from scripts.metrics.surface_distances import surface_distances_mm

SPACING = (1.3, 0.7, 2.9)


def blobs(seed: int) -> np.ndarray:
    """Labels 0, 3 and 1000, some at the border of the image."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(28, 33, 19)), 3)
    return np.where(noise > 0.03, 1000, np.where(noise < -0.03, 3, 0)).astype(np.int32)


def distances(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """From each surface voxel of the first to the surface of the second, mm."""
    edges = [mask & ~ndimage.binary_erosion(mask) for mask in (first, second)]
    return ndimage.distance_transform_edt(~edges[1], sampling=SPACING)[edges[0]]


@pytest.mark.parametrize("label", [3, 1000])
def test_they_are_those_of_scipy(label: int) -> None:
    fixed, warped = blobs(0), blobs(1)
    found = surface_distances_mm(fixed, warped, [3, 1000], SPACING)
    there, back = distances(warped == label, fixed == label), distances(fixed == label, warped == label)
    assert found["hd95_mm"][label] == pytest.approx(max(np.percentile(there, 95), np.percentile(back, 95)), rel=1e-6)
    assert found["assd_mm"][label] == pytest.approx(np.concatenate([there, back]).mean(), rel=1e-6)
    assert found["hd95_mm"][label] > found["assd_mm"][label] > 0


def test_a_shift_by_voxels_is_their_distance_on_a_plane() -> None:
    fixed, warped = np.zeros((20, 20, 20), np.uint8), np.zeros((20, 20, 20), np.uint8)
    fixed[:, :, 5] = warped[:, :, 8] = 7
    found = surface_distances_mm(fixed, warped, [7], SPACING)
    assert found["hd95_mm"][7] == pytest.approx(3 * 2.9, abs=1e-6)
    assert found["assd_mm"][7] == pytest.approx(3 * 2.9, abs=1e-6)


def test_the_same_image_has_none_and_a_missing_label_is_told_apart() -> None:
    image = blobs(2)
    found = surface_distances_mm(image, image, [3, 1000], SPACING)
    assert found == {"hd95_mm": {3: 0.0, 1000: 0.0}, "assd_mm": {3: 0.0, 1000: 0.0}}
    missing = surface_distances_mm(image, np.where(image == 3, 0, image), [3, 1000], SPACING)
    assert math.isnan(missing["hd95_mm"][3])
    assert math.isnan(missing["assd_mm"][3])
    assert missing["hd95_mm"][1000] == 0.0
