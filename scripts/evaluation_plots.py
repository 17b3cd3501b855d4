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
"""Box plots of evaluations: one panel for each measure of accuracy, before and after for each method."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from .atomic import replacing
from .evaluation_tables import ACCURACY, Run


def draw_box_plots(runs: Sequence[Run], path: Path) -> None:
    """Draw the distribution over pairs (over landmarks for TRE, over labels where there is one pair only) as a PNG.

    Args:
        runs: methods on one data set or on several.
        path: the file.
    """
    names = [name for name in ACCURACY if any(row for run in runs for row in _values(run, name, "after"))]
    figure = Figure(figsize=(4 + 1.2 * len(runs) * max(1, len(names)), 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    if not names:
        figure.text(0.5, 0.5, "no labels and no landmarks: nothing to draw", ha="center")
    for number, name in enumerate(names):
        title, scale = ACCURACY[name]
        axes = figure.add_subplot(1, len(names), number + 1)
        boxes, ticks = [], []
        for place, run in enumerate(runs):
            label = run.method if len({r.dataset for r in runs}) == 1 else f"{run.method}\n{run.dataset}"
            if place == 0 or run.dataset != runs[place - 1].dataset:
                boxes.append([scale * value for value in _values(run, name, "before")])
                ticks.append("start")
            boxes.append([scale * value for value in _values(run, name, "after")])
            ticks.append(label.replace(" (", "\n("))
        axes.boxplot(boxes, tick_labels=ticks, showmeans=True)
        axes.set_ylabel(title)
        axes.tick_params(axis="x", labelrotation=60)
        axes.grid(axis="y", alpha=0.3)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=120)


def _values(run: Run, name: str, when: str) -> list[float]:
    """Return the figures whose distribution is drawn."""
    rows = run.landmarks if name == "tre_mm" else run.pairs
    if name != "tre_mm" and len(rows) == 1:
        rows = run.labels
    return [float(row[f"{name}_{when}"]) for row in rows if row.get(f"{name}_{when}") is not None]
