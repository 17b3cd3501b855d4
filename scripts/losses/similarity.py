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
"""Image similarities, as losses: lower is better.

Each one is called as ``similarity(warped, target, mask)`` on images (B, 1, D, H, W) in [0, 1] and returns one number.
``mask`` (B, 1, D, H, W) belongs to the target: only its non-zero voxels count (per sample, then over samples).
``similarity.to_target(target, mask)`` computes once what depends on the target alone and returns
``warped -> loss``, for optimizers that call it again and again.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from monai.losses import GlobalMutualInformationLoss
from torch import Tensor, nn

from scripts.geometry.coordinates import shift_with_border
from scripts.geometry.smoothing import box_mean, gaussian_blur
from scripts.utils.errors import InputError

SIMILARITIES = ("lncc", "lncc2", "mind", "nmi")
_VARIANCE_FLOOR = 1e-5  # of the reference; keeps constant regions at a correlation of 0


def masked_mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """Average (B, C, D, H, W) over the non-zero voxels of a mask (B, 1, D, H, W) per sample, then over samples."""
    if mask is None:
        return values.mean()
    included = (mask != 0).expand_as(values)
    axes = (1, 2, 3, 4)
    return ((values * included).sum(axes) / included.sum(axes).clamp_min(1)).mean()


class Similarity(nn.Module):
    """Base of all similarities: ``forward`` is ``to_target`` applied once."""

    def forward(self, warped: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the loss, a scalar; all arguments (B, 1, D, H, W)."""
        if warped.shape != target.shape:
            raise ValueError(
                f"similarity: warped and target must have one shape, got {warped.shape} and {target.shape}"
            )
        return self.to_target(target, mask)(warped)

    def to_target(self, target: Tensor, mask: Tensor | None = None) -> Callable[[Tensor], Tensor]:
        """Return the function warped -> loss for one target."""
        raise NotImplementedError


class LNCC(Similarity):
    """1 - mean local normalized cross-correlation in a Gaussian window (GradICON; ``icon_registration.LNCC``).

    Args:
        sigma: standard deviation of the window in voxels.
        squared: use the squared correlation (contrasts may be inverted), as multiGradICON does.
        stride: average over every such voxel along each axis only. The correlation is about as smooth as its window:
            with a stride of no more than ``sigma``, hardly anything but the time changes. 1 is the published loss, and
            with a mask, which may be thin, it is always 1.
        flat_correlation: correlation of windows without contrast. 0 is the published loss: it grows with contrast, so
            that an image deformed to have more of it correlates better than the image itself. With 1, the floor of the
            variances is in the numerator, too, and no image correlates better with the target than the target itself.
    """

    def __init__(
        self, sigma: float = 5.0, squared: bool = False, stride: int = 1, flat_correlation: float = 0.0
    ) -> None:
        super().__init__()
        if sigma <= 0 or stride < 1:
            raise InputError(f"LNCC: sigma must be positive (voxels) and stride at least 1, got {sigma} and {stride}")
        self.sigma = float(sigma)
        self.squared = squared
        self.stride = int(stride)
        self.flat_correlation = float(flat_correlation)

    def to_target(self, target: Tensor, mask: Tensor | None = None) -> Callable[[Tensor], Tensor]:
        """Blur the target and its square once. See the base class."""
        stride = self.stride if mask is None else 1
        mean_target, mean_square_target = self._blur(stride, target, target * target)
        variance_target = F.relu(mean_square_target - mean_target**2) + _VARIANCE_FLOOR

        def loss(warped: Tensor) -> Tensor:
            mean, mean_square, mean_product = self._blur(stride, warped, warped * warped, warped * target)
            variance = F.relu(mean_square - mean**2) + _VARIANCE_FLOOR
            covariance = mean_product - mean * mean_target + self.flat_correlation * _VARIANCE_FLOOR
            correlation = covariance * torch.rsqrt(variance * variance_target)
            return 1 - masked_mean(correlation**2 if self.squared else correlation, mask)

        return loss

    def local_correlation(self, warped: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return the correlation in the window around each voxel, and where either image has a contrast to judge it by.

        Both (B, 1, D, H, W) as the images, the second one boolean.
        """
        mean, square, mean_target, square_target, product = self._blur(
            1, warped, warped * warped, target, target * target, warped * target
        )
        variance, variance_target = F.relu(square - mean**2), F.relu(square_target - mean_target**2)
        scale = torch.rsqrt((variance + _VARIANCE_FLOOR) * (variance_target + _VARIANCE_FLOOR))
        return (product - mean * mean_target) * scale, torch.maximum(variance, variance_target) > 10 * _VARIANCE_FLOOR

    def _blur(self, stride: int, *images: Tensor) -> tuple[Tensor, ...]:
        return gaussian_blur(torch.cat(images, dim=1), self.sigma, stride).split(1, dim=1)


class MINDSSC(Similarity):
    """Mean squared difference of MIND-SSC descriptors (Heinrich et al., MICCAI 2013), for images of different contrast.

    Args:
        radius: patch radius in voxels.
        dilation: distance of the compared patches in voxels.
    """

    def __init__(self, radius: int = 2, dilation: int = 2) -> None:
        super().__init__()
        self.radius = radius
        self.dilation = dilation

    def to_target(self, target: Tensor, mask: Tensor | None = None) -> Callable[[Tensor], Tensor]:
        """Compute the target's descriptor once. See the base class."""
        descriptor = self.descriptor(target)

        def loss(warped: Tensor) -> Tensor:
            return masked_mean((self.descriptor(warped) - descriptor) ** 2, mask)

        return loss

    def descriptor(self, image: Tensor) -> Tensor:
        """Return the MIND-SSC descriptor (B, 12, D, H, W) of an image (B, 1, D, H, W).

        The twelve channels compare the pairs of face neighbors that are at distance sqrt(2) of each other.
        """
        offsets = [(a, s) for a in range(3) for s in (-1, 1)]
        neighbors = [shift_with_border(image, axis, sign * self.dilation) for axis, sign in offsets]
        pairs = [(m, n) for m in range(6) for n in range(m) if offsets[m][0] != offsets[n][0]]
        squared = torch.cat([(neighbors[m] - neighbors[n]) ** 2 for m, n in pairs], dim=1)
        distance = box_mean(squared, self.radius)
        distance = distance - distance.amin(dim=1, keepdim=True)
        variance = distance.mean(dim=1, keepdim=True)
        center = variance.detach().mean()
        return torch.exp(-distance / variance.clamp(center * 1e-3, center * 1e3))


class NMI(Similarity):
    """Negative global mutual information (MONAI's ``GlobalMutualInformationLoss``), for images of different contrast.

    Args:
        num_bins: bins of the joint histogram.
        max_voxels: a regular subset of at most about this many voxels is used: the Parzen windows take num_bins numbers
            a voxel.
    """

    def __init__(self, num_bins: int = 32, max_voxels: int = 200_000) -> None:
        super().__init__()
        self.information = GlobalMutualInformationLoss(kernel_type="gaussian", num_bins=num_bins)
        self.max_voxels = max_voxels

    def to_target(self, target: Tensor, mask: Tensor | None = None) -> Callable[[Tensor], Tensor]:
        """Choose the voxels once. See the base class."""
        chosen = [self._voxels(target[b], None if mask is None else mask[b]) for b in range(target.shape[0])]

        def loss(warped: Tensor) -> Tensor:
            # clamped: the Parzen windows of MONAI cover [0, 1], and the extremes of a linear warp lie inside anyway
            terms = [
                self.information(
                    warped[b].flatten()[voxels].clamp(0, 1)[None, None],
                    target[b].flatten()[voxels].clamp(0, 1)[None, None],
                )
                for b, voxels in enumerate(chosen)
            ]
            return torch.stack(terms).mean()

        return loss

    def _voxels(self, target: Tensor, mask: Tensor | None) -> Tensor:
        flat = torch.ones_like(target).flatten() if mask is None else mask.flatten()
        voxels = torch.nonzero(flat != 0).squeeze(1)
        step = max(1, -(-voxels.numel() // self.max_voxels))
        # an odd step that shares no factor with an even grid visits all slices
        return voxels[:: step + (1 - step % 2)] if step > 1 else voxels


def create_similarity(name: str, sigma: float = 5.0, stride: int = 1, flat_correlation: float = 0.0) -> Similarity:
    """Return a similarity by its name: lncc, lncc2, mind or nmi.

    Args:
        name: one of :data:`SIMILARITIES`.
        sigma: window of lncc and lncc2, in voxels.
        stride: of lncc and lncc2, see :class:`LNCC`.
        flat_correlation: of lncc, likewise. (The square of lncc2 would turn its sign where contrasts are inverted.)
    """
    if name == "lncc":
        return LNCC(sigma, stride=stride, flat_correlation=flat_correlation)
    if name == "lncc2":
        return LNCC(sigma, squared=True, stride=stride)
    if name == "mind":
        return MINDSSC()
    if name == "nmi":
        return NMI()
    raise InputError(f"similarity: expected one of {', '.join(SIMILARITIES)}, got '{name}'")
