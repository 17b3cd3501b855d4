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
"""overview.png: one look tells whether a registration worked.

Three rows of planes through the middle of the fixed image (axial, coronal, sagittal; radiological display, true
proportions) and six columns: before, after, difference before and after, deformation grid, change of volume.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from nibabel.orientations import apply_orientation, io_orientation
from torch import Tensor

from scripts.data.case import SIDES, Case, Side
from scripts.geometry.grid_transform import displacement_field
from scripts.geometry.warping import shift_affine, warp_image
from scripts.metrics.registration_metrics import jacobian_determinant
from scripts.utils.atomic import replacing
from scripts.utils.tensors import plain

# per plane: axis it cuts, axes shown left-right and up-down (0 R, 1 A, 2 S), letters left, right, top, bottom
PLANES = {
    "axial": (2, 0, 1, "RLAP"),
    "coronal": (1, 0, 2, "RLSI"),
    "sagittal": (0, 1, 2, "APSI"),
}
COLUMNS = ("before", "after", "difference before", "difference after", "deformation grid", "volume change (Jacobian)")
JACOBIAN_RANGE = (0.5, 2.0)
FOLD_COLOR = "#39ff14"
PANEL_INCHES = 2.9
DPI = 110
GRID_LINES = 22  # along the longer side of a plane


@dataclass(frozen=True)
class Panels:
    """What one plane shows; arrays (rows, columns), first row at the bottom; coordinates in mm."""

    fixed: np.ndarray
    before: np.ndarray
    after: np.ndarray
    across_mm: np.ndarray
    up_mm: np.ndarray
    determinant: np.ndarray
    size_mm: tuple[float, float]


def draw_overview(data: Case, path: str | os.PathLike[str]) -> None:
    """Draw the overview of a registered case.

    Args:
        data: the case; uses ``fixed``, ``moving``, ``transforms``, and if there ``case``, the terms of ``pred``,
            ``metrics`` and ``quality``.
        path: the PNG file.

    Raises:
        InputError: the file can't be written.
    """
    windows = {side: _window(plain(data[side])) for side in SIDES}
    panels = {name: _panels(data, name, windows) for name in PLANES}
    ratios = [float(np.clip(shown.size_mm[1] / shown.size_mm[0], 0.4, 1.8)) for shown in panels.values()]
    head, foot = 0.62, 0.95  # inches
    height = PANEL_INCHES * sum(ratios) + head + foot
    figure = Figure(figsize=(PANEL_INCHES * len(COLUMNS), height), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(
        len(panels),
        len(COLUMNS),
        height_ratios=ratios,
        left=0.02,
        right=0.995,
        top=1 - head / height,
        bottom=foot / height,
        wspace=0.03,
        hspace=0.03,
    )
    mappables: dict[int, Any] = {}
    for row, (name, shown) in enumerate(panels.items()):
        for column, title in enumerate(COLUMNS):
            axes = figure.add_subplot(grid[row, column])
            mappables[column] = _draw_panel(axes, column, shown)
            _decorate(axes, PLANES[name][3], shown.size_mm)
            if row == 0:
                axes.set_title(title, fontsize=13)
            if column == 0:
                axes.set_ylabel(name, fontsize=13)
    _legends(figure, mappables, foot / height)
    figure.suptitle(_title(data), fontsize=14, x=0.02, ha="left", y=1 - 0.08 / height, va="top")
    figure.text(0.02, 0.10 / height, _footer(data), fontsize=12, family="monospace", va="bottom")
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png")


def _window(values: Tensor) -> tuple[float, float]:
    """Return the intensities shown as black and white: percentiles 1 and 99.5 of a sample of the voxels."""
    step = max(1, round((values.numel() / 2e6) ** (1 / 3)))
    low, high = np.percentile(values[0, ::step, ::step, ::step].numpy(), (1.0, 99.5))
    return float(low), float(high if high > low else low + 1)


def _panels(data: Case, name: str, windows: Mapping[Side, tuple[float, float]]) -> Panels:
    """Compute what one plane shows, on a slab of three voxels of the fixed image's own grid."""
    fixed = data["fixed"]
    affine = plain(fixed.affine).double()
    orientation = io_orientation(affine.numpy())  # native axis -> world axis and sign
    cut, across, up, _ = PLANES[name]
    axis_of = {int(world): native for native, world in enumerate(orientation[:, 0])}
    native_cut = axis_of[cut]
    size = fixed.shape[1 + native_cut]
    middle = size // 2
    first, last = max(middle - 1, 0), min(middle + 2, size)
    slab = [slice(None)] * 3
    slab[native_cut] = slice(first, last)
    one = [slice(None)] * 3
    one[native_cut] = slice(middle - first, middle - first + 1)
    shift = [0, 0, 0]
    shift[native_cut] = first
    slab_affine = shift_affine(affine, shift)
    shape = [last - first if axis == native_cut else fixed.shape[1 + axis] for axis in range(3)]

    def plane(values: np.ndarray) -> np.ndarray:
        canonical = apply_orientation(values[tuple(one)], orientation)
        # rows up, columns from the patient's right to left (or anterior to posterior): radiological display
        return np.squeeze(canonical, axis=cut).T[:, ::-1]

    forward = data["transforms"].forward
    displacement = data["transforms"].displacement_mm[(slice(None), *slab)]
    images = {
        key: warp_image(data["moving"], transform, shape, slab_affine, default=float("nan"))
        for key, transform in (("before", forward.without_displacement()), ("after", displacement))
    }
    # the deformation alone, in mm along the axes of the fixed grid
    deformation = displacement_field(forward.on_fixed_grid(), shape, slab_affine)
    spacing = torch.linalg.vector_norm(affine[:3, :3], dim=0)
    turn = torch.linalg.inv(affine[:3, :3] / spacing).float()
    along = torch.einsum("ab,bijk->aijk", turn, deformation).numpy()
    coordinates = {}
    for world in (across, up):
        native = axis_of[world]
        index = np.arange(shape[native]).reshape([-1 if axis == native else 1 for axis in range(3)])
        coordinates[world] = plane(index * float(spacing[native]) + along[native])
    fixed_plane = plane(plain(fixed)[0][tuple(slab)].numpy())
    return Panels(
        fixed=_scaled(fixed_plane, windows["fixed"]),
        before=_scaled(plane(images["before"]), windows["moving"]),
        after=_scaled(plane(images["after"]), windows["moving"]),
        across_mm=coordinates[across],
        up_mm=coordinates[up],
        determinant=plane(jacobian_determinant(displacement, slab_affine).numpy()),
        size_mm=(
            fixed_plane.shape[1] * float(spacing[axis_of[across]]),
            fixed_plane.shape[0] * float(spacing[axis_of[up]]),
        ),
    )


def _scaled(values: np.ndarray, window: tuple[float, float]) -> np.ndarray:
    """Scale a window of intensities to [0, 1]; NaN (outside the moving image) becomes 0."""
    low, high = window
    return np.nan_to_num(np.clip((values - low) / (high - low), 0, 1), nan=0.0)


def _draw_panel(axes: Axes, column: int, shown: Panels) -> Any:
    width, height = shown.size_mm
    box: dict[str, Any] = {"origin": "lower", "extent": (0, width, 0, height), "aspect": "equal"}
    if column < 2:
        moving = shown.before if column == 0 else shown.after
        return axes.imshow(np.stack([moving, shown.fixed, shown.fixed], axis=-1), interpolation="bilinear", **box)
    if column < 4:
        moving = shown.before if column == 2 else shown.after
        return axes.imshow(moving - shown.fixed, cmap="RdBu_r", vmin=-1, vmax=1, interpolation="nearest", **box)
    if column == 4:
        picture = axes.imshow(shown.fixed, cmap="gray", vmin=0, vmax=1, interpolation="bilinear", **box)
        step = max(width, height) / GRID_LINES
        for lines in (shown.across_mm, shown.up_mm):
            levels = np.arange(np.floor(lines.min() / step), np.ceil(lines.max() / step) + 1) * step
            axes.contour(
                lines, levels=levels, colors="#ffd000", linewidths=0.8, linestyles="solid", extent=(0, width, 0, height)
            )
        return picture
    colors = colormaps["RdBu_r"].with_extremes(bad=FOLD_COLOR)
    return axes.imshow(
        np.ma.masked_less_equal(shown.determinant, 0.0),
        cmap=colors,
        norm=LogNorm(*JACOBIAN_RANGE),
        interpolation="nearest",
        **box,
    )


def _decorate(axes: Axes, letters: str, size_mm: tuple[float, float]) -> None:
    """Mark the patient's directions and leave the axes out."""
    axes.set(xticks=[], yticks=[], xlim=(0, size_mm[0]), ylim=(0, size_mm[1]))
    left, right = (0.015, 0.5, "left", "center"), (0.985, 0.5, "right", "center")
    top, bottom = (0.5, 0.985, "center", "top"), (0.5, 0.015, "center", "bottom")
    for letter, (x, y, horizontal, vertical) in zip(letters, (left, right, top, bottom), strict=True):
        box = {"facecolor": "black", "alpha": 0.45, "pad": 1.0, "edgecolor": "none"}
        axes.text(
            x, y, letter, transform=axes.transAxes, color="white", fontsize=8, ha=horizontal, va=vertical, bbox=box
        )


def _legends(figure: Figure, mappables: Mapping[int, Any], bottom: float) -> None:
    """Explain the colors under the columns."""
    inch = 1 / figure.get_figheight()
    width = 0.975 / len(COLUMNS)

    def under(column: int, columns: float = 1.0) -> float:
        return 0.02 + width * (column + columns / 2)

    y = bottom - 0.26 * inch
    figure.text(under(0, 2), y, "red: moving, cyan: fixed, gray to white: both agree", ha="center", fontsize=10.5)
    figure.text(under(4), y, "yellow: a straight grid, carried along", ha="center", fontsize=10.5)
    for column, columns, ticks, label in (
        (2, 2.0, [-1, 0, 1], ["fixed brighter", "equal", "moving brighter"]),
        (5, 1.0, [0.5, 0.7, 1, 1.4, 2], ["0.5", "0.7", "1", "1.4", "2"]),
    ):
        length = width * columns * 0.7
        place = (under(column, columns) - length / 2, bottom - 0.17 * inch, length, 0.09 * inch)
        bar = figure.colorbar(mappables[column], cax=figure.add_axes(place), orientation="horizontal")
        bar.set_ticks(ticks, labels=label)
        bar.ax.tick_params(labelsize=9, pad=1)
        bar.ax.minorticks_off()
    figure.text(under(5), bottom - 0.52 * inch, "of moving per fixed; green: folded", ha="center", fontsize=9.5)


def _title(data: Case) -> str:
    title = str(data.get("case", "registration"))
    return title if len(title) <= 120 else title[:117] + "..."


def _footer(data: Case) -> str:
    """Return the main figures in one line."""
    terms, found = data.get("pred", {}).get("terms", {}), data.get("metrics", {})
    parts = []
    if "similarity_before" in terms and "similarity_after" in terms:
        before, after = float(terms["similarity_before"]), float(terms["similarity_after"])
        parts.append(f"similarity loss {before:.3f} -> {after:.3f}")
    for name, unit, digits in (("tre_mm", " mm", 2), ("dice", "", 3)):
        before, after = (found.get(name, {}).get(when, {}).get("mean") for when in ("before", "after"))
        if before is not None and after is not None:
            word = "TRE" if name == "tre_mm" else "Dice"
            parts.append(f"mean {word} {before:.{digits}f} -> {after:.{digits}f}{unit}")
    if "folding_percent" in found:
        parts.append(f"folding {found['folding_percent']:.3f} %")
    if "inconsistency_mm" in found:
        parts.append(f"forward-backward {found['inconsistency_mm']:.2f} mm")
    if "quality" in data:
        parts.append(f"verdict: {data['quality']['verdict']}")
    return "   |   ".join(parts)
