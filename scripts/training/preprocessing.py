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
"""Preprocessing of single images for training, beside what inference does: landmarks, and the cache's compact form."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.transforms import Transform
from torch import Tensor

from scripts.data.landmarks import read_landmarks
from scripts.utils.errors import InputError
from scripts.utils.tensors import plain

CACHE_DTYPES = {"float32": torch.float32, "float16": torch.float16, "uint8": torch.uint8}


class AddLandmarksd(Transform):
    """Replace the path ``landmarks`` by points (N, 3), world RAS mm, if the image has it.

    ``landmark_space`` of the record, else the argument, tells the file's coordinates: "LPS" or "RAS" (CSV with header
    x,y,z in mm) or "voxel" (Learn2Reg's keypoints: no header, one i,j,k a line).

    Args:
        landmark_space: of records that do not say.
    """

    def __init__(self, landmark_space: str = "LPS") -> None:
        self.landmark_space = landmark_space

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the data with points; ``image`` must still be on its own grid."""
        result = dict(data)
        if "landmarks" in result:
            space = str(result.get("landmark_space", self.landmark_space))
            affine = plain(result["image"].affine)
            result["landmarks"] = read_landmarks(result["landmarks"], space, affine).points_ras_mm
        return result


class PackImaged(Transform):
    """Keep of a preprocessed image what training needs, as plain tensors: what is cached.

    ``image`` (1, D, H, W) in [0, 1] (0 to 255 as uint8), ``affine`` (4, 4) float64, ``path``, and where given ``mask``
    (uint8), ``label`` (uint8, int16 or int32), ``landmarks`` (N, 3) float64, and ``modality_doubt``, why the values can
    hardly be of the image's modality.

    Args:
        cache_dtype: "float16" (rounds by at most 0.00025), "uint8" (by 0.002) or "float32".
    """

    def __init__(self, cache_dtype: str = "float16") -> None:
        if cache_dtype not in CACHE_DTYPES:
            raise InputError(f"cache_dtype: expected one of {', '.join(CACHE_DTYPES)}, got '{cache_dtype}'")
        self.cache_dtype = cache_dtype

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[str, Any]:
        """Return the packed image."""
        image = data["image"]
        values = plain(image)
        if self.cache_dtype == "uint8":
            values = (values.clamp(0, 1) * 255).round()
        packed: dict[str, Any] = {
            "image": values.to(CACHE_DTYPES[self.cache_dtype]),
            "affine": plain(image.affine).double(),
            "path": str(image.meta.get("filename_or_obj", "image")),
        }
        if "modality_doubt" in image.meta:
            packed["modality_doubt"] = image.meta["modality_doubt"]
        if "loss_mask" in data:
            packed["mask"] = (plain(data["loss_mask"]) != 0).to(torch.uint8)
        if "label" in data:
            packed["label"] = _compact(plain(data["label"]))
        if "landmarks" in data:
            packed["landmarks"] = data["landmarks"]
        return packed


def _compact(label: Tensor) -> Tensor:
    """Return integers in the smallest type that holds them."""
    low, high = float(label.min()), float(label.max())
    for dtype in (torch.uint8, torch.int16):
        limits = torch.iinfo(dtype)
        if limits.min <= low and high <= limits.max:
            return label.to(dtype)
    return label.to(torch.int32)


def unpack(image: Tensor) -> Tensor:
    """Return a cached image as float32 in [0, 1]."""
    return image.float() / 255 if image.dtype == torch.uint8 else image.float()
