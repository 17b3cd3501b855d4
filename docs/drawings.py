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
"""Draw docs/spaces.png, the picture of docs/conventions.md: ``python docs/drawings.py``.

A 2-D stand-in for the three spaces: a fixed grid, an oblique moving grid of other spacing, the world that both lie in,
and one point on its way from the fixed to the moving image.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import ConnectionPatch, Polygon

FIXED_COLOR, MOVING_COLOR, TEXT_COLOR = "#1f5fa8", "#b3471d", "#222222"
NETWORK = (6, 5)  # voxels of the network grid
TURN = np.radians(17)
CENTER, RADII = np.array([0.52, 0.47]), np.array([0.27, 0.23])  # of the anatomy, normalized


class Grid:
    """A 2-D image grid in the world, mm.

    Args:
        origin: world point of the corner of the field of view, mm.
        turn: radians.
        size: of the field of view, mm.
        shape: voxels along both axes.
    """

    def __init__(self, origin: tuple[float, float], turn: float, size: tuple[float, float], shape: tuple[int, int]):
        self.origin = np.array(origin)
        self.axes = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
        self.size, self.shape = np.array(size), shape

    def world(self, share: np.ndarray) -> np.ndarray:
        """Return world points of shares of the field of view (..., 2)."""
        return (np.asarray(share, dtype=float) * self.size) @ self.axes.T + self.origin

    def draw(self, axes: Axes, color: str) -> None:
        """Draw the voxels' edges and the outline."""
        for axis in (0, 1):
            for k in np.linspace(0, 1, self.shape[axis] + 1):
                ends = np.array([[k, 0], [k, 1]]) if axis == 0 else np.array([[0, k], [1, k]])
                axes.plot(*self.world(ends).T, color=color, lw=0.7, alpha=0.6)
        axes.add_patch(Polygon(self.world(np.array([[0, 0], [1, 0], [1, 1], [0, 1]])), fill=False, ec=color, lw=2.2))


def bend(share: np.ndarray) -> np.ndarray:
    """Return where the anatomy at a share of the fixed field of view lies in the moving one."""
    x, y = np.moveaxis(np.asarray(share, dtype=float), -1, 0)
    return np.stack([x + 0.07 + 0.05 * np.sin(2 * np.pi * y), y + 0.05 + 0.06 * np.sin(2 * np.pi * x)], axis=-1)


def anatomy() -> np.ndarray:
    """Return an outline (N, 2) in shares of the fixed field of view."""
    angle = np.linspace(0, 2 * np.pi, 200)
    radius = 1 + 0.12 * np.cos(3 * angle)
    return CENTER + radius[:, None] * RADII * np.stack([np.cos(angle), np.sin(angle)], axis=-1)


def mark(axes: Axes, point: np.ndarray, color: str, text: str, offset: tuple[float, float]) -> None:
    """Draw a point with its name."""
    axes.plot(*point, "o", color=color, ms=9, mec="white", mew=1.2, zorder=5)
    axes.annotate(
        text,
        point,
        xytext=offset,
        textcoords="offset points",
        color=color,
        fontsize=12,
        fontweight="bold",
        zorder=6,
        bbox={"boxstyle": "round,pad=0.15", "fc": "white", "ec": "none", "alpha": 0.85},
    )


def draw_world(axes: Axes, fixed: Grid, moving: Grid, point: np.ndarray) -> None:
    """Draw both images in the world and the point's way."""
    for grid, color, outline in ((fixed, FIXED_COLOR, anatomy()), (moving, MOVING_COLOR, bend(anatomy()))):
        axes.add_patch(Polygon(grid.world(outline), fc=color, ec=color, alpha=0.28, lw=1.5))
        grid.draw(axes, color)
    start, end = fixed.world(point), moving.world(bend(point))
    arrow = {"arrowstyle": "-|>", "lw": 2.6, "color": TEXT_COLOR, "connectionstyle": "arc3,rad=-0.22"}
    axes.annotate("", end, start, arrowprops={**arrow, "shrinkA": 8, "shrinkB": 8}, zorder=4)
    back = {**arrow, "lw": 1.8, "linestyle": (0, (4, 3)), "connectionstyle": "arc3,rad=-0.3"}
    axes.annotate("", start, end, arrowprops={**back, "shrinkA": 10, "shrinkB": 10}, zorder=4)
    mark(axes, start, FIXED_COLOR, "x", (-17, -4))
    mark(axes, end, MOVING_COLOR, "y", (10, 2))
    axes.text(60, 82, "forward(x) = y", ha="center", fontsize=13, fontweight="bold", color=TEXT_COLOR)
    axes.text(60, 76.5, "forward_transform.h5, displacement.nii.gz", ha="center", fontsize=10, color=TEXT_COLOR)
    axes.text(106, 4, "the moving image's value at y is pulled back to x:", ha="center", fontsize=10, color=TEXT_COLOR)
    axes.text(106, -2, "warped_moving(x) = moving(forward(x))", ha="center", fontsize=12, fontweight="bold")
    axes.text(*fixed.world(np.array([0.5, -0.09])), "fixed image", ha="center", color=FIXED_COLOR, fontsize=13)
    below = moving.world(np.array([0.5, -0.08]))
    axes.text(
        *below,
        "moving image\noblique, other spacing",
        ha="center",
        va="center",
        color=MOVING_COLOR,
        fontsize=12,
        rotation=17,
    )
    for direction, name, place in (((1, 0), "x, to the patient's left", (3, -7)), ((0, 1), "y, to posterior", (-7, 2))):
        tip = np.array([-10.0, -2.0]) + 20 * np.array(direction)
        axes.annotate("", tip, (-10, -2), arrowprops={"arrowstyle": "-|>", "lw": 1.8, "color": TEXT_COLOR})
        vertical = direction == (0, 1)
        axes.text(
            -10 + place[0] - (4 if vertical else 0),
            -2 + place[1],
            name,
            rotation=90 if vertical else 0,
            fontsize=10,
            color=TEXT_COLOR,
        )
    axes.set_title("world: mm, LPS in files (x and y change sign for RAS)", fontsize=13, loc="left")
    axes.set_xlim(-19, 162)
    axes.set_ylim(-12, 94)
    axes.set_aspect("equal")
    axes.axis("off")


def draw_network(axes: Axes, grid: Grid, point: np.ndarray, color: str, outline: np.ndarray, title: str) -> None:
    """Draw the network grid over a field of view: voxel numbers outside, normalized coordinates at its ends."""
    count = np.array(NETWORK)
    for axis in (0, 1):
        for k in np.arange(count[axis] + 1) - 0.5:
            ends = [[k, k], [-0.5, count[1] - 0.5]] if axis == 0 else [[-0.5, count[0] - 0.5], [k, k]]
            axes.plot(*ends, color=color, lw=0.8, alpha=0.7)
    axes.add_patch(Polygon(outline * count - 0.5, fc=color, ec=color, alpha=0.28, lw=1.5))
    axes.plot(*np.meshgrid(*(np.arange(n) for n in count)), ".", color=color, ms=3, alpha=0.6)
    for k in range(count[0]):
        axes.text(k, -0.95, str(k), ha="center", va="center", fontsize=10, color=TEXT_COLOR)
    for k in range(count[1]):
        axes.text(-0.9, k, str(k), ha="center", va="center", fontsize=10, color=TEXT_COLOR)
    for corner, text, at in (
        ((0, 0), "(0, 0)", (-12, -17)),
        (tuple(count - 1), "(1, 1)", (-14, 9)),
    ):
        axes.plot(*corner, "s", color="#1b7a4b", ms=6)
        axes.annotate(
            text, corner, xytext=at, textcoords="offset points", fontsize=10, color="#1b7a4b", fontweight="bold"
        )
    axes.set_title(title, fontsize=12, color=color)
    axes.set_aspect("equal")
    axes.set_xlim(-1.3, count[0] - 0.2)
    axes.set_ylim(-1.4, count[1] - 0.2)
    axes.axis("off")


def main() -> None:
    """Write the picture beside this file."""
    fixed = Grid((0, 0), 0.0, (56, 50), (8, 5))
    moving = Grid((106, 22), TURN, (50, 56), (5, 8))
    point = np.array([0.62, 0.66])
    figure = plt.figure(figsize=(11, 10.4), facecolor="white")
    world = figure.add_axes((0.01, 0.4, 0.98, 0.57))
    draw_world(world, fixed, moving, point)
    panels = []
    for left, grid, at, color, outline, title in (
        (0.04, fixed, point, FIXED_COLOR, anatomy(), "network grid over the fixed field of view"),
        (0.54, moving, bend(point), MOVING_COLOR, bend(anatomy()), "the same number of voxels over the moving one"),
    ):
        panel = figure.add_axes((left, 0.055, 0.42, 0.31))
        draw_network(panel, grid, at, color, outline, title)
        panels.append((panel, at * np.array(NETWORK) - 0.5))
    (first, start), (second, end) = panels
    mark(first, start, FIXED_COLOR, "v", (8, 6))
    mark(second, end, MOVING_COLOR, "v + ddf(v)", (9, 6))
    arrow: dict[str, Any] = {"arrowstyle": "-|>", "lw": 2, "color": TEXT_COLOR, "connectionstyle": "arc3,rad=-0.15"}
    figure.add_artist(
        ConnectionPatch(start, end, "data", "data", axesA=first, axesB=second, shrinkA=8, shrinkB=8, **arrow)
    )
    figure.text(
        0.5,
        0.012,
        "voxel: numbers from 0 at the first center       normalized: green, 0 and 1 at the first and last center",
        ha="center",
        fontsize=11,
        color=TEXT_COLOR,
    )
    figure.savefig(Path(__file__).with_name("spaces.png"), dpi=110, metadata={"Software": None})


if __name__ == "__main__":
    main()
