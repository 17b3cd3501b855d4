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
"""Regions of interest: for the network's input, or for the similarity alone."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from monai.config import KeysCollection
from monai.transforms import MapTransform

from scripts.utils.errors import InputError


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
