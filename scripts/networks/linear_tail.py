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
"""The linear end of a UNet as one convolution on the coarse grid.

After the last nonlinearity a UNet only has linear steps: transposed convolution, interpolation, batch norm (by running
statistics), joining with the images, last convolution. Their composition is one 3 x 3 x 3 convolution on the grid of
half the size whose channels are the eight fine voxels ("phases") of a coarse one: the same numbers with half the
multiplications, and the 18 channels of full size, the largest tensors of the network, are never made.

At the border the composition differs, because the last convolution pads with zeros and the interpolation repeats the
border. So a coarse voxel has one of three kinds along each axis (first, inner, last), each with a kernel of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import product
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor

_FIRST, _INNER, _LAST = range(3)
# what the kernel of a kind keeps of the three offsets -1, 0, 1, and where the kind lies along an axis
_OFFSETS = {_FIRST: slice(1, 3), _INNER: slice(0, 3), _LAST: slice(0, 2)}
_INPUTS = {_FIRST: slice(0, 2), _INNER: slice(None), _LAST: slice(-2, None)}
_PLACES = {_FIRST: slice(0, 1), _INNER: slice(None), _LAST: slice(-1, None)}
# inner first: faces, edges and corners are written over it
_REGIONS = sorted(product((_INNER, _FIRST, _LAST), repeat=3), key=lambda kinds: 3 - kinds.count(_INNER))


class TailWeights(NamedTuple):
    """The parameters of the linear steps."""

    up: Tensor
    """(C, M, 4, 4, 4), transposed convolution with stride 2 and padding 1, scaled by the batch norm."""
    scale: Tensor
    """(M,), factor of the batch norm, for what is interpolated."""
    shift: Tensor
    """(M,), what batch norm and bias of the transposed convolution add."""
    last: Tensor
    """(3, M + S, 3, 3, 3), last convolution, padding 1."""
    bias: Tensor
    """(3,), its bias."""


def tail_features(below: Tensor, interpolated: Tensor, skip: Tensor) -> Tensor:
    """Join the inputs of :func:`linear_tail`; apart from it, so that they can be freed before.

    Args:
        below: (B, C, d, h, w), each axis at least 2 long; its leaky ReLU is for the transposed convolution.
        interpolated: (B, M, d, h, w), to be brought to twice the size, trilinear between voxel edges.
        skip: (B, S, D, H, W), each axis 2 d or 2 d - 1 long.

    Returns:
        (B, C + M + 8 S, d, h, w).
    """
    phases = _phases_to_channels(skip, _missing(below.shape[2:], skip.shape[2:]))
    if torch.is_grad_enabled():
        joined = torch.cat([F.leaky_relu(below), interpolated, phases], dim=1)
    else:  # these are the largest tensors of the pass: no copy beside the result
        joined = torch.cat([below, interpolated, phases], dim=1)
        F.leaky_relu_(joined[:, : below.shape[1]])
    return joined.contiguous(memory_format=torch.channels_last_3d)


def linear_tail(features: Tensor, shape: Sequence[int], weights: TailWeights) -> Tensor:
    """Return last(cat[up(activated) + scale * interpolate(interpolated) + shift, skip]).

    Args:
        features: of :func:`tail_features`.
        shape: (D, H, W) of the skip and of the result.
        weights: see :class:`TailWeights`. Differentiable, as is ``features``.

    Returns:
        (B, 3, D, H, W).
    """
    batch, _, d, h, w = features.shape
    device = features.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else features.dtype
    with torch.autocast(device, enabled=False):  # one type for all, also in the backward pass; kernels composed in full
        kernels = [kernel.to(dtype) for kernel in _compose(weights, _missing((d, h, w), shape))]
        found = cast(Tensor, _RegionConvolution.apply(features.to(dtype), *kernels))
    phases = found.permute(0, 2, 3, 4, 1).reshape(batch, d, h, w, 2, 2, 2, 3)
    full = phases.permute(0, 7, 1, 4, 2, 5, 3, 6).reshape(batch, 3, 2 * d, 2 * h, 2 * w)
    return full[:, :, : shape[0], : shape[1], : shape[2]]


def _missing(coarse: Sequence[int], fine: Sequence[int]) -> list[int]:
    """Return for each axis whether the fine grid ends with the first half of a coarse voxel (1) or not (0)."""
    return [2 * n - m for n, m in zip(coarse, fine, strict=True)]


class _RegionConvolution(torch.autograd.Function):
    """One convolution for the whole grid, others over its faces, edges and corners.

    By hand, because the gradient of each piece that is written into the result would copy the whole result.
    """

    @staticmethod
    def forward(ctx: Any, features: Tensor, *kernels: Tensor) -> Tensor:
        """Convolve (B, C, d, h, w) with a kernel and a bias for each region."""
        ctx.save_for_backward(features, *kernels)
        result = F.conv3d(features, kernels[0], kernels[1], padding=1)
        for index, kinds in enumerate(_REGIONS[1:], start=1):
            piece = _long_axes_first(features[_inputs(kinds)], kinds)
            kernel = _long_axes_first(kernels[2 * index], kinds)
            part = F.conv3d(piece, kernel, kernels[2 * index + 1], padding=_padding(kinds))
            result[_places(kinds)] = _axes_back(part, kinds)
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of the features and of all kernels."""
        features, *kernels = ctx.saved_tensors
        gradient = gradients[0].contiguous(memory_format=torch.channels_last_3d)
        if gradient is gradients[0]:
            gradient = gradient.clone()
        wanted = list(ctx.needs_input_grad[:3])
        found: dict[int, tuple[Tensor | None, Tensor | None]] = {}
        pieces = []
        of_input: Tensor | None = None
        for index in reversed(range(len(_REGIONS))):
            kinds = _REGIONS[index]
            of_input, of_kernel, of_bias = torch.ops.aten.convolution_backward(
                _long_axes_first(gradient[_places(kinds)], kinds),
                _long_axes_first(features[_inputs(kinds)], kinds),
                _long_axes_first(kernels[2 * index], kinds),
                [gradient.shape[1]],
                [1, 1, 1],
                _padding(kinds),
                [1, 1, 1],
                False,
                [0, 0, 0],
                1,
                wanted,
            )
            found[index] = None if of_kernel is None else _axes_back(of_kernel, kinds), of_bias
            gradient[_places(kinds)] = 0  # written over in the result: the regions before have no part in it
            if index > 0:
                pieces.append((kinds, of_input))
        if of_input is not None:
            for kinds, piece in pieces:
                of_input[_inputs(kinds)] += _axes_back(piece, kinds)
        return of_input, *(part for index in range(len(_REGIONS)) for part in found[index])


def _inputs(kinds: tuple[int, ...]) -> tuple[slice, ...]:
    return slice(None), slice(None), *(_INPUTS[kind] for kind in kinds)


def _places(kinds: tuple[int, ...]) -> tuple[slice, ...]:
    return slice(None), slice(None), *(_PLACES[kind] for kind in kinds)


def _order(kinds: tuple[int, ...]) -> list[int]:
    """Return the axes with those along which a region is thin last: other orders meet PyTorch's slow convolutions."""
    return sorted(range(3), key=lambda axis: kinds[axis] != _INNER)


def _padding(kinds: tuple[int, ...]) -> list[int]:
    return [int(kinds[axis] == _INNER) for axis in _order(kinds)]


def _long_axes_first(values: Tensor, kinds: tuple[int, ...]) -> Tensor:
    values = values.permute(0, 1, *(2 + axis for axis in _order(kinds)))
    return values.contiguous(memory_format=torch.channels_last_3d)


def _axes_back(values: Tensor, kinds: tuple[int, ...]) -> Tensor:
    order = _order(kinds)
    return values.permute(0, 1, *(2 + order.index(axis) for axis in range(3)))


def _phases_to_channels(image: Tensor, odd: list[int]) -> Tensor:
    """Return (B, S, D, H, W), filled up with zeros to even sizes, as (B, 8 S, D/2, H/2, W/2); channels S, a, b, c."""
    image = F.pad(image, [0, odd[2], 0, odd[1], 0, odd[0]])
    batch, channels, *fine = image.shape
    d, h, w = (size // 2 for size in fine)
    phases = image.reshape(batch, channels, d, 2, h, 2, w, 2).permute(0, 1, 3, 5, 7, 2, 4, 6)
    return phases.reshape(batch, 8 * channels, d, h, w).contiguous(memory_format=torch.channels_last_3d)


def _compose(weights: TailWeights, odd: list[int]) -> list[Tensor]:
    """Return for each region kernel (24, C + M + 8 S, ...) and bias (24,); output channels a, b, d, component."""
    axes = [[_axis(kind, bool(rest)) for kind in (_FIRST, _INNER, _LAST)] for rest in odd]
    ups, interpolations, skips, valid = (
        [torch.stack([getattr(axis, name) for axis in kinds]).to(weights.last) for kinds in axes]
        for name in ("up", "interpolation", "skip", "valid")
    )
    middle = weights.up.shape[1]
    joined, direct = weights.last[:, :middle], weights.last[:, middle:]
    # e, f, g: taps of the last convolution; t, u, v: of the transposed one; i, j, k: offsets on the coarse grid;
    # x, y, z: kinds; n: component; c, m, s: channels
    up = torch.einsum("nmefg,cmtuv->nceftuvg", joined, weights.up)
    up = torch.einsum("nceftuvg,xaeti->ncfuvgxai", up, ups[0])
    up = torch.einsum("ncfuvgxai,ybfuj->ncvgxaiybj", up, ups[1])
    up = torch.einsum("ncvgxaiybj,zdgvk->xyzabdncijk", up, ups[2])
    scaled = joined * weights.scale.view(1, -1, 1, 1, 1)
    smooth = torch.einsum("nmefg,xaei,ybfj,zdgk->xyzabdnmijk", scaled, *interpolations)
    images = torch.einsum("nsefg,xaeip,ybfjq,zdgkr->xyzabdnspqrijk", direct, *skips).flatten(7, 10)
    kernels = torch.cat([up, smooth, images], dim=7).flatten(3, 6)
    constant = torch.einsum("nmefg,m->nefg", joined, weights.shift)
    biases = torch.einsum("nefg,xae,ybf,zdg->xyzabdn", constant, *valid) + weights.bias
    found = []
    for kinds in _REGIONS:
        kept = tuple(_OFFSETS[kind] for kind in kinds)
        found += [kernels[kinds][(slice(None), slice(None), *kept)], biases[kinds].flatten()]
    return found


class _Axis(NamedTuple):
    """How a fine voxel of one axis, phase a, reaches the coarse grid through tap e of the last convolution."""

    up: Tensor
    """(2, 3, 4, 3), one where tap t of the transposed convolution leads to the coarse offset i."""
    interpolation: Tensor
    """(2, 3, 3), weight of the coarse offset i."""
    skip: Tensor
    """(2, 3, 3, 2), one where coarse offset i and phase p are the fine voxel itself."""
    valid: Tensor
    """(2, 3), one where the tap stays inside the image."""


@lru_cache(maxsize=8)
def _axis(kind: int, odd: bool) -> _Axis:
    up, interpolation = torch.zeros(2, 3, 4, 3), torch.zeros(2, 3, 3)
    skip, valid = torch.zeros(2, 3, 3, 2), torch.zeros(2, 3)
    for phase, tap in product(range(2), range(3)):
        fine = phase + tap - 1  # relative to the first fine voxel of this coarse one
        if (kind == _FIRST and fine < 0) or (kind == _LAST and fine > 1 - odd):
            continue
        valid[phase, tap] = 1
        skip[phase, tap, fine // 2 + 1, fine % 2] = 1
        for offset in (-1, 0, 1):
            if 0 <= fine + 1 - 2 * offset < 4:
                up[phase, tap, fine + 1 - 2 * offset, offset + 1] = 1
        near, far = fine // 2, fine // 2 + (1 if fine % 2 else -1)
        for offset, weight in ((near, 0.75), (far, 0.25)):
            inside = max(offset, 0) if kind == _FIRST else min(offset, 0) if kind == _LAST else offset
            interpolation[phase, tap, inside + 1] += weight
    return _Axis(up, interpolation, skip, valid)
