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

from scripts.evaluation.tables import ACCURACY, Run
from scripts.utils.atomic import replacing


def draw_box_plots(runs: Sequence[Run], path: Path) -> None:
    """Draw the distribution over pairs (over landmarks for TRE, over labels where there is one pair only) as a PNG.

    Args:
        runs: methods on one data set or on several; a panel for each data set and measure, a box for each method.
        path: the file.
    """
    grouped: dict[str, list[Run]] = {}
    for run in runs:
        grouped.setdefault(run.dataset, []).append(run)
    panels = [
        (dataset, name, those)
        for dataset, those in grouped.items()
        for name in ACCURACY
        if any(_values(run, name, "after") for run in those)
    ]
    widest = max((len(those) for _, _, those in panels), default=1)
    figure = Figure(figsize=((1.2 + 0.55 * (widest + 1)) * max(2, len(panels)), 5), layout="constrained")
    FigureCanvasAgg(figure)
    if not panels:
        figure.text(0.5, 0.5, "no labels and no landmarks: nothing to draw", ha="center")
    for number, (dataset, name, those) in enumerate(panels, start=1):
        title, scale = ACCURACY[name]
        axes = figure.add_subplot(1, len(panels), number)
        boxes = [_values(those[0], name, "before"), *(_values(run, name, "after") for run in those)]
        axes.boxplot([[scale * value for value in values] for values in boxes], showmeans=True)
        ticks = ["start", *(run.method.replace(" (", "\n(").replace(": ", ":\n") for run in those)]
        axes.set_xticks(range(1, len(ticks) + 1), ticks, rotation=60, ha="right", rotation_mode="anchor", fontsize=8)
        axes.set_title(dataset)
        axes.set_ylabel(title)
        axes.grid(axis="y", alpha=0.3)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=120)


def _values(run: Run, name: str, when: str) -> list[float]:
    """Return the figures whose distribution is drawn."""
    rows = run.landmarks if name == "tre_mm" else run.pairs
    if name != "tre_mm" and len(rows) == 1:
        rows = run.labels
    return [float(row[f"{name}_{when}"]) for row in rows if row.get(f"{name}_{when}") is not None]
