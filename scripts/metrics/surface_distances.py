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
"""Distances between the surfaces of two label images: HD95 and ASSD in mm, by MONAI's metrics."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance
from scipy import ndimage

Box = tuple[slice, ...]


def surface_distances_mm(
    fixed: np.ndarray, warped: np.ndarray, labels: Iterable[int], spacing_mm: Sequence[float]
) -> dict[str, dict[int, float]]:
    """Return ``hd95_mm`` and ``assd_mm`` of each label; NaN where one of the images lacks it.

    HD95 is the larger one of both directions' 95th percentiles, ASSD the mean over both surfaces' voxels. Each label is
    cut out first: MONAI takes one-hot images, which at native resolution with a hundred labels would not fit in memory.

    Args:
        fixed: label image (I, J, K).
        warped: the moving label on the same grid.
        labels: values to measure.
        spacing_mm: of the voxels along the three axes.
    """
    found: dict[str, dict[int, float]] = {"hd95_mm": {}, "assd_mm": {}}
    labels = list(labels)
    boxes = [_boxes(image, labels) for image in (fixed, warped)]
    for label in labels:
        fixed_box, warped_box = (box.get(label) for box in boxes)
        found["hd95_mm"][label] = found["assd_mm"][label] = math.nan
        if fixed_box is None or warped_box is None:
            continue
        box = _around(fixed_box, warped_box, fixed.shape)
        there, true = (
            torch.from_numpy(np.ascontiguousarray(image[box] == label))[None, None] for image in (warped, fixed)
        )
        spacing = [float(value) for value in spacing_mm]
        with warnings.catch_warnings():
            # MONAI's, of arguments that its own functions use
            warnings.filterwarnings("ignore", message=".*always_return_as_numpy", category=FutureWarning)
            hausdorff = compute_hausdorff_distance(there, true, include_background=True, percentile=95, spacing=spacing)
            surface = compute_average_surface_distance(
                there, true, include_background=True, symmetric=True, spacing=spacing
            )
        found["hd95_mm"][label], found["assd_mm"][label] = float(hausdorff), float(surface)
    return found


def _boxes(image: np.ndarray, labels: Sequence[int]) -> dict[int, Box]:
    """Return the bounding box of each label that the image has."""
    # find_objects wants small positive integers: labels are numbered anew
    known = np.array(sorted(labels), dtype=np.int64)
    values = image.astype(np.int64)
    place = np.searchsorted(known, values).clip(max=len(known) - 1)
    numbered = np.where(known[place] == values, place + 1, 0)
    boxes = ndimage.find_objects(numbered, max_label=len(known))
    return {int(label): box for label, box in zip(known, boxes, strict=True) if box is not None}


def _around(first: Box, second: Box, shape: Sequence[int]) -> Box:
    """Return the box around both and one voxel more, so that surfaces stay surfaces."""
    return tuple(
        slice(max(0, min(a.start, b.start) - 1), min(n, max(a.stop, b.stop) + 1))
        for a, b, n in zip(first, second, shape, strict=True)
    )
