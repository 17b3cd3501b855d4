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
"""Gaussian and box filters as products with small matrices, one an axis; and shrinking with a blur against aliasing."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from scripts.geometry.coordinates import along_axes, interpolation_matrix


@lru_cache(maxsize=64)
def _blur_matrix(size: int, sigma: float, device: torch.device, dtype: torch.dtype, stride: int = 1) -> Tensor:
    """Return the matrix of a Gaussian blur with zero padding, a row for every ``stride``-th place along the axis.

    The places are symmetric about the middle of the axis, so that a flipped image gives the flipped result: 0, 1, ...
    with a stride of 1, and between voxels, 0.5, 2.5, ..., with a stride of 2 and an even size. The kernel reaches over
    2 * round(2 sigma) + 1 voxels: between voxels, half of those at its ends. Its weights sum to 1.
    """
    radius = max(1, round(2 * sigma))
    count = (size - 1) // stride + 1
    places = torch.arange(count, dtype=torch.float64) * stride + (size - 1) % stride / 2
    sources = torch.floor(places)[:, None] + torch.arange(-radius - 1, radius + 2, dtype=torch.float64)
    distance = (sources - places[:, None]).abs()
    taps = torch.exp(-0.5 * (distance / sigma) ** 2) * (radius + 1 - distance).clamp(0, 1)
    taps = taps / taps.sum(dim=1, keepdim=True)
    inside = (sources >= 0) & (sources < size)
    matrix = torch.zeros(count, size, dtype=torch.float64)
    matrix.scatter_add_(1, sources.clamp(0, size - 1).long(), torch.where(inside, taps, 0.0))
    return matrix.to(device=device, dtype=dtype)


@lru_cache(maxsize=64)
def _box_matrix(size: int, radius: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return the (size, size) matrix of a mean over 2 radius + 1 voxels, the border value repeated outside."""
    sources = (torch.arange(size)[:, None] + torch.arange(-radius, radius + 1)[None, :]).clamp(0, size - 1)
    matrix = torch.zeros(size, size, dtype=torch.float64)
    matrix.scatter_add_(1, sources, torch.full(sources.shape, 1 / (2 * radius + 1), dtype=torch.float64))
    return matrix.to(device=device, dtype=dtype)


@lru_cache(maxsize=64)
def _shrink_matrix(size: int, target: int, sigma: float, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return the (target, size) matrix of a blur without loss at the border, then linear interpolation."""
    blur = _blur_matrix(size, sigma, torch.device("cpu"), torch.float64)
    blur = blur / blur.sum(dim=1, keepdim=True)
    return (interpolation_matrix(size, target) @ blur).to(device=device, dtype=dtype)


def gaussian_blur(image: Tensor, sigma: float, stride: int = 1) -> Tensor:
    """Blur (B, C, D, H, W) with a Gaussian of ``sigma`` voxels, zero outside the image.

    One matrix product an axis: the same numbers as a separable convolution of 4 sigma + 1 taps, several times faster on
    a CPU, whose single-channel 3-D convolutions are slow. With a ``stride``, only every such voxel along each axis is
    computed.
    """
    return along_axes(image, *(_blur_matrix(n, sigma, image.device, image.dtype, stride) for n in image.shape[2:]))


def gaussian_shrink(image: Tensor, shape: Sequence[int], sigma: float) -> Tensor:
    """Blur (B, C, D, H, W) with a Gaussian of ``sigma`` voxels and evaluate it on a grid over the same unit cube.

    The blur averages over what lies inside the image; the end voxel centers of both grids coincide.
    """
    sizes = zip(image.shape[2:], shape, strict=True)
    return along_axes(image, *(_shrink_matrix(n, int(m), sigma, image.device, image.dtype) for n, m in sizes))


def box_mean(image: Tensor, radius: int) -> Tensor:
    """Average (B, C, D, H, W) over cubes of 2 radius + 1 voxels, the border value repeated outside."""
    return along_axes(image, *(_box_matrix(n, radius, image.device, image.dtype) for n in image.shape[2:]))
