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
"""Transforms whose grid is made to cover a whole image, where a part of it was registered."""

from __future__ import annotations

import itertools
import math

import torch
import torch.nn.functional as F
from monai.data import MetaTensor

from scripts.geometry.grid_transform import GridTransform
from scripts.geometry.warping import shift_affine
from scripts.utils.tensors import plain


def extend(transform: GridTransform, image: MetaTensor) -> GridTransform:
    """Return a transform whose grid covers an image, the border's displacements repeated outside.

    Without it, displacements would jump to zero where a cropped grid ends. A grid that covers the image to within half
    a voxel, as that of an image that is not cropped, is left as it is.

    Args:
        transform: fixed point -> moving point.
        image: on whose grid the transform is used, (1, I, J, K) with its RAS affine.
    """
    to_voxel = torch.linalg.inv(transform.fixed_affine) @ plain(image.affine).double()
    corners = torch.tensor(list(itertools.product(*((0, n - 1) for n in image.shape[1:]))), dtype=torch.float64)
    voxels = corners @ to_voxel[:3, :3].T + to_voxel[:3, 3]
    size = torch.tensor(transform.shape, dtype=torch.float64)
    before = (-voxels.min(dim=0).values).clamp_min(0)
    after = (voxels.max(dim=0).values - (size - 1)).clamp_min(0)
    if float(torch.maximum(before, after).max()) <= BEYOND:
        return transform
    low, high = ([math.ceil(float(value)) for value in side] for side in (before, after))
    while math.prod(n + a + b for n, a, b in zip(transform.shape, low, high, strict=True)) > MOST_VOXELS:
        low, high = ([int(0.9 * value) for value in side] for side in (low, high))  # far out in the air
    pads = [amount for axis in (2, 1, 0) for amount in (low[axis], high[axis])]
    ddf = F.pad(transform.ddf[None], pads, mode="replicate")[0]
    first = [-value for value in low]
    return GridTransform(ddf, shift_affine(transform.fixed_affine, first), shift_affine(transform.moving_affine, first))


MOST_VOXELS = 2**25  # of an extended field: 400 MB

BEYOND = 0.75  # voxels of its grid by which an image may be larger than a transform
