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
"""Intensities scaled to [0, 1] by the image's modality, at full resolution, as the published code does."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, ScaleIntensityRange

from scripts.data.volumes import source, with_affine
from scripts.utils.errors import InputError

CT_WINDOW = (-1000.0, 1000.0)  # HU
MR_PERCENTILES = (0.0, 99.0)


class ScaleByModalityd(MapTransform):
    """Scale images to [0, 1] by their modality: CT by a window in HU, MR by percentiles of the image.

    Args:
        keys: loaded images (1, I, J, K); the case entry ``<key>_modality`` is "ct" or "mr".
        output_keys: where the scaled images go; the native ones stay.
        ct_window: lower and upper end, HU.
        mr_percentiles: lower and upper end, percent, by :func:`percentile_value`.
    """

    def __init__(
        self,
        keys: KeysCollection,
        output_keys: Sequence[str],
        ct_window: Sequence[float] = CT_WINDOW,
        mr_percentiles: Sequence[float] = MR_PERCENTILES,
    ) -> None:
        super().__init__(keys)
        self.output_keys = tuple(output_keys)
        self.ct_window = _increasing("ct_window", ct_window)
        self.mr_percentiles = _increasing("mr_percentiles", mr_percentiles)
        if self.mr_percentiles[0] < 0 or self.mr_percentiles[1] > 100:
            raise InputError(f"mr_percentiles must lie within 0 and 100, got {list(mr_percentiles)}")

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the data with the scaled images added."""
        result = dict(data)
        for key, output_key in self.key_iterator(result, self.output_keys):
            modality = result.get(f"{key}_modality")
            if modality not in ("ct", "mr"):
                raise InputError(f"{key}_modality must be ct or mr, got {modality!r}")
            result[output_key] = self._scale(str(key), result[key], str(modality))
        return result

    def _scale(self, key: str, image: MetaTensor, modality: str) -> MetaTensor:
        if modality == "ct":
            lower, upper = self.ct_window
            if float(image.max()) <= lower or float(image.min()) >= upper:
                raise InputError(
                    f"{key}: {source(image)} has no voxel inside ct_window {[lower, upper]} HU; give an image in HU,"
                    f" another ct_window, or --{key}_modality mr"
                )
        else:
            lower, upper = (percentile_value(image.as_tensor(), percent) for percent in self.mr_percentiles)
            if upper <= lower:
                raise InputError(
                    f"{key}: {source(image)} has the same value {lower:g} at both mr_percentiles"
                    f" {list(self.mr_percentiles)}; widen them, for instance --mr_percentiles '[0, 100]'"
                )
        scaled = ScaleIntensityRange(a_min=lower, a_max=upper, b_min=0.0, b_max=1.0, clip=True)(image.as_tensor())
        return with_affine(torch.as_tensor(scaled), image.affine, image)


def percentile_value(values: torch.Tensor, percent: float) -> float:
    """Return value number floor(percent / 100 * N) in sorted order, counted from 1 and at least the first.

    The reference's quantile: an actual voxel value, not an interpolated one. 0 gives the minimum.
    """
    count = values.numel()
    rank = max(1, min(int(percent / 100 * count), count))
    if rank == 1:
        return float(values.min())
    # numpy selects many times faster than torch.kthvalue, but not among as many equal values as a background has
    unordered = values.numpy().ravel(order="K")
    upper = unordered > unordered.mean(dtype=np.float64)
    index = rank - 1 - (count - int(np.count_nonzero(upper)))  # below 0, it counts from the end of the lower part
    part = unordered[upper] if index >= 0 else unordered[~upper]
    return float(np.partition(part, index)[index])


def _increasing(name: str, ends: Sequence[float]) -> tuple[float, float]:
    """Return two increasing numbers, or say in words what came instead."""
    try:
        lower, upper = (float(value) for value in ends)
    except (TypeError, ValueError):
        raise InputError(f"{name} must be two numbers, for instance --{name} '[0, 100]', got {ends!r}") from None
    if not lower < upper:
        raise InputError(f"{name} must be a lower and a higher number, got {list(ends)}")
    return lower, upper
