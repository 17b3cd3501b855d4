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
"""Checkpoints of a training run: written whole or not at all, the last state and the best weights; exact resume.

``last.pt`` holds ``model`` (a plain state dict), ``optimizer``, ``lr_scheduler``, ``trainer`` (iteration and epoch) and
``best``; ``best.pt`` holds ``model``. Both are weights for inference's ``--ckpt_path``, and record in ``network`` the
shape and the preprocessing that these are made for. What is random in training follows from seed, epoch and number of a
pair (:mod:`scripts.training.pair_sampling`), so no random state needs to be kept.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from ignite.handlers import Checkpoint
from ignite.handlers.checkpoint import BaseSaveHandler
from monai.handlers import CheckpointLoader
from torch import nn

from scripts.networks.weights_preprocessing import Preprocessing
from scripts.training.validation_metrics import HIGHER_IS_BETTER
from scripts.utils.atomic import remove, replacing
from scripts.utils.errors import InputError, InputFileError
from scripts.utils.paths import absolute

logger = logging.getLogger(__name__)

LAST, BEST = "last.pt", "best.pt"


class AtomicSaver(BaseSaveHandler):
    """Write checkpoints under a temporary name, then rename; on the first process only.

    Args:
        folder: where they go; made if missing.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = absolute(folder)

    def __call__(self, checkpoint: Mapping, filename: str, metadata: Mapping | None = None) -> None:
        """Write one checkpoint."""
        if idist.get_rank() == 0:
            with replacing(self.folder / filename) as temporary:
                torch.save(checkpoint, temporary)

    def remove(self, filename: str) -> None:
        """Do nothing for the files that are replaced anyway: the old one stays until the new one is whole."""
        if filename not in (LAST, BEST) and idist.get_rank() == 0:
            remove(self.folder / filename)


class SaveBest:
    """Keep the weights of the epoch with the best key metric; attach to the evaluator.

    Args:
        ckpt_dir: folder of the run.
        network: whose weights are kept.
        figure: the key metric, of :data:`scripts.training.validation_metrics.FIGURES`.
        prefix: of its name in the engine's metrics.
        preprocessing: that the weights are trained with; kept beside them.
    """

    def __init__(
        self,
        ckpt_dir: str,
        network: nn.Module,
        figure: str,
        prefix: str = "",
        preprocessing: Preprocessing | None = None,
    ) -> None:
        sign = 1 if figure in HIGHER_IS_BETTER else -1

        def score(engine: Engine) -> float:
            return sign * float(engine.state.metrics[prefix + figure])

        self.checkpoint = Checkpoint(
            {
                "model": network,
                "network": _Facts(facts_of(network, preprocessing)),
                "key_metric": _Facts({"name": figure}),
            },
            AtomicSaver(ckpt_dir),
            filename_pattern=BEST,
            score_function=score,
            n_saved=1,
        )

        self.name = prefix + figure

    def attach(self, engine: Engine) -> None:
        """Attach to an evaluator."""
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Keep the weights if they are the best so far."""
        if math.isfinite(float(engine.state.metrics[self.name])):
            self.checkpoint(engine)
        else:
            logger.warning("%s is no number in this validation: %s stays as it is", self.name, BEST)

    def state_dict(self) -> dict[str, Any]:
        """Return what is known of the best so far."""
        return {"saved": [[score, name] for score, name in self.checkpoint.state_dict()["_saved"]]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state."""
        self.checkpoint.load_state_dict({"_saved": [tuple(item) for item in state["saved"]]})


class _Facts:
    """Plain values beside the weights in a checkpoint."""

    def __init__(self, facts: dict[str, Any]) -> None:
        self.facts = facts

    def state_dict(self) -> dict[str, Any]:
        return self.facts


def facts_of(network: nn.Module, preprocessing: Preprocessing | None = None) -> dict[str, Any]:
    """Return what weights alone do not tell: the shape and the preprocessing they are made for."""
    shape = {"spatial_shape": [int(n) for n in network.spatial_shape]}  # type: ignore[union-attr]
    return {**shape, **(preprocessing.facts() if preprocessing is not None else {})}


class SaveLast:
    """Keep the state of the run: after each epoch, every ``interval`` iterations, and when the run is told to stop.

    Attach to the trainer, after what else happens at an epoch's end.

    Args:
        ckpt_dir: folder of the run.
        network: its weights are kept as ``model``.
        optimizer: likewise.
        lr_scheduler: likewise.
        best: of :class:`SaveBest`, or None.
        interval: iterations between saves within an epoch; 0 saves at its end only.
        preprocessing: that the weights are trained with; kept beside them.
    """

    def __init__(
        self,
        ckpt_dir: str,
        network: nn.Module,
        optimizer: Any,
        lr_scheduler: Any,
        best: Any = None,
        interval: int = 0,
        preprocessing: Preprocessing | None = None,
    ) -> None:
        self.saver = AtomicSaver(ckpt_dir)
        self.preprocessing = preprocessing
        self.network = network
        self.objects = {"model": network, "optimizer": optimizer, "lr_scheduler": lr_scheduler}
        if best is not None:
            self.objects["best"] = best
        self.interval = int(interval)

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer."""
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)
        if self.interval > 0:
            engine.add_event_handler(Events.ITERATION_COMPLETED(every=self.interval), self._within_epoch)
        engine.add_event_handler(Events.TERMINATE, self)

    def _within_epoch(self, engine: Engine) -> None:
        # the last step of an epoch is not the end of it: validation and schedule come first
        if is_between_steps(engine) and not is_last_of_epoch(engine):
            self(engine)

    def __call__(self, engine: Engine) -> None:
        """Write ``last.pt``, unless the weights are no longer finite: then the last good state stays."""
        if not all(bool(torch.isfinite(parameter).all()) for parameter in self.network.parameters()):
            raise InputError("the weights are no longer finite; the last good state stays. Lower learning_rate")
        state = {name: item.state_dict() for name, item in self.objects.items()}
        state["network"] = facts_of(self.network, self.preprocessing)
        state["trainer"] = dict(engine.state_dict())
        scaler = getattr(engine, "scaler", None)
        if scaler is not None:
            state["scaler"] = scaler.state_dict()
        self.saver(state, LAST)


def is_between_steps(engine: Engine) -> bool:
    """Tell whether no gradients wait for the rest of an accumulation."""
    steps = int(getattr(engine, "accumulation_steps", 1))
    return engine.state.iteration % (engine.state.epoch_length or 1) % steps == 0


def is_last_of_epoch(engine: Engine) -> bool:
    """Tell whether the iteration at hand is the last one of its epoch."""
    return engine.state.iteration % (engine.state.epoch_length or 1) == 0


class Resume:
    """Go on from ``last.pt`` exactly where it was saved, or make sure that a new run does not overwrite an older one.

    Attach to the trainer. MONAI's ``CheckpointLoader`` does the loading.

    Args:
        ckpt_dir: folder of the run.
        resume: True goes on from ``last.pt``, or starts anew where there is none.
        objects: by name, as :class:`SaveLast` writes them, without the trainer.
        sampler: of the training pairs; it skips what the interrupted epoch has had.
        batch_size: pairs of one batch of this process.

    Raises:
        InputError: at once, if ``ckpt_dir`` holds a run and ``resume`` is False.
    """

    def __init__(
        self, ckpt_dir: str, resume: bool, objects: Mapping[str, Any], sampler: Any = None, batch_size: int = 1
    ) -> None:
        check_new_run(ckpt_dir, resume)
        self.path = absolute(ckpt_dir) / LAST
        self.objects, self.sampler, self.batch_size = dict(objects), sampler, int(batch_size)

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer."""
        engine.add_event_handler(Events.STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Load the state.

        Raises:
            InputError: the file can't be read, or belongs to a run with other settings.
        """
        if not self.path.exists():
            return
        saved = read_state(self.path)
        length = saved["trainer"].get("epoch_length")
        if length != engine.state.epoch_length:
            raise InputError(
                f"'{self.path}' is of a run with {length} batches an epoch, now there are {engine.state.epoch_length};"
                " resume with the same data, pairs_per_epoch and batch_size, or start from it with --init_ckpt"
            )
        if saved["trainer"]["iteration"] > length * engine.state.max_epochs:
            raise InputError(f"'{self.path}' is beyond max_epochs {engine.state.max_epochs}; give a larger max_epochs")
        scheduler = self.objects.get("lr_scheduler")
        rates = list(scheduler.base_lrs) if scheduler is not None else []
        objects: dict[str, Any] = {**self.objects, "trainer": engine}
        scaler = getattr(engine, "scaler", None)
        if scaler is not None and "scaler" in saved:
            objects["scaler"] = scaler
        try:
            CheckpointLoader(str(self.path), objects, map_location="cpu")(engine)  # type: ignore[arg-type]
        except (RuntimeError, KeyError, ValueError) as error:
            reason = str(error).strip().split("\n")[0][:200]
            raise InputError(
                f"'{self.path}' is of a run with another network or optimizer ({reason}); resume with the same stage"
                " and channels, or give another ckpt_dir and start from it with --init_ckpt"
            ) from error
        if scheduler is not None:
            _follow(scheduler, rates)
        done = engine.state.iteration % length
        if self.sampler is not None:
            self.sampler.skip_once(done * self.batch_size)
        logger.info("resumed from %s: epoch %d, iteration %d", self.path, engine.state.epoch, engine.state.iteration)


def _follow(scheduler: Any, rates: list[float]) -> None:
    """Let a resumed schedule go on with the learning rates that are asked for now, not those of the interrupted run."""
    scheduler.base_lrs = rates
    for group, rate, factor in zip(scheduler.optimizer.param_groups, rates, scheduler.lr_lambdas, strict=True):
        group["initial_lr"], group["lr"] = rate, rate * factor(scheduler.last_epoch)
    scheduler._last_lr = [group["lr"] for group in scheduler.optimizer.param_groups]


def is_new_run(ckpt_dir: str) -> bool:
    """Tell whether a folder holds no run to resume yet."""
    return not (absolute(ckpt_dir) / LAST).exists()


def check_new_run(ckpt_dir: str | Path, resume: bool) -> None:
    """Refuse to overwrite the run of a folder.

    Raises:
        InputError: the folder holds one, and ``resume`` is False.
    """
    if not resume and not is_new_run(str(ckpt_dir)):
        raise InputError(
            f"ckpt_dir '{ckpt_dir}' holds a run ({LAST}); go on with --resume True, or give another ckpt_dir"
        )


def read_state(path: Path) -> dict[str, Any]:
    """Read a ``last.pt`` on the CPU, with ``weights_only=True``."""
    try:
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a file that is no checkpoint
        reason = str(error).strip().split("\n")[0][:200]
        raise InputFileError(f"'{path}' can't be read as a training state ({reason}); start anew") from error
    if not isinstance(state, dict) or "trainer" not in state:
        raise InputError(f"'{path}' holds no training state; to start from its weights give --init_ckpt '{path}'")
    return state
