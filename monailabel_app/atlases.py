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
"""Which labelled study to register: the most similar ones after a coarse registration."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path

from monailabel_app.app_settings import AppSettings
from monailabel_app.registration import quick_similarity
from monailabel_app.request_errors import RequestError, plain_errors
from monailabel_app.studies import Study

logger = logging.getLogger(__name__)

MOST_CANDIDATES = 20  # of one request; each takes a second or two on a CPU
_MOST_KEPT = 10_000


class StudySimilarity:
    """Similarity of two studies after a coarse registration; remembered until one of the files changes.

    Args:
        settings: of the app.
    """

    def __init__(self, settings: AppSettings) -> None:
        self.settings = settings
        self._known: dict[tuple[str, ...], float] = {}

    def __call__(self, fixed: Study, moving: Study) -> float:
        """Return ``1 - LNCC``, lower is more similar."""
        key = (*_version(fixed), *_version(moving))
        if key not in self._known:
            with tempfile.TemporaryDirectory(dir=self.settings.temporary_dir, prefix="quick-") as folder:
                value = quick_similarity(fixed, moving, self.settings.device, Path(folder))
            if len(self._known) >= _MOST_KEPT:
                self._known.clear()
            self._known[key] = value
        return self._known[key]


def rank(fixed: Study, candidates: Sequence[Study], similarity: StudySimilarity) -> list[tuple[Study, float]]:
    """Return candidates with their similarity, the most similar first; at most :data:`MOST_CANDIDATES` are looked at.

    A candidate that can't be registered is left out, with a line in the log.

    Raises:
        RequestError: there is none.
    """
    if not candidates:
        raise RequestError(
            "moving: no other study has a final label; label one, or name the study to register and ask for"
            " 'warped', 'displacement' or 'transform'"
        )
    found: list[tuple[Study, float]] = []
    failed = RequestError("moving: no labelled study could be registered")
    for study in candidates[:MOST_CANDIDATES]:
        try:
            with plain_errors({study.image: study.id, fixed.image: fixed.id}):
                found.append((study, similarity(fixed, study)))
        except RequestError as error:
            failed = error
            logger.warning("'%s' is left out: %s", study.id, error.detail)
    if not found:
        raise failed
    return sorted(found, key=lambda item: item[1])


def _version(study: Study) -> tuple[str, ...]:
    stat = Path(study.image).stat()
    return study.image, str(stat.st_mtime_ns), str(stat.st_size), study.modality
