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
"""Cropping to the foreground, so that the network's grid is spent on anatomy."""

from __future__ import annotations

import logging
import math
from typing import cast

from monai.data import MetaTensor
from monai.transforms import SpatialCrop, Transform, generate_spatial_bounding_box

from scripts.data.case import FIXED_REGIONS, MOVING_REGIONS, NETWORK_IMAGES, Case
from scripts.utils.errors import InputError

logger = logging.getLogger(__name__)

THRESHOLD = 0.1  # of the scaled intensities: air in CT (-800 HU by default), the background of MR
MARGIN = 0.05  # of the box, on each side
WORTH_IT = 0.9  # of the field of view along an axis: larger boxes are not cropped to


class CropToForegroundd(Transform):
    """Crop images, with their masks and labels, to the box of what is brighter than air or background.

    Args:
        mode: "off", or "auto": crops where the box with its margin is smaller than 90 % of the field of view along an
            axis.
    """

    def __init__(self, mode: str | bool = "off") -> None:
        mode = "off" if mode is False else mode  # YAML reads a bare off as False
        if mode not in ("off", "auto"):
            raise InputError(f"crop: expected off or auto, got '{mode}'")
        self.enabled = mode == "auto"

    def __call__(self, data: Case) -> Case:
        """Return the case with cropped network images, masks and labels; affines follow."""
        result = data.copy()
        if not self.enabled:
            return result
        for key, regions in zip(NETWORK_IMAGES, (FIXED_REGIONS, MOVING_REGIONS), strict=True):
            box = foreground_box(result[key])
            if box is None:
                continue
            first, last = box
            crop, whole = SpatialCrop(roi_start=first, roi_end=last), list(result[key].shape[1:])
            result[key] = cast(MetaTensor, crop(result[key]))
            for region in regions:
                if region in result:
                    result[region] = cast(MetaTensor, crop(result[region]))
            logger.info("crop: %s from %s to %s voxels", key, whole, list(result[key].shape[1:]))
        return result


def foreground_box(image: MetaTensor) -> tuple[list[int], list[int]] | None:
    """Return first and last + 1 voxel of the foreground with its margin; None if cropping to it is not worth it."""
    shape = list(image.shape[1:])
    first, last = generate_spatial_bounding_box(image, select_fn=lambda values: values > THRESHOLD)
    if any(b - a < 2 for a, b in zip(first, last, strict=True)):
        return None
    margins = [max(2, math.ceil(MARGIN * (b - a))) for a, b in zip(first, last, strict=True)]
    first = [max(0, int(a) - m) for a, m in zip(first, margins, strict=True)]
    last = [min(n, int(b) + m) for b, m, n in zip(last, margins, shape, strict=True)]
    if all(b - a > WORTH_IT * n for a, b, n in zip(first, last, shape, strict=True)):
        return None
    return first, last
