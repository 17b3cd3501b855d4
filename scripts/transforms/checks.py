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
"""Checks of the voxels that were loaded: one clear error each, before heavy work.

:mod:`scripts.data.header_checks` looks at headers, before anything is loaded.
"""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform

from scripts.data.modality import modality_warning
from scripts.data.volumes import shape_text, source
from scripts.utils.errors import InputError

logger = logging.getLogger(__name__)

EXACT = 2**24, 2**53  # from here on float32 and float64 can't tell integers apart


class CheckImagesd(MapTransform):
    """Refuse images that can't be registered: NaN or Inf voxels, a constant image, a non-invertible affine.

    Where the values speak against the modality (case entry ``<key>_modality``), a warning goes to the log and into
    ``.meta["warnings"]``, a list of lines.

    Args:
        keys: loaded images (1, I, J, K).
        counted: leave such a line in ``.meta["modality_doubt"]`` instead: training says once how many images it
            concerns.
    """

    def __init__(self, keys: KeysCollection, counted: bool = False) -> None:
        super().__init__(keys)
        self.counted = counted

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the data unchanged."""
        for key in self.key_iterator(dict(data)):
            image = data[key]
            check_volume(str(key), image)
            lowest, highest = float(image.min()), float(image.max())
            if lowest == highest:
                raise InputError(f"{key}: {source(image)} is constant (all voxels are {lowest:g}); nothing to register")
            modality = data.get(f"{key}_modality")
            option = "the modality" if self.counted else f"--{key}_modality"
            doubt = None if modality is None else modality_warning(image.as_tensor(), str(modality), option)
            if doubt is not None and self.counted:
                image.meta["modality_doubt"] = doubt
            elif doubt is not None:
                add_warning(image, f"{key}: {source(image)} {doubt}")
        return dict(data)


class CheckMasksd(MapTransform):
    """Refuse an empty mask, and make masks 0/1: above zero is inside, as in the reference.

    Args:
        keys: loaded masks (1, I, J, K); masks that a case lacks are skipped.
    """

    def __init__(self, keys: KeysCollection) -> None:
        super().__init__(keys, allow_missing_keys=True)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the data with 0/1 masks."""
        result = dict(data)
        for key in self.key_iterator(result):
            mask = result[key]
            check_volume(str(key), mask)
            result[key] = (mask > 0).to(torch.float32)
            if not bool(torch.any(result[key])):
                raise InputError(
                    f"{key}: {source(mask)} is empty on a grid of {shape_text(mask.shape[1:])} (no voxel above 0);"
                    " give a mask with the region in it, or none"
                )
        return result


class CheckLabelsd(MapTransform):
    """Refuse label images whose values are not integers that are held exactly.

    Args:
        keys: loaded label images (1, I, J, K); those that a case lacks are skipped.
        below: absolute values have to be below this; 2^24 where what follows computes in float32, 2^53 for float64.
            Labels that were loaded as float32 have to be below 2^24 in any case: what lies above may have been rounded.
    """

    def __init__(self, keys: KeysCollection, below: int = EXACT[0]) -> None:
        super().__init__(keys, allow_missing_keys=True)
        self.below = int(below)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the data unchanged."""
        for key in self.key_iterator(dict(data)):
            label = data[key]
            check_volume(str(key), label)
            wrong = label != torch.round(label)
            count = int(wrong.sum())
            if count:
                example = float(label[wrong].flatten()[0])
                raise InputError(
                    f"{key}: {source(label)} has {count} voxels whose values are not integers, such as {example:g};"
                    " give a label image, not probabilities or an interpolated one"
                )
            below = min(self.below, EXACT[label.dtype == torch.float64])
            largest = float(label.abs().max())
            if largest >= below:
                raise InputError(
                    f"{key}: {source(label)} has label values of {below} or more, such as {largest:.0f}, which would be"
                    " rounded; renumber them"
                )
            if largest >= EXACT[0] and str(label.meta.get("original_dtype")) == "float32":
                add_warning(
                    label,
                    f"{key}: {source(label)} stores label values up to {largest:.0f} as float32, which can't tell whole"
                    f" numbers above {EXACT[0]} apart; if labels were merged, write the file again as int32",
                )
        return dict(data)


def add_warning(volume: MetaTensor, line: str) -> None:
    """Log a line, and keep it in the volume's meta data for the report."""
    logger.warning("%s", line)
    volume.meta["warnings"] = [*(volume.meta.get("warnings") or ()), line]


def check_volume(key: str, volume: MetaTensor) -> None:
    """Refuse voxels that are NaN or infinite, and an affine that has no inverse."""
    count = int((~torch.isfinite(volume.as_tensor())).sum())
    if count:
        raise InputError(
            f"{key}: {source(volume)} has {count} of {volume.numel()} voxels that are NaN or infinite;"
            " replace them (for instance by the background value)"
        )
    affine = affine_of(volume)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    volume_ratio = abs(np.linalg.det(affine[:3, :3])) / max(float(np.prod(spacing)), 1e-30)
    if not np.all(np.isfinite(affine)) or np.any(spacing <= 0) or volume_ratio < 1e-6:
        raise InputError(f"{key}: {source(volume)} has an affine without inverse: {affine.tolist()}; repair the header")


def affine_of(volume: MetaTensor) -> np.ndarray:
    """Return the 4 x 4 affine (voxel -> RAS mm) as float64."""
    return np.asarray(volume.affine, dtype=np.float64)
