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

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.config.type_definitions import NdarrayOrTensor
from monai.data import MetaTensor
from monai.transforms import MapTransform, ScaleIntensityRange, Transform

from scripts.data.volumes import source, with_affine
from scripts.utils.errors import InputError


class ByModalityd(MapTransform):
    """Scale images to [0, 1], each as its modality asks: CT by a window in HU, MR by percentiles of the image.

    Args:
        keys: loaded images (1, I, J, K); the case entry ``<key>_modality`` is "ct" or "mr".
        output_keys: where the scaled images go; the native ones stay.
        ct: MONAI's ScaleIntensityRange, whose ``a_min`` and ``a_max`` are the ends of the window, HU.
        mr: what scales any other image, such as :class:`ScalePercentiles`.
    """

    def __init__(
        self,
        keys: KeysCollection,
        output_keys: Sequence[str],
        ct: ScaleIntensityRange,
        mr: Callable[[torch.Tensor], NdarrayOrTensor],
    ) -> None:
        super().__init__(keys)
        self.output_keys = tuple(output_keys)
        self.ct, self.mr = ct, mr

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the data with the scaled images added.

        Raises:
            InputError: all voxels would become equal.
        """
        result = dict(data)
        for key, output_key in self.key_iterator(result, self.output_keys):
            image, modality = result[key], result.get(f"{key}_modality")
            if modality not in ("ct", "mr"):
                raise InputError(f"{key}_modality must be ct or mr, got {modality!r}")
            if modality == "ct":
                self._check_window(str(key), image)
            try:
                scaled = (self.ct if modality == "ct" else self.mr)(image.as_tensor())
            except InputError as error:
                raise InputError(f"{key}: {source(image)} {error}") from error
            result[output_key] = with_affine(torch.as_tensor(scaled), image.affine, image)
        return result

    def _check_window(self, key: str, image: MetaTensor) -> None:
        lower, upper = self.ct.a_min, self.ct.a_max
        if float(image.max()) <= lower or float(image.min()) >= upper:
            raise InputError(
                f"{key}: {source(image)} has no voxel inside ct_window {[lower, upper]} HU; give an image in HU,"
                f" another ct_window, or --{key}_modality mr"
            )


class ScalePercentiles(Transform):
    """Scale an image to [0, 1] between two of its percentiles, and cut off what lies outside.

    MONAI's ScaleIntensityRangePercentiles interpolates between voxel values, the published code does not.

    Args:
        percentiles: lower and upper end, percent, by :func:`percentile_value`.
    """

    def __init__(self, percentiles: Sequence[float] = (0.0, 99.0)) -> None:
        self.percentiles = tuple(percentiles)
        if self.percentiles[0] < 0 or self.percentiles[1] > 100:
            raise InputError(f"mr_percentiles must lie within 0 and 100, got {list(percentiles)}")

    def __call__(self, image: torch.Tensor) -> NdarrayOrTensor:
        """Return the scaled image.

        Raises:
            InputError: both percentiles are the same value.
        """
        lower, upper = (percentile_value(image, percent) for percent in self.percentiles)
        if upper <= lower:
            raise InputError(
                f"has the same value {lower:g} at both mr_percentiles {list(self.percentiles)}; widen them, for"
                " instance --mr_percentiles '[0, 100]'"
            )
        return ScaleIntensityRange(a_min=lower, a_max=upper, b_min=0.0, b_max=1.0, clip=True)(image)


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
