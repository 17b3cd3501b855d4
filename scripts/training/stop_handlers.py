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
"""What keeps a long run safe: it stops in order when told to, and when the loss is no longer a number."""

from __future__ import annotations

import logging
import math
import os
import signal
import sys
import threading
from typing import Any, cast

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from monai.engines.utils import IterationEvents
from torch import nn

from scripts.training.run_checkpoints import is_between_steps, is_last_of_epoch
from scripts.utils.errors import InputError, quiet_engine
from scripts.utils.memory import keep_freed_memory
from scripts.utils.output_lock import alone_in

logger = logging.getLogger(__name__)

SIGNALS = (signal.SIGTERM, signal.SIGINT)
MOST_SKIPPED = 20  # steps in a row without a finite gradient, in mixed precision


class StopOnSignal:
    """End the run after the step at hand when SIGTERM or SIGINT (Ctrl-C) comes; a second SIGINT ends it at once.

    All processes of a distributed run stop after the same step, whichever got the signal first. The trainer's TERMINATE
    event lets :class:`scripts.training.run_checkpoints.SaveLast` write the state. Attach to the trainer.
    """

    def __init__(self) -> None:
        self.received = 0
        self._before: dict[int, Any] = {}

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer."""
        engine.add_event_handler(Events.STARTED, self._install)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._check)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._end_epoch)

    def _install(self, engine: Engine) -> None:
        if threading.current_thread() is threading.main_thread():  # Python allows it nowhere else
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}

    def _note(self, number: int, frame: Any) -> None:
        if self.received and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number
        logger.warning("%s: stopping after this step", signal.Signals(number).name)

    def _check(self, engine: Engine) -> None:
        number = self.received
        if idist.get_world_size() > 1:
            number = int(idist.all_reduce(number, op="MAX"))
        if number and is_between_steps(engine) and not is_last_of_epoch(engine):
            self.received = number
            engine.terminate()

    def _end_epoch(self, engine: Engine) -> None:
        """Stop after an epoch's end with all that belongs to it."""
        number = self.received
        if idist.get_world_size() > 1:
            number = int(idist.all_reduce(number, op="MAX"))
        if number:
            self.received = number
            engine.terminate()

    def restore(self) -> None:
        """Give the signals back to what handled them before, however the run ended."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}


class StopOnNonFinite:
    """Stop at a loss or a gradient that is NaN or infinite, before it reaches the weights, and name the pairs.

    Attach to the trainer.

    Args:
        network: whose gradients are looked at.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self._skipped = 0

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer."""
        engine.add_event_handler(IterationEvents.LOSS_COMPLETED, self._check_loss)
        engine.add_event_handler(IterationEvents.BACKWARD_COMPLETED, self._check_gradients)

    def _check_loss(self, engine: Engine) -> None:
        loss = float(cast(dict, engine.state.output)["loss"].detach())
        if not math.isfinite(loss):
            raise self._error(engine, f"the loss became {loss}")

    def _check_gradients(self, engine: Engine) -> None:
        gradients = [p.grad for p in self.network.parameters() if p.grad is not None]
        if not gradients or math.isfinite(float(torch.nn.utils.get_total_norm(gradients))):
            self._skipped = 0
            return
        self._skipped += 1
        # the gradient scaler of mixed precision skips such a step and lowers its scale, now and then
        if getattr(engine, "scaler", None) is None or self._skipped > MOST_SKIPPED:
            raise self._error(engine, "the gradient is no longer finite")

    def _error(self, engine: Engine, what: str) -> InputError:
        pairs = "; ".join(cast(dict, engine.state.batch)["pair"])
        return InputError(
            f"{what} at epoch {engine.state.epoch}, iteration {engine.state.iteration}, pair: {pairs}; the last good"
            " state stays in ckpt_dir. Look at these images, or lower learning_rate"
        )


def run_training(trainer: Any, ckpt_dir: str | os.PathLike[str]) -> None:
    """Run a trainer; SIGTERM and SIGINT end it in order, with the status that shells expect (128 + their number).

    Args:
        trainer: MONAI engine.
        ckpt_dir: where it saves; other runs are kept out of it.

    Raises:
        InputError: another run works in ``ckpt_dir``.
    """
    stop = StopOnSignal()
    stop.attach(trainer)
    quiet_engine(trainer)
    try:
        with alone_in(ckpt_dir, idist.get_rank()), keep_freed_memory():
            trainer.run()
    finally:
        stop.restore()
    if stop.received:
        logger.warning("stopped at iteration %d; go on with --resume True", trainer.state.iteration)
        sys.exit(128 + stop.received)
