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
"""What is checked before training starts: data, labels for the Dice loss, the folder of checkpoints."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scripts.networks.weights_preprocessing import Preprocessing, choose_preprocessing
from scripts.training.list_check import check_files
from scripts.training.lists import require_records
from scripts.training.run_checkpoints import LAST, check_new_run, read_state
from scripts.utils.errors import InputError
from scripts.utils.paths import absolute, check_output_dir

logger = logging.getLogger(__name__)


def check_training(
    records: Sequence[Mapping[str, Any]],
    val_records: Sequence[Mapping[str, Any]] = (),
    check_data: bool = True,
    match_orientation: bool = True,
    dice_weight: float = 0.0,
    ckpt_dir: Any = None,
    resume: bool = False,
    progress: bool = True,
) -> None:
    """Refuse what can't work, in seconds, before images are loaded.

    Args:
        records: of the training list.
        val_records: of the validation list.
        check_data: look at every file.
        match_orientation: images are turned alike, so that their orientations may differ.
        dice_weight: of the objective; above 0 it needs labels.
        ckpt_dir: folder of the run.
        resume: go on with the run there; False refuses to overwrite one.
        progress: show a progress bar.

    Raises:
        InputError: one line that says what to do.
    """
    require_records(records)
    check_output_dir(ckpt_dir, "ckpt_dir")
    check_new_run(ckpt_dir, resume)
    _check_labels(records, dice_weight)
    if not val_records:
        logger.warning("no val_datalist: nothing is validated, and only last.pt is kept")
    if check_data:
        count = check_files([*records, *val_records], progress, match_orientation)
        logger.info("%d files checked", count)


def choose_training_preprocessing(
    ckpt_dir: str,
    resume: bool = False,
    model: str = "none",
    init_ckpt: str | Path | None = None,
    bundle_root: str | Path = ".",
    **options: Any,
) -> Preprocessing:
    """Return how images are prepared in training: as options say, else as the weights to start from were made for.

    A run that is resumed goes on as its ``last.pt`` records. From nothing, images are turned alike.

    Args:
        ckpt_dir: folder of the run.
        resume: go on with the run there.
        model: weights to start from, see :func:`scripts.networks.weights_preprocessing.choose_preprocessing`.
        init_ckpt: own weights to start from; they win over ``model``.
        bundle_root: folder that holds models/.
        options: ``match_orientation``, ``ct_window``, ``mr_percentiles``.
    """
    last = absolute(ckpt_dir) / LAST
    start = last if resume and last.is_file() else init_ckpt
    if start == last:
        read_state(last)  # says what is wrong with it as a training state
    return choose_preprocessing(model, start, bundle_root, **options)


def _check_labels(records: Sequence[Mapping[str, Any]], dice_weight: float) -> None:
    """Refuse a Dice loss that no pair can have, and say where labels are given that nothing uses."""
    images = [image for record in records for image in (record, record.get("fixed"), record.get("moving")) if image]
    count = sum("label" in image for image in images)
    if dice_weight <= 0:
        if count:
            logger.warning(
                "train_datalist names %d labels, but dice_weight is 0: training does not use them; --dice_weight 1 adds"
                " a Dice loss",
                count,
            )
        return
    if any("synthetic" in record for record in records):
        return
    if not count:
        raise InputError(
            "dice_weight is above 0, but no image of train_datalist has a label; add labels, or set it to 0"
        )
    pairs = [record for record in records if "fixed" in record]
    single = [record for record in records if "label" in record]
    if len(single) < 2 and not any("label" in pair["fixed"] and "label" in pair["moving"] for pair in pairs):
        raise InputError(
            f"dice_weight is above 0, but no pair of train_datalist can have labels in both images ({count} with a"
            " label); add labels, or set it to 0"
        )
