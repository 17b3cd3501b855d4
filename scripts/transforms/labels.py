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
"""Copies of label images that follow their images onto the network's grid."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform

from scripts.data.volumes import with_affine

_FLOAT32_EXACT = 2**24  # from here on float32 rounds whole numbers


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
