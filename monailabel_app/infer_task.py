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
"""Infer: register a labelled study to the open one and return its label, or image, displacement or transform."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import itk
import numpy as np
from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType

from monailabel_app.answers import write_label, write_result
from monailabel_app.app_settings import AppSettings
from monailabel_app.atlases import MOST_CANDIDATES, StudySimilarity, rank
from monailabel_app.label_fusion import local_weights, vote
from monailabel_app.label_info import names_of_values
from monailabel_app.label_numbers import Numbering, common_numbering, label_type, remap
from monailabel_app.quality import doubts, quality, warning
from monailabel_app.registration import FILES, register, release_memory
from monailabel_app.request_errors import RequestError, plain_errors
from monailabel_app.request_options import AUTO, FUSE, InferOptions, panel, read_options
from monailabel_app.studies import Study, all_names, check_distinct, find_study, labelled_studies, structures
from scripts.data.reading import read_header, read_volume
from scripts.utils.errors import InputError

UPLOAD = "the uploaded image"

logger = logging.getLogger(__name__)


class RegisterStudy(InferTask):
    """The model of the server.

    Args:
        settings: of the app.
        datastore: returns the datastore that moving studies come from.
        similarity: to choose among labelled studies.
    """

    def __init__(self, settings: AppSettings, datastore: Callable[[], Datastore], similarity: StudySimilarity) -> None:
        super().__init__(
            type=InferType.SEGMENTATION,  # the only type that 3D Slicer and OHIF list
            labels=[],
            dimension=3,
            description="Registers a labelled study to the open one and returns its label (uniGradICON)",
        )
        self.settings, self.datastore, self.similarity = settings, datastore, similarity

    def info(self) -> dict[str, Any]:
        """Return what clients show; the label names are those of the final labels."""
        return {**super().info(), "labels": all_names(self.datastore(), self.settings.modality)}

    def config(self) -> dict[str, Any]:
        """Return the options of clients' panels; the studies are those with a final label."""
        studies = sorted(self.datastore().get_labeled_images())
        return panel(studies, list(self.settings.weights_by_name()))

    def is_valid(self) -> bool:
        """Return True: the weights are read when a request needs them."""
        return True

    def __call__(self, request: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        """Serve one request.

        Args:
            request: ``image`` is the fixed image's file, ``image_id`` its id unless it was uploaded, the rest as
                :mod:`monailabel_app.request_options` says.

        Returns:
            the file of the answer, which the caller removes, and its params.

        Raises:
            RequestError: see there.
        """
        began = time.perf_counter()
        store = self.datastore()
        options = read_options(request, list(self.settings.weights_by_name()))
        if request.get("image_id"):
            fixed = find_study(store, request["image_id"], "image", self.settings.modality)
        else:
            fixed = Study(UPLOAD, str(request["image"]), self.settings.modality)
        fixed = fixed.of_modality(options.fixed_modality)
        moving, candidates = self._candidates(options, fixed, store)
        names = {study.image: study.id for study in (fixed, *moving, *candidates)}
        names |= {str(study.label): f"label of {study.id}" for study in (*moving, *candidates) if study.label}
        try:
            with (
                plain_errors({**names, str(self.settings.work_dir): "the work folder"}),
                tempfile.TemporaryDirectory(dir=self.settings.temporary_dir, prefix="request-") as folder,
            ):
                path, params = self._serve(options, fixed, moving, candidates, Path(folder))
        finally:
            release_memory(self.settings.device)
        params["latencies"] = {"total": round(time.perf_counter() - began, 2)}
        logger.info(
            "'%s' from %s in %.1f s: %s",
            *(fixed.id, params["moving"], params["latencies"]["total"], params["warning"] or params["quality"]),
        )
        return str(path), params

    def _candidates(self, options: InferOptions, fixed: Study, store: Datastore) -> tuple[list[Study], list[Study]]:
        """Return the moving study if one is named, else the studies to choose from."""
        modality = self.settings.modality
        if options.moving in (AUTO, FUSE):
            studies = labelled_studies(store, modality, without=fixed.id)
            return [], [study.of_modality(options.moving_modality) for study in studies]
        # options.moving was checked to be an id
        moving = find_study(store, options.moving, "moving", modality).of_modality(options.moving_modality)
        if moving.id == fixed.id:
            raise RequestError(f"moving: '{moving.id}' is the open study itself; name another one")
        if options.result == "label" and moving.label is None:
            raise RequestError(
                f"moving: '{moving.id}' has no final label; label it first, or ask for another result than 'label'"
            )
        return [moving], []

    def _serve(
        self, options: InferOptions, fixed: Study, moving: list[Study], candidates: list[Study], folder: Path
    ) -> tuple[Path, dict[str, Any]]:
        params: dict[str, Any] = {"result": options.result}
        if not moving:
            ranked = rank(fixed, candidates, self.similarity)
            count = options.atlases if options.moving == FUSE else 1
            moving = [study for study, _ in ranked[:count]]
            params["candidates"] = [{"id": study.id, "similarity": round(value, 4)} for study, value in ranked]
            params["candidates_left_out"] = max(0, len(candidates) - MOST_CANDIDATES)
        numbering = Numbering([], {}, ())
        if options.result == "label":
            if len(moving) > 1:
                check_distinct(moving)
            numbering = common_numbering(structures(moving))
        weights = self.settings.weights_by_name()[options.weights]
        reports = []
        for number, study in enumerate(moving):
            results = folder / str(number)
            reports.append(register(fixed, study, options, weights, self.settings.device, results))
        if options.result == "label":
            path, remark = self._label(options, fixed, numbering, folder)
        else:
            path, remark = write_result(folder / "0", options, self.settings.temporary_dir)
        figures = [
            quality(report, self.similarity(fixed, study) if options.similarity == "lncc" else None)
            for study, report in zip(moving, reports, strict=True)
        ]
        found = [doubts(one, options.similarity) for one in figures]
        starts = [report.get("terms", {}).get("start") for report in reports]
        params |= {
            "moving": moving[0].id if options.moving != FUSE else [study.id for study in moving],
            "quality": figures[0] if options.moving != FUSE else figures,
            "warning": warning(list(dict.fromkeys(text for texts in found for text in texts))),
            "warnings": [*header_warnings(fixed, *moving), *numbering.remarks],
            "remark": remark,
            "weights": options.weights,
            "start": starts[0] if options.moving != FUSE else starts,
            "settings": {name: getattr(options, name) for name in ("preset", "optimization", "steps", "similarity")},
        }
        if options.result == "label":
            values = np.unique(itk.array_view_from_image(itk.imread(str(path))))
            params["label_names"] = names_of_values(values, numbering.names)
            params["label_info"] = [{"name": name, "idx": value} for name, value in params["label_names"].items()]
        return path, params

    def _label(
        self, options: InferOptions, fixed: Study, numbering: Numbering, folder: Path
    ) -> tuple[Path, str | None]:
        """Return the file of the warped label, or of the vote over several, and a remark on its type."""
        count = len(numbering.numbers)
        read = [itk.imread(str(folder / str(number) / FILES["label"])) for number in range(count)]
        given = [itk.array_from_image(image) for image in read]
        labels = [remap(label, numbers) for label, numbers in zip(given, numbering.numbers, strict=True)]
        voxels, weights = labels[0], None
        if count > 1:
            if options.vote == "local":
                warped = [itk.imread(str(folder / str(number) / FILES["warped"])) for number in range(count)]
                target = itk.array_from_image(read_volume(fixed.image).image)
                spacing = list(read[0].GetSpacing())[::-1]
                weights = [local_weights(target, itk.array_from_image(image), spacing) for image in warped]
            voxels = vote(labels, weights)
        # the type of the labels as they were, where it holds the numbers
        voxels = voxels.astype(label_type(np.unique(voxels), None, np.result_type(*given)))
        return write_label(voxels, read[0], options, self.settings.temporary_dir)


def header_warnings(*studies: Study) -> list[str]:
    """Return what is to be known of the headers of images and labels, one line each, with ids in place of paths."""
    found: dict[str, None] = {}
    files = {study.image: study.id for study in studies}
    files |= {study.label: f"label of {study.id}" for study in studies if study.label}
    for path, name in files.items():
        try:
            header = read_header(path)
        except InputError as error:  # of a label that was not needed
            logger.warning("%s", error)
            continue
        found |= dict.fromkeys(line.replace(path, name) for line in header.warnings)
    return list(found)
