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
"""Batch: one request for many studies, such as one label carried through a whole series."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from fastapi import HTTPException
from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.batch_infer import BatchInferTask

from monailabel_app.request_errors import RequestError, check_id

logger = logging.getLogger(__name__)


WORDS = ("all", "labeled", "unlabeled")


class PropagateLabel(BatchInferTask):
    """MONAI Label's batch, with checked ids, one study at a time; a study that fails does not end the others."""

    def get_images(self, request: Mapping[str, Any], datastore: Datastore) -> list[str]:
        """Return the studies: a list of ids in ``images``, or ``all``, ``labeled``, ``unlabeled``; never ``moving``.

        Ids that are unknown are left out: :func:`unknown_ids`.

        Raises:
            RequestError: nothing is left, or no such word.
        """
        given = request.get("images")
        given = str(getattr(given, "value", given)) if not isinstance(given, (list, tuple)) else given
        if isinstance(given, str) and given not in WORDS:
            raise RequestError(f"images: expected a list of ids, or one of {', '.join(WORDS)}, got {given[:60]!r}")
        unknown = unknown_ids(request, datastore)
        if isinstance(given, str):
            found = super().get_images(request, datastore)
        else:
            found = list(dict.fromkeys(study for study in given if isinstance(study, str) and study not in unknown))
        found = [study for study in found if study != request.get("moving")]
        if not found and unknown:
            first = next(iter(unknown.values()))
            raise RequestError(first.detail, first.status_code)
        if not found:
            raise RequestError("images: no study to propagate to")
        return found

    def check(self, request: Mapping[str, Any], datastore: Datastore) -> None:
        """Refuse what can't be served, before it is queued.

        Raises:
            RequestError: see :meth:`get_images`; a wrong ``max_batch_size``.
        """
        size = request.get("max_batch_size", 0)
        if isinstance(size, bool) or not isinstance(size, int) or size < 0:
            raise RequestError(f"max_batch_size: expected a whole number, got {str(size)[:60]!r}; 0 is all")
        self.get_images(request, datastore)

    def __call__(self, request: Mapping[str, Any], datastore: Datastore, infer: Callable[..., Any]) -> dict[str, Any]:
        """Run the request for each study.

        Returns:
            id -> ``label``, ``tag`` and ``params``, or ``error``, for ids that are unknown, too.
        """

        def one(task: dict[str, Any], store: Datastore) -> dict[str, Any]:
            try:
                return dict(infer(task, store))
            except HTTPException as error:
                logger.warning("%s: %s", task.get("image"), error.detail)
                return {"error": str(error.detail)}

        self.check(request, datastore)
        # memory is for one registration at a time, and the app chooses the device
        alone = {**request, "multi_gpu": False, "device": "cpu", "max_workers": 1}
        done = dict(super().__call__(alone, datastore, one))
        return {**done, **{study: {"error": str(e.detail)} for study, e in unknown_ids(request, datastore).items()}}


def unknown_ids(request: Mapping[str, Any], datastore: Datastore) -> dict[str, RequestError]:
    """Return what is wrong with the ids of ``images`` that are paths or unknown: id -> error."""
    given = request.get("images")
    known = set(datastore.list_images())
    found: dict[str, RequestError] = {}
    for study in given if isinstance(given, (list, tuple)) else ():
        try:
            if check_id("images", study) not in known:
                found[study] = RequestError(f"images: there is no study '{study}'", 404)
        except RequestError as error:
            found[str(study)[:60]] = error
    return found
