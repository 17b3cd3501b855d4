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
"""Is a registration to be trusted? Figures that need no labels, a verdict from them, and a map of confidence.

The limits were chosen on the real pairs of docs/evaluation.md and on broken copies of them (other patients, flipped
images, half fields of view): docs/quality.md has the table and the ROC curve.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from monai.data import MetaTensor
from torch import Tensor

from scripts.data.case import QualityMaps
from scripts.geometry.coordinates import extent, identity_grid, jacobian_determinant, resample_grid, sample
from scripts.geometry.grid_transform import GridTransform
from scripts.geometry.image_pair import regrid_affine, shrink_image
from scripts.losses.similarity import LNCC
from scripts.utils.tensors import plain

MAP_SIZE = 64  # voxels of the grid of maps and figures, along each axis
COARSE_SIZE = 32
VERDICTS = ("ok", "check", "failed")
FAILED = 2.5  # times a limit
MOST_LOST = 0.005  # of the similarity: images that were aligned already may lose that much


class Limit(NamedTuple):
    """What a figure may be before someone should look."""

    figure: str
    limit: float
    text: str
    """For people; {} is the figure."""


LIMITS = (
    Limit("coarse_dissimilarity", 0.03, "the images differ even coarsely (1 - correlation {:.3f}): other anatomy?"),
    Limit("bending_percent", 5.0, "the anatomy is bent far (95 % within {:.1f} % of the image's diagonal)"),
    Limit("stretch", 0.35, "one direction is stretched by {:.0%} against another: parts missing in one image?"),
    Limit("volume_change", 0.5, "the volume changes by a factor of exp({:.2f})"),
    Limit("outside_percent", 20.0, "{:.0f} % of the fixed image map outside the moving one"),
    Limit("folding_percent", 0.5, "the transform folds at {:.2f} % of the cells"),
    Limit("inconsistency_percent", 0.5, "forward and inverse transform disagree by {:.2f} % of the diagonal (95 %)"),
)
# of the network's transforms alone: they are not fitted to the pair, so that good ones, too, leave more of these
WITHOUT_OPTIMIZATION = {
    "coarse_dissimilarity": 0.14,
    "bending_percent": 6.0,
    "stretch": 0.45,
    "outside_percent": 25.0,
    "inconsistency_percent": 4.5,
}


def limits(optimized: bool = True) -> tuple[Limit, ...]:
    """Return the limits of a result, with or without optimization for the pair."""
    if optimized:
        return LIMITS
    return tuple(one._replace(limit=WITHOUT_OPTIMIZATION.get(one.figure, one.limit)) for one in LIMITS)


def verdict(figures: Mapping[str, Any], optimized: bool = True) -> dict[str, Any]:
    """Return ``verdict`` (ok, check, failed), ``score`` (the largest figure over its limit) and ``reasons``.

    Args:
        figures: by the names of :data:`LIMITS`; None is not judged. A ``similarity_gain`` below -MOST_LOST fails.
        optimized: the transforms were optimized for the pair; see :data:`WITHOUT_OPTIMIZATION`.
    """
    given = limits(optimized)
    ratios = {one.figure: figures[one.figure] / one.limit for one in given if _finite(figures.get(one.figure))}
    reasons = [one.text.format(figures[one.figure]) for one in given if ratios.get(one.figure, 0) > 1]
    score = max(ratios.values(), default=0.0)
    gain = figures.get("similarity_gain")
    if gain is None or not math.isfinite(gain):
        score, reasons = max(score, 1.01), [*reasons, "the similarity could not be computed"]
    elif gain < -MOST_LOST:
        score, reasons = max(score, FAILED + 0.01), [*reasons, f"the images became less similar (by {-gain:.3f})"]
    name = VERDICTS[0 if score <= 1 else 1 if score <= FAILED else 2]
    return {"verdict": name, "score": score, "reasons": reasons}


def maps_and_figures(
    forward: GridTransform,
    inverse: GridTransform | None,
    fixed: Tensor,
    moving: Tensor,
    native_moving: MetaTensor,
    folding_percent: float,
    same_contrast: bool = True,
) -> tuple[QualityMaps, dict[str, Any]]:
    """Return the maps of a result, and its figures by the names of :data:`LIMITS`; the similarity is not among them.

    Args:
        forward: fixed point -> moving point, over what the network saw.
        inverse: the other way, or None.
        fixed: intensities in [0, 1] over the fixed field of view, (1, 1, D, H, W).
        moving: likewise over the moving one.
        native_moving: the moving image on its own grid.
        folding_percent: of the forward transform.
        same_contrast: both images show tissue alike.
    """
    shape = (MAP_SIZE,) * 3
    fixed, moving = shrink_image(fixed, shape), shrink_image(moving, shape)
    points = identity_grid(shape) + _normalized(forward, shape)
    warped = sample(moving, points, "zeros")
    maps = quality_maps(forward, inverse, points, warped, fixed, native_moving, same_contrast)
    figures: dict[str, Any] = {
        "coarse_dissimilarity": coarse_dissimilarity(warped, fixed) if same_contrast else None,
        **shape_figures(forward, native_moving),
        "folding_percent": folding_percent,
        **_inconsistency(maps.inconsistency_mm, forward),
    }
    return maps, figures


def coarse_dissimilarity(warped: Tensor, fixed: Tensor) -> float:
    """Return 1 - local correlation on a grid of COARSE_SIZE voxels: what is left when details do not count."""
    size = (COARSE_SIZE,) * 3
    return float(LNCC(5.0)(shrink_image(warped, size), shrink_image(fixed, size)))


def shape_figures(forward: GridTransform, moving: MetaTensor) -> dict[str, Any]:
    """Return what the transform does to space, in the world.

    ``stretch`` and ``volume_change`` (logarithm) are of the affine transform that fits it best, ``displacement_mm`` and
    ``bending_percent`` (of the diagonal of the fixed field of view, 95th percentile) of what is left of it, and
    ``outside_percent`` is the share of the fixed field of view that maps outside the moving image.
    """
    points = forward.grid_points(step=max(1, max(forward.shape) // MAP_SIZE))
    carried = forward(points)
    homogeneous = torch.cat([points, torch.ones(len(points), 1, dtype=points.dtype)], dim=1)
    fit = torch.linalg.lstsq(homogeneous, carried).solution
    rest = torch.linalg.vector_norm(carried - homogeneous @ fit, dim=1)
    median, high, most = (float(torch.quantile(rest[:: 1 + len(rest) // 10**6], q)) for q in (0.5, 0.95, 1.0))
    widths = torch.linalg.svdvals(fit[:3])
    voxels = carried - moving.affine[:3, 3].double()
    voxels = voxels @ torch.linalg.inv(plain(moving.affine).double()[:3, :3]).T
    inside = ((voxels >= -0.5) & (voxels <= torch.tensor(moving.shape[1:]) - 0.5)).all(dim=1)
    return {
        "bending_percent": 100 * high / _diagonal(forward),
        "stretch": float(widths[0] / widths[2].clamp_min(1e-6)) - 1,
        "volume_change": abs(math.log(max(abs(float(torch.linalg.det(fit[:3]))), 1e-6))),
        "outside_percent": 100 * float((~inside).double().mean()),
        "displacement_mm": {"median": median, "percentile_95": high, "max": most},
    }


def quality_maps(
    forward: GridTransform,
    inverse: GridTransform | None,
    points: Tensor,
    warped: Tensor,
    fixed: Tensor,
    moving: MetaTensor,
    same_contrast: bool = True,
) -> QualityMaps:
    """Return the maps of a registration.

    Confidence is the product of the local correlation of the images (1 where it can't be judged: constant in both, or
    of different contrast), exp(-(inconsistency / 1 % of the diagonal)^2), and 0 where the transform folds or leaves
    the moving image.

    Args:
        forward: the transform.
        inverse: its inverse, or None.
        points: the forward transform on the grid of the maps, normalized (1, 3, D, H, W).
        warped: moving image on that grid (1, 1, D, H, W).
        fixed: likewise.
        moving: the moving image on its own grid.
        same_contrast: both images show tissue alike.
    """
    shape = tuple(fixed.shape[2:])
    grid = identity_grid(shape)
    affine = regrid_affine(forward.fixed_affine, forward.shape, shape)
    gap = torch.full_like(fixed, float("nan"))
    if inverse is not None:
        back = points + sample(_normalized(inverse, inverse.shape), points, "border")
        axes = affine[:3, :3].float() * extent(grid).view(1, 3)
        gap = torch.linalg.vector_norm(torch.einsum("ab,nbdhw->nadhw", axes, back - grid), dim=1, keepdim=True)
        left = ((points < -0.5 / MAP_SIZE) | (points > 1 + 0.5 / MAP_SIZE)).any(dim=1, keepdim=True)
        gap = gap.masked_fill(left, float("nan"))
    confidence = torch.ones_like(fixed)
    if same_contrast:
        correlation, judged = LNCC(3.0).local_correlation(warped, fixed)
        confidence = torch.where(judged, correlation.clamp(0, 1), confidence)
    confidence = confidence * torch.exp(-((gap / (0.01 * _diagonal(forward))) ** 2)).nan_to_num(1.0)
    folded = torch.nn.functional.pad((jacobian_determinant(points) <= 0).float(), (0, 1, 0, 1, 0, 1))
    return QualityMaps(gap, confidence * (1 - folded) * _inside(forward, points, moving), affine)


def _inside(forward: GridTransform, points: Tensor, moving: MetaTensor) -> Tensor:
    """Return 1 where the forward transform's points (1, 3, D, H, W), normalized, lie in the moving image."""
    to_voxel = torch.linalg.inv(plain(moving.affine).double()) @ forward.moving_affine
    voxels = points.double() * (torch.tensor(forward.shape, dtype=torch.float64).view(1, 3, 1, 1, 1) - 1)
    voxels = torch.einsum("ab,nbdhw->nadhw", to_voxel[:3, :3], voxels) + to_voxel[:3, 3].view(1, 3, 1, 1, 1)
    size = torch.tensor(moving.shape[1:], dtype=torch.float64).view(1, 3, 1, 1, 1)
    return ((voxels >= -0.5) & (voxels <= size - 0.5)).all(dim=1, keepdim=True).float()


def _normalized(transform: GridTransform, shape: tuple[int, ...]) -> Tensor:
    """Return the transform's displacements on a grid of another shape, (1, 3, D, H, W), normalized units."""
    ddf = transform.ddf[None].float()
    return resample_grid(ddf / extent(ddf), shape)


def _diagonal(transform: GridTransform) -> float:
    """Return the length of the diagonal of the fixed field of view, mm."""
    size = torch.tensor(transform.shape, dtype=torch.float64) - 1
    return float(torch.linalg.vector_norm(transform.fixed_affine[:3, :3] @ size))


def _inconsistency(gap: Tensor, forward: GridTransform) -> dict[str, Any]:
    values = gap[torch.isfinite(gap)]
    if not values.numel():
        return {"inconsistency_percent": None, "inconsistency_percentiles_mm": None}
    median, high, most = (float(torch.quantile(values, q)) for q in (0.5, 0.95, 1.0))
    return {
        "inconsistency_percent": 100 * high / _diagonal(forward),
        "inconsistency_percentiles_mm": {"median": median, "percentile_95": high, "max": most},
    }


def rounded(values: Any) -> Any:
    """Return numbers with six digits: the last ones of a least squares fit differ from run to run."""
    if isinstance(values, dict):
        return {key: rounded(value) for key, value in values.items()}
    return float(f"{values:.6g}") if isinstance(values, float) else values


def _finite(value: Any) -> bool:
    return value is not None and math.isfinite(value)
