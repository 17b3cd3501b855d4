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
"""Masks and labels on the grid of their image: the same grid, resampled to it, or refused.

All comparisons are in world space (RAS mm), by the 4 x 4 affines of voxel centers.
"""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, ResampleToMatch

from scripts.data.volumes import shape_text, source
from scripts.transforms.checks import affine_of
from scripts.utils.errors import InputError

logger = logging.getLogger(__name__)

SAME_GRID_VOXELS = 0.01  # grids whose corners differ by less than this are the same: headers are rounded


class MatchGridd(MapTransform):
    """Bring masks and labels onto the grid of their image: nearest voxel in world space, 0 outside.

    Args:
        keys: loaded masks and labels (1, I, J, K); those that a case lacks are skipped.
        image_keys: for each of them the image it belongs to.
    """

    def __init__(self, keys: KeysCollection, image_keys: Sequence[str]) -> None:
        super().__init__(keys, allow_missing_keys=True)
        self.image_keys = tuple(image_keys)
        self.resample = ResampleToMatch(mode="nearest", padding_mode="zeros", dtype=np.float64)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the data with masks and labels on their images' grids.

        Raises:
            InputError: shapes and affines contradict each other.
        """
        result = dict(data)
        for key, image_key in self.key_iterator(result, self.image_keys):
            result[key] = self._match(str(key), result[key], str(image_key), result[image_key])
        return result

    def _match(self, key: str, region: MetaTensor, image_key: str, image: MetaTensor) -> MetaTensor:
        shape, image_shape = tuple(region.shape[1:]), tuple(image.shape[1:])
        affine, image_affine = affine_of(region), affine_of(image)
        same_affine = same_grid(affine, image_affine, image_shape)
        pair = (
            f"{key}: {source(region)} ({shape_text(shape)}) and {image_key} {source(image)} ({shape_text(image_shape)})"
        )
        if same_affine and shape != image_shape:
            raise InputError(
                f"{pair} have the same affine but different shapes, so one of them was cropped or resized without its"
                " header; write it again with the right header"
            )
        if same_affine:
            region.affine = image.affine.clone()  # headers are rounded: the image's is taken
            return region
        if shape == image_shape and np.allclose(np.abs(affine), np.eye(4)):
            raise InputError(
                f"{pair} have the same shape, but {key} has no geometry (identity affine); copy the header of the image"
            )
        if not grids_overlap(affine, shape, image_affine, image_shape):
            raise InputError(f"{pair} do not overlap in space; give the {key} that belongs to this image")
        line = (
            f"{key} {source(region)} is not on the grid of {image_key}: resampled to it (nearest voxel); check that it"
            " belongs to this image"
        )
        logger.warning("%s", line)
        said = [*(region.meta.get("warnings") or ()), line]
        resampled = MetaTensor(self._resampled(region, image), meta={**region.meta, "warnings": said})
        resampled.affine = image.affine.clone()
        if not bool(torch.any(resampled)):
            raise InputError(f"{pair}: no voxel above 0 lies within the image; give the {key} that belongs to it")
        return resampled

    def _resampled(self, region: MetaTensor, image: MetaTensor) -> torch.Tensor:
        """Return the nearest values on the image's grid, in the region's type; MONAI computes in float32."""
        if region.dtype == torch.float32:
            return cast(MetaTensor, self.resample(region, img_dst=image)).as_tensor().to(torch.float32)
        known, places = torch.unique(region.as_tensor(), return_inverse=True)
        numbered = MetaTensor(places + 1, meta=dict(region.meta))  # 0 is outside
        numbered = cast(MetaTensor, self.resample(numbered, img_dst=image))
        return torch.cat([known.new_zeros(1), known])[numbered.as_tensor().long()]


def same_grid(affine: np.ndarray, other: np.ndarray, shape: tuple[int, ...]) -> bool:
    """Tell whether two affines put the corners of a grid of ``shape`` at the same places, within 1 % of a voxel."""
    corners = np.array([(i, j, k, 1) for i in (0, shape[0] - 1) for j in (0, shape[1] - 1) for k in (0, shape[2] - 1)])
    gap_mm = np.abs(corners @ (affine - other).T).max()
    return bool(gap_mm < SAME_GRID_VOXELS * np.linalg.norm(other[:3, :3], axis=0).min())


def grids_overlap(
    affine: np.ndarray, shape: tuple[int, ...], other: np.ndarray, other_shape: tuple[int, ...], steps: int = 12
) -> bool:
    """Tell whether two fields of view share a point, probing a lattice of points of each in the other."""
    return _reaches_into(affine, shape, other, other_shape, steps) or _reaches_into(
        other, other_shape, affine, shape, steps
    )


def _reaches_into(
    affine: np.ndarray, shape: tuple[int, ...], other: np.ndarray, other_shape: tuple[int, ...], steps: int
) -> bool:
    axes = [np.linspace(-0.5, size - 0.5, steps) for size in shape]
    points = np.stack([*np.meshgrid(*axes, indexing="ij"), np.ones((steps,) * 3)], axis=-1).reshape(-1, 4)
    voxels = (points @ (np.linalg.inv(other) @ affine).T)[:, :3]
    inside = (voxels >= -0.5) & (voxels <= np.array(other_shape) - 0.5)
    return bool(inside.all(axis=1).any())
