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
"""The order and the direction of axes: that of the published network, and one that does not depend on the file."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation

from scripts.data.volumes import with_affine

STANDARD_AXES = np.array([[0, 0, -1], [0, -1, 0], [1, 0, 0]])  # of (D, H, W), RAS: superior, posterior, left; i.e. LPS


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
