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
"""Active learning: the next study to label is the one that the labelled studies register to worst."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any

from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.strategy import Strategy

from monailabel_app.app_settings import AppSettings
from monailabel_app.atlases import StudySimilarity, rank
from monailabel_app.registration import release_memory
from monailabel_app.request_errors import RequestError
from monailabel_app.studies import find_study, labelled_studies

logger = logging.getLogger(__name__)

MOST_STUDIES = 20  # unlabelled ones that a request looks at; each is registered to at most MOST_ATLASES
MOST_ATLASES = 5
HANDED_OUT_SECONDS = 3600  # a study that was handed out so recently comes last: another annotator may be at it


class WorstRegistered(Strategy):
    """Choose the unlabelled study whose best registration with a labelled one is worst.

    Args:
        settings: of the app.
        similarity: of two studies after a coarse registration.
    """

    def __init__(self, settings: AppSettings, similarity: StudySimilarity) -> None:
        super().__init__("The study that the labelled ones register to worst")
        self.settings, self.similarity = settings, similarity

    def __call__(self, request: Mapping[str, Any], datastore: Datastore) -> dict[str, Any] | None:
        """Return ``id`` and ``weight`` (1 - correlation with the closest labelled study); None if all are labelled."""
        own = request.get("strategy", "")
        now = time.time()
        handed_out = {
            study: now - _time_of(datastore.get_image_info(study), own) < HANDED_OUT_SECONDS
            for study in sorted(datastore.get_unlabeled_images())
        }
        if not handed_out:
            return None
        order = sorted(handed_out, key=lambda study: (handed_out[study], study))[:MOST_STUDIES]
        atlases = labelled_studies(datastore, self.settings.modality)[:MOST_ATLASES]
        if not atlases:
            return {"id": order[0], "weight": 1.0}
        weights: dict[str, float] = {}
        for name in order:
            study = find_study(datastore, name, "image", self.settings.modality)
            try:
                weights[name] = rank(study, atlases, self.similarity)[0][1]
            except RequestError as error:
                logger.warning("'%s' is left out: %s", name, error.detail)
        release_memory(self.settings.device)
        if not weights:
            raise RequestError("no unlabelled study could be registered; the server's log says why", 500)
        chosen = min(weights, key=lambda study: (handed_out[study], -weights[study], study))
        return {"id": chosen, "weight": weights[chosen]}


def _time_of(info: Mapping[str, Any], strategy: str) -> float:
    entry: Any = info.get("strategy")
    for key in (strategy, "ts"):  # clients may write anything there
        entry = entry.get(key) if isinstance(entry, Mapping) else None
    return float(entry) if isinstance(entry, (int, float)) else 0.0
