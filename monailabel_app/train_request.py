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
"""What a training request asks for, checked in a second or so: options, images, labels, weights to start from."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from monailabel.interfaces.datastore import Datastore

from monailabel_app.app_settings import AppSettings
from monailabel_app.label_info import conflicts
from monailabel_app.label_numbers import common_numbering
from monailabel_app.request_errors import RequestError, check_id
from monailabel_app.studies import Study, check_distinct, find_study, structures
from monailabel_app.train_progress import SLICER
from scripts.networks.checkpoints import MODEL_FILES
from scripts.utils.suggestions import did_you_mean

logger = logging.getLogger(__name__)

# default, lowest, highest
RANGES: dict[str, tuple[float, float, float]] = {
    "max_epochs": (20, 1, 10_000),
    "pairs_per_epoch": (20, 1, 10_000),
    "val_split": (0.2, 0.0, 0.9),
    "learning_rate": (5e-5, 1e-8, 1e-1),
    "dice_weight": (1.0, 0.0, 100.0),
}
WHOLE = ("max_epochs", "pairs_per_epoch")
OPTIONS = ("name", "weights", "resume", *RANGES)
# what MONAI Label and its clients send along: the app chooses the device itself
NOT_OURS = ("model", "client_id", "gpus", "multi_gpu", "local_rank", "device", "user")
RESERVED = {*MODEL_FILES, "none", "auto", "fuse", "training", *SLICER}
YES, NO = ("true", "1", "yes"), ("false", "0", "no")
FEW_LABELS = 4  # with fewer, none can be held out for validation


@dataclass(frozen=True)
class Plan:
    """A checked request."""

    name: str
    weights: dict[str, str]
    """train.yaml's options for what to start from."""
    resume: bool
    numbers: dict[str, float]
    """Of :data:`RANGES`."""
    studies: list[Study]
    training: list[Study]
    validation: list[Study]
    dice_weight: float
    renumbered: dict[str, dict[int, int]]
    """Id of each study whose label needs it -> value -> number that its structure has in all labels."""
    remarks: tuple[str, ...]


def check_request(request: Mapping[str, Any], settings: AppSettings, datastore: Datastore) -> Plan:
    """Return what a request asks for, in a second or so, before anything is trained or written.

    Args:
        request: ``name``, ``weights`` to start from, ``resume``, and the numbers of :data:`RANGES`.
        settings: of the app.
        datastore: whose images are trained on.

    Raises:
        RequestError: an unknown option, a wrong value, too few images or labels, labels whose values mean different
            things.
    """
    for option in request:
        if option not in OPTIONS and option not in NOT_OURS:
            raise RequestError(
                f"{str(option)[:60]}: unknown{did_you_mean(str(option), OPTIONS)}; known: {', '.join(OPTIONS)}"
            )
    numbers = {name: _number(request, name) for name in RANGES}
    resume = _switch(request, "resume")
    name = _name(request, resume, settings)
    weights = _weights(request, settings)
    studies = [find_study(datastore, s, "image", settings.modality) for s in sorted(datastore.list_images())]
    labelled = [study for study in studies if study.label]
    if len(studies) < 2:
        raise RequestError(f"training needs two images at least; the datastore has {len(studies)}")
    conflict = conflicts({study.id: study.label_names() for study in labelled})
    if conflict:
        raise RequestError(f"labels can't be trained on together: {conflict}; give each structure one value")
    try:
        check_distinct(labelled)
        known = structures(labelled)
        numbering = common_numbering(known)
    except RequestError as error:
        raise RequestError(f"labels can't be trained on together: {error.detail}") from error
    training, validation = split(studies, numbers["val_split"])
    count = sum(study.label is not None for study in training)
    dice_is_asked = request.get("dice_weight") not in (None, "") and numbers["dice_weight"] > 0
    if dice_is_asked and count < 2:
        raise RequestError(
            f"dice_weight: {numbers['dice_weight']:g} needs two labelled studies at least, and there are {count};"
            " label more, or set dice_weight to 0"
        )
    changed = {
        one.id: own
        for one, own in zip(known, numbering.numbers, strict=True)
        if any(value != number for value, number in own.items())
    }
    return Plan(
        name=name,
        weights=weights,
        resume=resume,
        numbers=numbers,
        studies=studies,
        training=training,
        validation=validation,
        dice_weight=numbers["dice_weight"] if count >= 2 else 0.0,
        renumbered=changed,
        remarks=numbering.remarks,
    )


def _name(request: Mapping[str, Any], resume: bool, settings: AppSettings) -> str:
    given = "" if request.get("name") is None else request["name"]
    if given == "" and resume:
        raise RequestError("resume: give the name of the training that was stopped")
    if given != "":
        name = check_id("name", given)
        if name in RESERVED or not re.fullmatch(r"[\w.+-]+", name):
            raise RequestError(f"name: '{name}' can't be a model's name; use letters, digits, _ . + -")
        if (settings.models_dir / f"{name}.pt").exists():
            raise RequestError(f"name: there is a model '{name}' already; choose another name", 409)
        exists = (settings.training_dir / name).exists()
        if exists and not resume:
            raise RequestError(f"name: a training '{name}' was begun; go on with resume, or choose another", 409)
        if resume and not exists:
            raise RequestError(f"resume: there is no training '{name}'", 404)
        return name
    return time.strftime("finetuned-%Y%m%d-%H%M%S")


def _weights(request: Mapping[str, Any], settings: AppSettings) -> dict[str, str]:
    """Return train.yaml's options for the weights to start from."""
    known = {name: value for name, value in settings.weights_by_name().items() if name != "none"}
    given = request.get("weights")
    given = given[0] if isinstance(given, list) and given else given
    name = next(iter(known)) if given in (None, "") else given
    if not isinstance(name, str) or name not in known:
        raise RequestError(f"weights: expected one of {', '.join(known)}, got {str(name)[:60]!r}")
    options = known[name]
    return {"init_ckpt": options["ckpt_path"]} if "ckpt_path" in options else dict(options)


def split(studies: Sequence[Study], val_split: float) -> tuple[list[Study], list[Study]]:
    """Divide studies into those to train on and those to validate on; labelled ones are held out if they suffice.

    Args:
        studies: all of them.
        val_split: share of the labelled ones that is held out, at least two; 0 validates on what is trained on.
    """
    labelled = [study for study in studies if study.label]
    if val_split > 0 and len(labelled) >= FEW_LABELS:
        count = min(max(2, round(val_split * len(labelled))), len(labelled) - 2)
        held_out = labelled[-count:]
        return [study for study in studies if study not in held_out], held_out
    seen = labelled if len(labelled) >= 2 else list(studies)
    logger.warning("validation is on images that are trained on: too few labels to hold any out")
    return list(studies), seen[:FEW_LABELS]


def _switch(request: Mapping[str, Any], name: str) -> bool:
    text = str(request.get(name)).lower()
    if request.get(name) in (None, "") or text in NO:
        return False
    if text not in YES:
        raise RequestError(f"{name}: expected true or false, got {text[:60]!r}")
    return True


def _number(request: Mapping[str, Any], name: str) -> float:
    default, lowest, highest = RANGES[name]
    value = request.get(name)
    if value is None or value == "":
        return default
    try:
        number = float(value) if isinstance(value, (int, float, str)) and not isinstance(value, bool) else float("nan")
    except (TypeError, ValueError, OverflowError):
        number = float("nan")
    if not lowest <= number <= highest or (name in WHOLE and number != int(number)):
        kind = "a whole number" if name in WHOLE else "a number"
        raise RequestError(f"{name}: expected {kind} from {lowest:g} to {highest:g}, got {str(value)[:60]!r}")
    return number
