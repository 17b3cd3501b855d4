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
"""The images of a pair's web page: slices in three planes, one JPEG a layer with the slices below each other."""

from __future__ import annotations

import base64
import io
from typing import Any, NamedTuple

import numpy as np
import torch
from monai.data import MetaTensor
from nibabel.orientations import io_orientation
from PIL import Image
from torch import Tensor

from scripts.data.case import Case
from scripts.geometry.grid_transform import GridTransform, displacement_field
from scripts.geometry.warping import on_grid, warp_image
from scripts.geometry.world_axes import SIGNS
from scripts.metrics.registration_metrics import jacobian_determinant
from scripts.utils.tensors import plain

LONGEST = 128  # voxels along the longest axis of the shown grid
SLICES = 32  # in each plane
QUALITY = 80  # of JPEG
GRID_LINES = 16  # along the longest axis
# name, axis of the slices, axes right and up of the picture, sides; right is left, as radiologists look at patients
PLANES = (
    ("Axial", 2, 0, 1, "L on the right, anterior up"),
    ("Coronal", 1, 0, 2, "L on the right, superior up"),
    ("Sagittal", 0, 1, 2, "anterior on the left, superior up"),
)


class ShownGrid(NamedTuple):
    """Cubic voxels along the fixed image's axes, ordered right to left, anterior to posterior, inferior to superior."""

    shape: tuple[int, int, int]
    affine_ras: Tensor


def planes_of(data: Case) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return the planes with their layers as data URLs, and the ranges of the colored ones.

    Args:
        data: a case with transforms; ``quality_maps`` adds the layer of the inconsistency.
    """
    grid = shown_grid(data["fixed"])
    layers, ranges = _volumes(data, grid)
    lines = _grid_lines(data["transforms"].forward, grid)
    spacing = float(torch.linalg.vector_norm(grid.affine_ras[:3, 0]))
    planes = []
    for name, axis, right, up, sides in PLANES:
        index = np.unique(np.linspace(0, grid.shape[axis] - 1, min(SLICES, grid.shape[axis])).round().astype(int))
        in_plane = np.maximum(lines[right], lines[up])
        pictures = {key: _strip(values, index, axis, right, up) for key, values in {**layers, "grid": in_plane}.items()}
        planes.append(
            {
                "name": name,
                "sides": sides,
                "width": grid.shape[right],
                "height": grid.shape[up],
                "count": len(index),
                "first": 0.0,
                "step": spacing * (grid.shape[axis] - 1) / max(1, len(index) - 1),
                "layers": pictures,
            }
        )
    return planes, ranges


def shown_grid(fixed: MetaTensor) -> ShownGrid:
    """Return the grid that the page shows, over the fixed image's field of view."""
    affine, shape = plain(fixed.affine).double().numpy(), np.array(fixed.shape[1:])
    orientation = io_orientation(affine)  # for each voxel axis: world axis and direction
    order = np.argsort(orientation[:, 0])
    signs = orientation[order, 1] * SIGNS  # to left, posterior, superior
    size_mm = np.linalg.norm(affine[:3, :3], axis=0)[order] * shape[order]
    spacing = size_mm.max() / LONGEST
    count = np.maximum(2, np.round(size_mm / spacing)).astype(int)
    unit = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    turned = np.eye(4)
    turned[:3, :3] = unit[:, order] * signs * spacing
    center = affine[:3, :3] @ ((shape - 1) / 2) + affine[:3, 3]
    turned[:3, 3] = center - turned[:3, :3] @ ((count - 1) / 2)
    return ShownGrid((int(count[0]), int(count[1]), int(count[2])), torch.from_numpy(turned))


def _volumes(data: Case, grid: ShownGrid) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Return the layers (I, J, K) in [0, 1] on the shown grid."""
    forward: GridTransform = data["transforms"].forward
    fixed = on_grid(plain(data["fixed"])[None], plain(data["fixed"].affine), grid.shape, grid.affine_ras)
    shown = {"fixed": _scaled(fixed, data["fixed"])}
    start, field = (
        displacement_field(transform, grid.shape, grid.affine_ras)
        for transform in (forward.without_displacement(), forward)
    )
    low = float(data["moving"].min())
    for name, displacement_mm in (("before", start), ("after", field)):
        warped = warp_image(data["moving"], displacement_mm, grid.shape, grid.affine_ras, default=low)
        shown[name] = _scaled(warped, data["moving"])
    at_start, determinant = (jacobian_determinant(one, grid.affine_ras).numpy() for one in (start, field))
    determinant = determinant / max(1e-6, abs(float(at_start.mean())))
    largest = max(1.25, float(np.quantile(np.abs(np.log2(np.clip(determinant, 0.05, 20))), 0.995)))
    log = np.log2(np.clip(determinant, 1e-3, None)) / largest
    shown["jacobian"] = np.where(determinant <= 0, 0.0, np.clip(0.5 + 0.5 * log, 0.01, 1))
    ranges = {"jacobian_range": [2.0**-largest, 2.0**largest], "inconsistency_mm": 0.0}
    if "quality_maps" in data and data["transforms"].inverse is not None:
        maps = data["quality_maps"]
        gap = on_grid(maps.inconsistency_mm.nan_to_num(0.0), maps.affine, grid.shape, grid.affine_ras)
        top = max(0.1, float(np.quantile(gap, 0.995)))
        shown["inconsistency"], ranges["inconsistency_mm"] = np.clip(gap / top, 0, 1), top
    return shown, ranges


def _scaled(values: np.ndarray, image: MetaTensor) -> np.ndarray:
    """Return intensities in [0, 1] by the 1st and 99.5th percentile of what is not the darkest value."""
    voxels = plain(image).numpy().ravel()[:: max(1, plain(image).numel() // 200_000)]
    bright = voxels[voxels > voxels.min()]
    low, high = np.percentile(bright, (1, 99.5)) if bright.size else (0.0, 1.0)
    return np.clip((values - low) / max(float(high - low), 1e-6), 0, 1)


def _grid_lines(forward: GridTransform, grid: ShownGrid) -> list[np.ndarray]:
    """Return for each axis the lines of a regular grid carried by the deformation alone, (I, J, K) in [0, 1]."""
    moved = displacement_field(forward.on_fixed_grid(), grid.shape, grid.affine_ras)
    to_voxel = torch.linalg.inv(grid.affine_ras)[:3, :3].float()
    steps = torch.einsum("ab,bijk->aijk", to_voxel, moved)
    period = max(grid.shape) / GRID_LINES
    lines = []
    for axis in range(3):
        place = torch.arange(grid.shape[axis]).view([-1 if n == axis else 1 for n in range(3)]) + steps[axis]
        distance = (place / period - (place / period).round()).abs() * period
        lines.append((1 - distance / 0.8).clamp(0, 1).numpy())
    return lines


def _strip(values: np.ndarray, index: np.ndarray, axis: int, right: int, up: int) -> str:
    """Return slices of (I, J, K), below each other, as the data URL of a gray JPEG."""
    slices = np.take(values, index, axis)
    pictures = slices.transpose(axis, up, right)  # rows go down
    if up == 2:
        pictures = pictures[:, ::-1]  # superior is up; anterior is already
    rows = np.ascontiguousarray(pictures).reshape(-1, pictures.shape[2])
    stream = io.BytesIO()
    Image.fromarray((np.clip(rows, 0, 1) * 255).round().astype(np.uint8)).save(stream, "JPEG", quality=QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode()
