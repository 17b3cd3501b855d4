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
"""Train: fine-tune on the datastore with the bundle's own training config, and publish the result under a name."""

from __future__ import annotations

import json
import logging
import re
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import itk
import numpy as np
import torch
from monai.bundle import ConfigWorkflow
from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.train import TrainTask

from monailabel_app.app_settings import BUNDLE_ROOT, AppSettings
from monailabel_app.label_info import conflicts
from monailabel_app.label_numbers import common_numbering, label_type, remap
from monailabel_app.registration import release_memory
from monailabel_app.request_errors import RequestError, check_id, plain_errors
from monailabel_app.studies import Study, check_distinct, find_study, structures
from monailabel_app.train_progress import SLICER, figures, progress_file, read_json
from scripts.data.reading import read_volume
from scripts.networks.checkpoints import MODEL_FILES
from scripts.utils.atomic import replacing
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


class FineTune(TrainTask):
    """Fine-tuning of the network.

    Args:
        settings: of the app.
    """

    def __init__(self, settings: AppSettings) -> None:
        super().__init__("Fine-tunes the network on pairs of all studies; labels add a Dice term")
        self.settings = settings

    def config(self) -> dict[str, Any]:
        """Return the options of clients' panels."""
        defaults = {name: int(values[0]) if name in WHOLE else values[0] for name, values in RANGES.items()}
        start = [name for name in self.settings.weights_by_name() if name != "none"]
        return {"name": "", **defaults, "weights": start, "resume": False}

    def stats(self) -> dict[str, Any]:
        """Return facts of the models that were trained here, by name, and the progress of the newest training.

        3D Slicer's bars show ``epoch`` of ``total_epochs``, and ``best_metric``, the best validation's Dice.
        """
        models = {path.stem: read_json(path) for path in sorted(self.settings.models_dir.glob("*.json"))}
        runs = sorted(self.settings.training_dir.glob("*/progress.json"), key=lambda path: path.stat().st_mtime)
        newest = (read_json(runs[-1]) or {}) if runs else {}
        progress = {name: newest[name] for name in SLICER if name in newest}
        if progress:
            progress["training"] = runs[-1].parent.name
        return {**{name: facts for name, facts in models.items() if facts is not None}, **progress}

    def check(self, request: Mapping[str, Any], datastore: Datastore) -> Plan:
        """Return what a request asks for, in a second or so, before anything is trained or written.

        Args:
            request: ``name``, ``weights`` to start from, ``resume``, and the numbers of :data:`RANGES`.
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
        name = self._name(request, resume)
        weights = self._weights(request)
        studies = [find_study(datastore, s, "image", self.settings.modality) for s in sorted(datastore.list_images())]
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

    def __call__(self, request: Mapping[str, Any], datastore: Datastore) -> dict[str, Any]:
        """Train, and publish the best weights as ``name``.

        Args:
            request: see :meth:`check`.
            datastore: whose images are trained on.

        Returns:
            the facts of the new model.

        Raises:
            RequestError: see :meth:`check`.
        """
        plan = self.check(request, datastore)
        for remark in plan.remarks:
            logger.warning("%s", remark)
        folder = self.settings.training_dir / plan.name
        folder.mkdir(parents=True, exist_ok=True)
        lists = {"train_datalist": folder / "train.json", "val_datalist": folder / "val.json"}
        labels = {study.id: _label(study, plan.renumbered.get(study.id), folder) for study in plan.studies}
        for path, part in zip(lists.values(), (plan.training, plan.validation), strict=True):
            with replacing(path) as temporary:
                temporary.write_text(json.dumps([_entry(study, labels[study.id]) for study in part], indent=1))
        logger.info(
            "training '%s': %d images, %d of them with labels; validation: %d; Dice weight %g",
            *(plan.name, len(plan.training), sum(s.label is not None for s in plan.training), len(plan.validation)),
            plan.dice_weight,
        )
        epochs = int(plan.numbers["max_epochs"])
        options = {
            **{option: str(path) for option, path in lists.items()},
            **plan.weights,
            "max_epochs": epochs,
            "pairs_per_epoch": int(plan.numbers["pairs_per_epoch"]),
            "learning_rate": plan.numbers["learning_rate"],
            "dice_weight": plan.dice_weight,
            "hd95": False,  # a second for each label and pair; the Dice chooses the best weights
            "ckpt_dir": str(folder / "run"),
            "resume": plan.resume,
            "device": self.settings.device,
        }
        names = {study.image: study.id for study in plan.studies}
        names |= {label: f"label of {study}" for study, label in labels.items() if label}
        try:
            with plain_errors({**names, str(self.settings.work_dir): "the work folder"}):
                metrics = _train(options)
        finally:
            release_memory(self.settings.device)
        progress = read_json(progress_file(folder / "run")) or {}
        start = next(iter(plan.weights.values())) if "model" in plan.weights else Path(plan.weights["init_ckpt"]).stem
        facts = {
            "name": plan.name,
            "started_from": start,
            "finished": time.strftime("%Y-%m-%d %H:%M:%S"),
            "epochs": epochs,
            "images": [study.id for study in plan.training],
            "labelled": [study.id for study in plan.training if study.label],
            "validated_on": [study.id for study in plan.validation],
            "held_out": not {study.id for study in plan.training} & {study.id for study in plan.validation},
            "dice_weight": plan.dice_weight,
            "remarks": list(plan.remarks),
            "last_validation": metrics,
            "published_epoch": progress.get("best_epoch"),
            "published_validation": progress.get("best_validation"),
        }
        publish(folder / "run", self.settings.models_dir / f"{plan.name}.pt", facts)
        logger.info("published '%s': ask for it with weights '%s'", plan.name, plan.name)
        return facts

    def _name(self, request: Mapping[str, Any], resume: bool) -> str:
        given = "" if request.get("name") is None else request["name"]
        if given == "" and resume:
            raise RequestError("resume: give the name of the training that was stopped")
        if given != "":
            name = check_id("name", given)
            if name in RESERVED or not re.fullmatch(r"[\w.+-]+", name):
                raise RequestError(f"name: '{name}' can't be a model's name; use letters, digits, _ . + -")
            if (self.settings.models_dir / f"{name}.pt").exists():
                raise RequestError(f"name: there is a model '{name}' already; choose another name", 409)
            exists = (self.settings.training_dir / name).exists()
            if exists and not resume:
                raise RequestError(f"name: a training '{name}' was begun; go on with resume, or choose another", 409)
            if resume and not exists:
                raise RequestError(f"resume: there is no training '{name}'", 404)
            return name
        return time.strftime("finetuned-%Y%m%d-%H%M%S")

    def _weights(self, request: Mapping[str, Any]) -> dict[str, str]:
        """Return train.yaml's options for the weights to start from."""
        known = {name: value for name, value in self.settings.weights_by_name().items() if name != "none"}
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


def publish(run: Path, target: Path, facts: Mapping[str, Any]) -> None:
    """Copy the best weights of a run, without the optimizer, under the model's name, and write what is known of it.

    Where no validation gave a figure, there are no best ones, and the last are taken.
    """
    source = next(path for path in (run / "best.pt", run / "last.pt") if path.is_file())
    content = torch.load(source, map_location="cpu", weights_only=True)
    with replacing(target.with_suffix(".json")) as temporary:
        temporary.write_text(json.dumps(facts, indent=1))
    with replacing(target) as temporary:
        torch.save({key: content[key] for key in ("model", "network") if key in content}, temporary)


def _train(options: Mapping[str, Any]) -> dict[str, float | None]:
    """Run the bundle's fine-tuning; return the figures of the last validation."""
    configs = BUNDLE_ROOT / "configs"
    path = list(sys.path)
    try:
        workflow = ConfigWorkflow(
            config_file=[str(configs / "train.yaml"), str(configs / "finetune.yaml")],
            workflow_type="train",
            logging_file=False,
            bundle_root=str(BUNDLE_ROOT),
            progress=False,
            **options,
        )
        steps = workflow.parser["run"]
        last = next(n for n, step in enumerate(steps) if "run_training" in str(step))
        steps.insert(
            last,
            {
                "_target_": "monailabel_app.train_progress.attach_progress",
                "trainer": "@train::trainer",
                "evaluator": "@validate::evaluator",
                "path": str(progress_file(options["ckpt_dir"])),
            },
        )
        workflow.initialize()
        workflow.run()
        return figures(workflow.parser.get_parsed_content("validate::evaluator").state.metrics)
    finally:
        sys.path[:] = path


def _entry(study: Study, label: str | None) -> dict[str, str]:
    entry = {"subject": study.id, "image": study.image, "modality": study.modality}
    return {**entry, "label": label} if label else entry


def _label(study: Study, numbers: Mapping[int, int] | None, folder: Path) -> str | None:
    """Return the label's file, or a copy of it in a folder whose structures have the numbers that all labels share."""
    if study.label is None or numbers is None:
        return study.label
    image = read_volume(study.label).image
    voxels = itk.array_view_from_image(image)
    new = remap(voxels, numbers)
    copied = itk.image_from_array(new.astype(label_type(np.unique(new), None, voxels.dtype)))
    copied.CopyInformation(image)
    path = folder / "labels" / f"{study.id}.nii.gz"
    path.parent.mkdir(exist_ok=True)
    itk.imwrite(copied, str(path), compression=True)
    return str(path)


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
