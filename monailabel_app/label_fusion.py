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
"""One label map from several: majority or locally weighted voting.

Locally weighted voting is that of Artaechevarria et al., Combination strategies in multi-atlas image segmentation, IEEE
TMI 2009: each atlas counts by how well it matches the image around the voxel.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.ndimage import gaussian_filter

WINDOW_MM = 3.0  # standard deviation of the neighborhood
GAIN = 2.0  # exponent of the correlation
_TIE = 1e-4  # halved for each later one: the more similar studies decide, and later ones together do not


def vote(labels: Sequence[np.ndarray], weights: Sequence[np.ndarray] | None = None) -> np.ndarray:
    """Return at each voxel the value with the most votes; the earlier label decides between equals.

    Args:
        labels: integers, all of one grid, axes in any order.
        weights: of each label at each voxel, in the same shape; by default all the same.

    Returns:
        the same shape, in the widest type of the labels.
    """
    values = np.unique(np.concatenate([np.unique(label) for label in labels]))
    best = np.full(labels[0].shape, -1.0, dtype=np.float32)
    result = np.zeros(labels[0].shape, dtype=np.result_type(*labels))
    for value in values:
        votes = np.zeros_like(best)
        for number, label in enumerate(labels):
            weight = np.float32(1.0) if weights is None else weights[number]
            votes += np.where(label == value, weight + _TIE * 0.5**number, 0)
        wins = votes > best
        best[wins], result[wins] = votes[wins], value
    return result


def local_weights(fixed: np.ndarray, warped: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
    """Return how well an image matches another one around each voxel: the local correlation, squared; 0 where negative.

    Args:
        fixed: intensities, axes in any order.
        warped: the other image on the same grid.
        spacing: mm along each axis, in the order of the axes.

    Returns:
        the same shape, float32 in [0, 1].
    """
    sigma = [WINDOW_MM / step for step in spacing]
    first, second = (image.astype(np.float32) - np.float32(image.mean()) for image in (fixed, warped))
    means = gaussian_filter(first, sigma), gaussian_filter(second, sigma)
    covariance = gaussian_filter(first * second, sigma) - means[0] * means[1]
    variances = [gaussian_filter(image**2, sigma) - mean**2 for image, mean in zip((first, second), means, strict=True)]
    floors = [1e-6 * max(float(image.var()), 1e-12) for image in (first, second)]
    scale = np.sqrt(np.maximum(variances[0], floors[0]) * np.maximum(variances[1], floors[1]))
    return np.asarray(np.clip(covariance / scale, 0, 1) ** GAIN, dtype=np.float32)
