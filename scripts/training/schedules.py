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
"""Learning-rate schedules by name."""

from __future__ import annotations

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from scripts.utils.errors import InputError

SCHEDULES = ("constant", "cosine")


def create_schedule(optimizer: Optimizer, name: str, max_epochs: int, warmup_epochs: int = 0) -> LambdaLR:
    """Return a schedule that is stepped once an epoch.

    Its function is not part of its state: a resumed run with another ``max_epochs`` follows the new one.

    Args:
        optimizer: whose learning rate is set.
        name: "constant" (as the paper) or "cosine" (half a cosine down to 0 at ``max_epochs``).
        max_epochs: length of the run.
        warmup_epochs: epochs of linear rise at the beginning; 0 starts in full.

    Raises:
        InputError: an unknown name, or a warm-up that is longer than the run.
    """
    if name not in SCHEDULES:
        raise InputError(f"lr_schedule: expected one of {', '.join(SCHEDULES)}, got '{name}'")
    if not 0 <= warmup_epochs <= max_epochs:
        raise InputError(f"warmup_epochs must lie within 0 and max_epochs {max_epochs}, got {warmup_epochs}")

    def factor(epoch: int) -> float:
        rise = min(1.0, (epoch + 1) / (warmup_epochs + 1))
        if name == "constant":
            return rise
        done = max(0, epoch - warmup_epochs) / max(1, max_epochs - warmup_epochs)
        return rise * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))

    return LambdaLR(optimizer, factor)
