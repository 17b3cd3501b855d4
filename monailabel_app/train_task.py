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
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import itk
import numpy as np
import torch
from monai.bundle import ConfigWorkflow
from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.train import TrainTask

from monailabel_app.app_settings import BUNDLE_ROOT, AppSettings
from monailabel_app.label_numbers import label_type, remap
from monailabel_app.registration import release_memory
from monailabel_app.request_errors import plain_errors
from monailabel_app.studies import Study
from monailabel_app.train_progress import SLICER, figures, progress_file, read_json
from monailabel_app.train_request import RANGES, WHOLE, Plan, check_request
from scripts.data.reading import read_volume
from scripts.utils.atomic import replacing

logger = logging.getLogger(__name__)


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
        """Return what a request asks for, see :func:`monailabel_app.train_request.check_request`."""
        return check_request(request, self.settings, datastore)

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
