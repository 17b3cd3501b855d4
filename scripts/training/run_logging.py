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
"""Seeing a training run: a progress bar, figures of each epoch, and panels of validation pairs for TensorBoard."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any, cast

import ignite.distributed as idist
import numpy as np
import torch
from ignite.engine import Engine, Events
from ignite.handlers import ProgressBar
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from scripts.geometry.composition import CompositeTransform
from scripts.geometry.coordinates import extent, identity_grid_like
from scripts.training.prepare_batch import terms_of
from scripts.utils.memory import peak_memory_mib
from scripts.utils.paths import absolute
from scripts.utils.tensors import plain

COLUMNS = ("moving", "fixed", "warped", "difference", "grid")
GRID_LINES = 20


class TermsProgressBar(ProgressBar):
    """ignite's progress bar (iterations, time left) with the terms of the objective; attach to the trainer."""

    def attach(self, engine: Engine, **kwargs: Any) -> None:  # type: ignore[override]
        """Attach with the terms of each step's output."""
        super().attach(engine, output_transform=terms_of, **kwargs)


def log_epoch(engine: Engine) -> None:
    """Log the means of a training epoch in one line."""
    figures = " ".join(f"{name}: {float(value):.4g}" for name, value in sorted(engine.state.metrics.items()))
    engine.logger.info("Epoch[%d] Metrics -- %s", engine.state.epoch, figures)


class EpochFigures:
    """Add to the trainer's metrics, which the loggers write: ``learning_rate, pairs_per_second, memory_mib``.

    Means that an epoch has no value of (a Dice loss without a pair that has labels in common) are removed.

    Args:
        optimizer: whose learning rate is meant (of its first group).
        batch_size: pairs of one batch of one process.
    """

    def __init__(self, optimizer: Any, batch_size: int) -> None:
        self.optimizer, self.batch_size = optimizer, int(batch_size)
        self._began, self._first = 0.0, 0

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer, before the loggers and what changes the learning rate."""
        # the means of an epoch choose no checkpoint: MONAI shall not announce the first ones as the best
        engine.state.best_metric_epoch = 0  # type: ignore[attr-defined]
        engine.add_event_handler(Events.EPOCH_STARTED, self._start)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def _start(self, engine: Engine) -> None:
        self._began, self._first = time.perf_counter(), engine.state.iteration

    def __call__(self, engine: Engine) -> None:
        """Add the figures of the epoch that ends."""
        pairs = (engine.state.iteration - self._first) * self.batch_size * idist.get_world_size()
        figures = engine.state.metrics
        for name in [name for name, value in figures.items() if math.isnan(float(value))]:
            del figures[name]
        figures["pairs_per_second"] = pairs / max(time.perf_counter() - self._began, 1e-9)
        figures["learning_rate"] = float(self.optimizer.param_groups[0]["lr"])
        memory = torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else peak_memory_mib()
        if memory:
            figures["memory_mib"] = float(memory)


class PairPanels:
    """Write a picture of the first validation pairs to TensorBoard; attach to the evaluator.

    Columns: moving, fixed, warped, difference (warped minus fixed), deformed grid; rows: the middle planes of the three
    axes.

    Args:
        writer: ``SummaryWriter``.
        count: pairs to show.
    """

    def __init__(self, writer: Any, count: int = 2) -> None:
        self.writer, self.count = writer, int(count)

    def attach(self, engine: Engine) -> None:
        """Attach to an evaluator."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Draw the pair at hand."""
        if engine.state.iteration > self.count:
            return
        item = cast(list, engine.state.output)[0]
        picture = draw_panels(item)
        self.writer.add_image(f"pair_{engine.state.iteration}", picture, engine.state.epoch, dataformats="HWC")
        self.writer.flush()


def draw_panels(item: Mapping[str, Any]) -> np.ndarray:
    """Return a picture (height, width, 3) uint8 of one decollated validation pair with ``warped_moving``."""
    image = plain(item["image"]).float()
    warped = plain(item["warped_moving"])[0].float()
    fields = [plain(field)[None].float() for field in item["pred"]["forward_fields"]]
    points = CompositeTransform(fields).on_grid(image[None])
    displacement = (points - identity_grid_like(image[None])) * extent(points)
    figure = Figure(figsize=(12.5, 7.8), dpi=80, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots(3, len(COLUMNS))
    for axis in range(3):
        middle = image.shape[axis + 1] // 2
        moving, fixed, result = (v.select(axis, middle).numpy() for v in (image[0], image[1], warped))
        for place, (name, plane) in enumerate(
            zip(COLUMNS, (moving, fixed, result, result - fixed, fixed * 0.5), strict=True)
        ):
            panel = axes[axis, place]
            low = -0.5 if name == "difference" else 0.0
            panel.imshow(plane, cmap="gray", vmin=low, vmax=-low if low else 1.0, origin="lower")
            panel.set_axis_off()
            if axis == 0:
                panel.set_title(name)
        _draw_grid(axes[axis, -1], displacement[0], axis, middle)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _draw_grid(panel: Any, displacement: Tensor, axis: int, middle: int) -> None:
    """Draw lines of the fixed grid where the transform takes them, in one plane."""
    rows, columns = (other for other in range(3) if other != axis)
    plane = displacement.select(axis + 1, middle)
    height, width = plane.shape[1:]
    y = torch.arange(height)[:, None] + plane[rows]
    x = torch.arange(width)[None, :] + plane[columns]
    for n in range(0, height, max(1, height // GRID_LINES)):
        panel.plot(x[n], y[n], color="tab:orange", linewidth=0.6)
    for n in range(0, width, max(1, width // GRID_LINES)):
        panel.plot(x[:, n], y[:, n], color="tab:orange", linewidth=0.6)
    panel.set_xlim(-0.5, width - 0.5)
    panel.set_ylim(-0.5, height - 0.5)


def summary_writer(log_dir: str) -> Any:
    """Return a TensorBoard writer on the first process, None on the others."""
    if idist.get_rank() > 0:
        return None
    from torch.utils.tensorboard import SummaryWriter  # slow to import, and only wanted here

    return SummaryWriter(log_dir=str(absolute(log_dir)))
