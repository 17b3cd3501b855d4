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
"""``metrics.csv``: the figures of a training run, one row an epoch; row 0 is the weights that it started from."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import ignite.distributed as idist
from ignite.engine import Engine, Events

from scripts.utils.csv_tables import write_csv
from scripts.utils.paths import absolute

NAME = "metrics.csv"
Row = dict[str, float]


class MetricsTable:
    """Write the means of each epoch and of its validation; attach to the trainer, after the validation.

    The file is written whole at each epoch's end. A resumed run keeps the rows up to the epoch that it resumes at. An
    epoch without a figure, or without a validation, has empty cells.

    Args:
        ckpt_dir: folder of the run.
        evaluator: of the validation, or None.
    """

    def __init__(self, ckpt_dir: str, evaluator: Engine | None = None) -> None:
        self.path = absolute(ckpt_dir) / NAME
        self.rows: list[Row] = []
        self._validated: Row = {}
        if evaluator is not None:
            evaluator.add_event_handler(Events.COMPLETED, self._note)

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def _note(self, evaluator: Engine) -> None:
        self._validated = _numbers(evaluator.state.metrics)

    def _start(self, engine: Engine) -> None:
        is_resumed = engine.state.iteration > 0
        self.rows = [row for row in read_metrics(self.path) if row["epoch"] <= engine.state.epoch] if is_resumed else []
        if self._validated:
            self._add({"epoch": 0})

    def __call__(self, engine: Engine) -> None:
        """Add the epoch that ends."""
        self._add({"epoch": engine.state.epoch, **_numbers(engine.state.metrics)})

    def _add(self, row: Row) -> None:
        self.rows = [other for other in self.rows if other["epoch"] != row["epoch"]] + [{**row, **self._validated}]
        self._validated = {}
        if idist.get_rank() == 0:
            write_csv(self.path, self.rows)


def read_metrics(path: Path) -> list[Row]:
    """Return the rows of a ``metrics.csv``, [] where there is none; empty cells are left out."""
    if not path.is_file():
        return []
    rows = csv.DictReader(path.read_text(encoding="utf-8").splitlines())
    return [{name: float(value) for name, value in row.items() if value} for row in rows]


def _numbers(metrics: dict[str, Any]) -> Row:
    found = {name: float(value) for name, value in metrics.items() if isinstance(value, (int, float))}
    return {name: value for name, value in found.items() if value == value}  # no NaN
