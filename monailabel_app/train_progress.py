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
"""How far a training is and how good its best weights are, in a file that the server's ``/info/`` reads."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events

from scripts.training.validation_metrics import is_better
from scripts.utils.atomic import replacing

logger = logging.getLogger(__name__)

SLICER = ("epoch", "total_epochs", "best_metric")  # of train_stats: what 3D Slicer's bars show


def progress_file(ckpt_dir: str | Path) -> Path:
    """Return the file beside a run's folder of checkpoints."""
    return Path(ckpt_dir).with_name("progress.json")


def attach_progress(trainer: Engine, evaluator: Engine, path: str) -> None:
    """Let a training write a file whenever an epoch or a validation ends.

    The file has ``epoch``, ``total_epochs``, ``best_epoch`` (0: the weights it started from), ``best_validation``
    (figures of that epoch), and ``best_metric``: the best Dice, or the correlation of the images where no pair has
    labels.

    Args:
        trainer: of the training.
        evaluator: of its validation; metrics are compared as its key metric's name says.
        path: of the file; what it holds of a training that was stopped is kept.
    """
    state: dict[str, Any] = {"epoch": 0, "best_metric": 0.0, **(read_json(Path(path)) or {})}

    def validated(engine: Engine) -> None:
        found = figures(engine.state.metrics)
        key = str(engine.state.key_metric_name)  # type: ignore[attr-defined]
        new, best = found.get(key), (state.get("best_validation") or {}).get(key)
        if new is None or (best is not None and not is_better(key.removeprefix("val_"))(new, best)):
            return
        state.update(best_epoch=int(trainer.state.epoch), best_validation=found, best_metric=_accuracy(found))
        write_json(Path(path), state)

    def ended(engine: Engine) -> None:
        state.update(epoch=int(engine.state.epoch), total_epochs=int(engine.state.max_epochs or 0))
        write_json(Path(path), state)

    evaluator.add_event_handler(Events.COMPLETED, validated)
    trainer.add_event_handler(Events.STARTED, ended)
    trainer.add_event_handler(Events.EPOCH_COMPLETED, ended)


def figures(metrics: Mapping[str, Any]) -> dict[str, float | None]:
    """Return the numbers of a validation; None stands for NaN, as of a Dice without a common label."""
    numbers = {name: float(value) for name, value in metrics.items() if isinstance(value, (int, float))}
    return {name: round(value, 5) if math.isfinite(value) else None for name, value in numbers.items()}


def _accuracy(found: Mapping[str, float | None]) -> float:
    """Return the Dice, or the correlation: 1 - ``val_similarity``; 3D Slicer shows it as a percentage."""
    dice, similarity = found.get("val_dice"), found.get("val_similarity")
    return dice if dice is not None else 0.0 if similarity is None else min(max(1 - similarity, 0.0), 1.0)


def read_json(path: Path) -> dict[str, Any] | None:
    """Return the object in a file, NaN as None; None, and a line in the log, where it can't be read."""
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(), parse_constant=lambda _: None)
        if isinstance(content, dict):
            return content
        logger.warning("%s is no JSON object", path)
    except (OSError, ValueError) as error:
        logger.warning("%s can't be read: %s", path, error)
    return None


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write an object, all at once."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1))
