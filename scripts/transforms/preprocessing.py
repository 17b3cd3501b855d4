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
"""From loaded volumes to what the network sees: intensities, masks, axis order. The transforms of `preprocessing:`.

Order, as in the reference: intensities at full resolution, then the mask, then the reference's axis order, then
(MONAI's ``Resized``) the network's shape. Affines follow: ``affine @ (voxel, 1)`` is world RAS mm at every stage.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, ScaleIntensityRange
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation

from scripts.data.reading import source
from scripts.utils.errors import InputError

CT_WINDOW = (-1000.0, 1000.0)  # HU
MR_PERCENTILES = (0.0, 99.0)
_FLOAT32_EXACT = 2**24  # from here on float32 rounds whole numbers
STANDARD_AXES = np.array([[0, 0, -1], [0, -1, 0], [1, 0, 0]])  # of (D, H, W), RAS: superior, posterior, left; i.e. LPS


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


class UseMasksd(MapTransform):
    """Use masks for the input (zero outside, as the reference's input masking) or for the loss only.

    Args:
        keys: scaled images (1, I, J, K) in [0, 1].
        mask_keys: their 0/1 masks on the same grids; masks that a case lacks are skipped.
        loss_mask_keys: where masks go with ``mask_use="loss"``.
        mask_use: "input" or "loss".
    """

    def __init__(
        self, keys: KeysCollection, mask_keys: Sequence[str], loss_mask_keys: Sequence[str], mask_use: str
    ) -> None:
        super().__init__(keys)
        if mask_use not in ("input", "loss"):
            raise InputError(f"mask_use must be input or loss, got {mask_use!r}")
        self.mask_keys, self.loss_mask_keys = tuple(mask_keys), tuple(loss_mask_keys)
        self.mask_use = mask_use

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the data with masked images, or with loss masks added."""
        result = dict(data)
        for key, mask_key, loss_mask_key in self.key_iterator(result, self.mask_keys, self.loss_mask_keys):
            if mask_key not in result:
                continue
            if self.mask_use == "input":
                result[key] = result[key] * result[mask_key].as_tensor()
            else:
                result[loss_mask_key] = result[mask_key].clone()
        return result


class CopyLabelsd(MapTransform):
    """Copy labels that are to follow their images onto the network's grid, if the case has all of them.

    The copies are float32, which what follows computes in; values that it would round are numbered anew, alike in all.

    Args:
        keys: label images; they are used together (their overlap), so one alone is not copied.
        output_keys: where the copies go; the native ones stay for the report.
    """

    def __init__(self, keys: KeysCollection, output_keys: Sequence[str]) -> None:
        super().__init__(keys)
        self.output_keys = tuple(output_keys)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the data with the copies added."""
        result = dict(data)
        if all(key in result for key in self.keys):
            for key, output_key in zip(self.keys, self.output_keys, strict=True):
                result[output_key] = result[key].to(torch.float32, copy=True)
            labels = [result[key] for key in self.keys]
            if max(float(label.abs().max()) for label in labels) >= _FLOAT32_EXACT:
                for output_key, values in zip(self.output_keys, _numbered(labels), strict=True):
                    result[output_key] = with_affine(values, result[output_key].affine, result[output_key])
        return result


def _numbered(labels: Sequence[MetaTensor]) -> list[torch.Tensor]:
    """Return label images with the place of each value among those of all of them, from 1; 0 stays."""
    values = [label.as_tensor().contiguous() for label in labels]
    present = torch.unique(torch.cat([torch.unique(one) for one in values]))
    present = present[present != 0]
    return [torch.where(one == 0, 0, torch.searchsorted(present, one) + 1).float() for one in values]


class ReverseAxesd(MapTransform):
    """Reverse the spatial axes, (1, I, J, K) -> (1, K, J, I), and the columns of the affine with them.

    MONAI loads (i, j, k); the reference's networks were trained on ITK's numpy order (k, j, i).
    """

    def __init__(self, keys: KeysCollection) -> None:
        super().__init__(keys, allow_missing_keys=True)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the data with reversed volumes."""
        result = dict(data)
        for key in self.key_iterator(result):
            volume = result[key]
            reversed_axes = volume.as_tensor().permute(0, 3, 2, 1).contiguous()
            result[key] = with_affine(reversed_axes, volume.affine[:, [2, 1, 0, 3]], volume)
        return result


class MatchOrientationd(MapTransform):
    """Turn volumes by whole axes (permutation, flips) to the orientation that is nearest to another one.

    Networks and optimization start from "field of view onto field of view", which can't undo a flip: a pair stored as
    LPS and RAS would start 180 degrees apart. And rounding, which the optimization amplifies, must not depend on how a
    file happens to store its voxels: the fixed image is turned to :data:`STANDARD_AXES`, the moving image to the fixed.

    Args:
        keys: volumes to turn (1, D, H, W); those that a case lacks are skipped. The affines follow.
        reference_key: the volume whose orientation counts; None stands for :data:`STANDARD_AXES`.
        enabled: False leaves everything as it is, as the reference does.
    """

    def __init__(self, keys: KeysCollection, reference_key: str | None = None, enabled: bool = True) -> None:
        super().__init__(keys, allow_missing_keys=True)
        self.reference_key = reference_key
        self.enabled = enabled

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the data with turned volumes."""
        result = dict(data)
        if self.enabled:
            axes = STANDARD_AXES if self.reference_key is None else result[self.reference_key].affine[:3, :3]
            for key in self.key_iterator(result):
                result[key] = _turned(result[key], np.asarray(axes))
        return result


def _turned(volume: MetaTensor, axes: np.ndarray) -> MetaTensor:
    """Return a volume with its axes in the order and direction that is nearest to axes, the columns of (3, 3), RAS.

    Nearest by the angles between both, not to the world: turning a whole pair in the world changes nothing.
    """
    affine = np.asarray(volume.affine)
    towards = np.eye(4)
    towards[:3, :3] = np.linalg.inv(axes / np.linalg.norm(axes, axis=0))
    order = io_orientation(towards @ affine)
    if np.array_equal(order, io_orientation(np.eye(4))):
        return volume
    values = np.ascontiguousarray(apply_orientation(volume.as_tensor()[0].numpy(), order))[None]
    return with_affine(
        torch.from_numpy(values), torch.from_numpy(affine @ inv_ornt_aff(order, volume.shape[1:])), volume
    )


def with_affine(values: torch.Tensor, affine: torch.Tensor, like: MetaTensor) -> MetaTensor:
    """Return values (1, D, H, W) with a new affine and the rest of the meta data of ``like``, which is not changed."""
    volume = MetaTensor(values, meta=dict(like.meta))
    volume.affine = affine.clone()
    return volume


def _increasing(name: str, ends: Sequence[float]) -> tuple[float, float]:
    """Return two increasing numbers, or say in words what came instead."""
    try:
        lower, upper = (float(value) for value in ends)
    except (TypeError, ValueError):
        raise InputError(f"{name} must be two numbers, for instance --{name} '[0, 100]', got {ends!r}") from None
    if not lower < upper:
        raise InputError(f"{name} must be a lower and a higher number, got {list(ends)}")
    return lower, upper
