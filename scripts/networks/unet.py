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
"""One UNet of the registration network: a pair of images -> a displacement field.

The network of GradICON and uniGradICON ("tallUNet2" in icon_registration): residual convolutions that halve the grid
on the way down and double it on the way up, with the finer features joined in.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from scripts.networks.linear_tail import TailWeights, linear_tail, tail_features
from scripts.utils.errors import InputError

DOWN_CHANNELS = (2, 16, 32, 64, 256, 512)
UP_CHANNELS = (16, 32, 64, 128, 256)


class UNet(nn.Module):
    """Predict the displacement that warps the moving image onto the fixed one.

    The number of levels is the length of ``up_channels``. Scriptable and exportable.

    Args:
        down_channels: channels on the way down: 2 (the pair), then the output of each level, finest first.
        up_channels: output channels of each level on the way up, finest first; one fewer than ``down_channels``.

    Raises:
        InputError: when the two lists do not fit together.
    """

    def __init__(self, down_channels: Sequence[int] = DOWN_CHANNELS, up_channels: Sequence[int] = UP_CHANNELS) -> None:
        super().__init__()
        down, up = [int(n) for n in down_channels], [int(n) for n in up_channels]
        if not up or len(down) != len(up) + 1 or down[0] != 2 or min(down + up) < 1:
            raise InputError(
                "expected down_channels (2, then one number a level) and up_channels (one number a level),"
                f" got {down} and {up}"
            )
        levels = len(up)
        self.levels = levels
        # True: forget the activations and compute them again in the backward pass, which saves memory in training
        self.recomputes = False
        # finest level first
        self.down = nn.ModuleList(
            [nn.Conv3d(down[n], down[n + 1], kernel_size=3, stride=2, padding=1) for n in range(levels)]
        )
        # coarsest level first, the order of use (TorchScript can't walk a ModuleList backwards); a level takes what
        # came from below, joined with the skip that has down[n + 1] channels
        below = [*up[1:], 0]
        self.up = nn.ModuleList(
            [
                nn.ConvTranspose3d(down[n + 1] + below[n], up[n], kernel_size=4, stride=2, padding=1)
                for n in reversed(range(levels))
            ]
        )
        self.norm = nn.ModuleList([nn.BatchNorm3d(up[n]) for n in reversed(range(levels))])
        self.last = nn.Conv3d(up[0] + down[0], 3, kernel_size=3, padding=1)
        # an untrained network is the identity
        nn.init.zeros_(self.last.weight)
        if self.last.bias is not None:
            nn.init.zeros_(self.last.bias)

    def forward(self, moving: Tensor, fixed: Tensor) -> Tensor:
        """Return the displacement field.

        Args:
            moving: (B, 1, D, H, W), each axis at least 2 ** (levels - 1) + 1 long.
            fixed: same shape.

        Returns:
            (B, 3, D, H, W), normalized units.
        """
        x = torch.cat([moving, fixed], dim=1)
        if torch.jit.is_scripting() or torch.compiler.is_compiling():
            return self._displacement(x)
        return self._eager(x)

    @torch.jit.unused
    def _eager(self, x: Tensor) -> Tensor:
        """Choose how to compute what :meth:`_displacement` defines."""
        # a trace would record the joined convolution as Python
        joined = all(_is_constant(norm) for norm in self.norm) and min(x.shape[2:]) > 2 and not torch.jit.is_tracing()
        compute = self._composed if joined else self._displacement
        if not (self.recomputes and torch.is_grad_enabled()):
            return compute(x)

        def contexts() -> tuple[AbstractContextManager, AbstractContextManager]:
            return nullcontext(), self._statistics_kept()

        # nothing in here is random
        return checkpoint(compute, x, use_reentrant=False, preserve_rng_state=False, context_fn=contexts)

    @torch.jit.unused
    @contextmanager
    def _statistics_kept(self) -> Iterator[None]:
        """Do not count a batch twice in the running statistics of the batch norms."""
        norms = [norm for norm in self.norm if isinstance(norm, nn.modules.batchnorm._BatchNorm)]
        momenta = [norm.momentum for norm in norms]
        counts = [torch.as_tensor(norm.num_batches_tracked).clone() for norm in norms]
        for norm in norms:
            norm.momentum = 0.0
        try:
            yield
        finally:
            for norm, momentum, count in zip(norms, momenta, counts, strict=True):
                norm.momentum = momentum
                torch.as_tensor(norm.num_batches_tracked).copy_(count)

    def _displacement(self, x: Tensor) -> Tensor:
        """Return the displacement field of a pair (B, 2, D, H, W)."""
        skips: list[Tensor] = []
        for down in self.down:
            skips.append(x)
            y = down(F.leaky_relu(x))
            x = y + match_channels(F.avg_pool3d(x, 2, ceil_mode=True), y.shape[1])
        for up, norm in zip(self.up, self.norm, strict=False):  # TorchScript knows no strict=True
            y = up(F.leaky_relu(x))
            x = match_channels(x, y.shape[1])
            x = norm(y + F.interpolate(x, scale_factor=2.0, mode="trilinear", align_corners=False))
            skip = skips.pop()
            # an odd size was rounded up on the way down
            x = torch.cat([x[:, :, : skip.shape[2], : skip.shape[3], : skip.shape[4]], skip], dim=1)
        return self.last(x) / 10.0

    @torch.jit.unused
    def _composed(self, x: Tensor) -> Tensor:
        """Return the same with linear steps joined, for batch norms by running statistics: less time and memory.

        The batch norms go into the transposed convolutions, and all of the last level into one convolution. Channels
        are the fastest axis in memory, which CPU and GPU convolutions prefer.
        """
        x = x.contiguous(memory_format=torch.channels_last_3d)
        skips: list[Tensor] = []
        for down in self.down:
            skips.append(x)
            pooled = F.avg_pool3d(x, 2, ceil_mode=True)
            x = down(F.leaky_relu(x))
            channels = min(x.shape[1], pooled.shape[1])
            x[:, x.shape[1] - channels :].add_(pooled[:, :channels])
        for up_layer, norm in zip(self.up, self.norm, strict=True):
            up = cast(nn.ConvTranspose3d, up_layer)
            scale, shift = _scale_and_shift(cast(nn.BatchNorm3d, norm))
            kernel, shift = up.weight * scale.view(-1, 1, 1, 1), shift + cast(Tensor, up.bias) * scale
            skip = skips.pop()
            smooth = match_channels(x, scale.shape[0])
            if not skips:
                break
            y = F.conv_transpose3d(F.leaky_relu(x), kernel, shift, stride=2, padding=1)
            smooth = smooth * scale.view(-1, 1, 1, 1)
            y += F.interpolate(smooth, scale_factor=2.0, mode="trilinear", align_corners=False)
            x = torch.cat([y[:, :, : skip.shape[2], : skip.shape[3], : skip.shape[4]], skip], dim=1)
            del y
        x = tail_features(x, smooth, skip)
        del smooth
        tail = TailWeights(kernel, scale, shift, self.last.weight / 10, cast(Tensor, self.last.bias) / 10)
        return linear_tail(x, skip.shape[2:], tail)


def _is_constant(norm: nn.Module) -> bool:
    """Tell whether a layer multiplies and adds what does not depend on its input."""
    is_batch_norm = isinstance(norm, nn.modules.batchnorm._BatchNorm)
    return is_batch_norm and not norm.training and bool(norm.affine) and norm.running_mean is not None


def _scale_and_shift(norm: nn.BatchNorm3d) -> tuple[Tensor, Tensor]:
    """Return what a batch norm multiplies by and adds, (C,), by its running statistics."""
    scale = norm.weight * torch.rsqrt(cast(Tensor, norm.running_var) + norm.eps)
    return scale, norm.bias - cast(Tensor, norm.running_mean) * scale


def match_channels(x: Tensor, channels: int) -> Tensor:
    """Cut (B, C, D, H, W) to its first ``channels`` channels, or put channels of zeros in front."""
    if x.shape[1] >= channels:
        return x[:, :channels]
    return F.pad(x, [0, 0, 0, 0, 0, 0, channels - x.shape[1], 0])
