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

        Raises:
            RequestError: an id that is a path or unknown, or nothing is left.
        """
        given = request.get("images")
        given = str(getattr(given, "value", given)) if not isinstance(given, (list, tuple)) else given
        known = datastore.list_images()
        if isinstance(given, str):
            if given not in WORDS:
                raise RequestError(f"images: expected a list of ids, or one of {', '.join(WORDS)}, got {given[:60]!r}")
        else:
            for study in given:
                if check_id("images", study) not in known:
                    raise RequestError(f"images: there is no study '{study}'", 404)
        found = [study for study in super().get_images(request, datastore) if study != request.get("moving")]
        if not found:
            raise RequestError("images: no study to propagate to")
        return found

    def __call__(self, request: Mapping[str, Any], datastore: Datastore, infer: Callable[..., Any]) -> dict[str, Any]:
        """Run the request for each study.

        Returns:
            id -> ``label``, ``tag`` and ``params``, or ``error``.
        """

        def one(task: dict[str, Any], store: Datastore) -> dict[str, Any]:
            try:
                return dict(infer(task, store))
            except HTTPException as error:
                logger.warning("%s: %s", task.get("image"), error.detail)
                return {"error": str(error.detail)}

        size = request.get("max_batch_size", 0)
        if isinstance(size, bool) or not isinstance(size, int) or size < 0:
            raise RequestError(f"max_batch_size: expected a whole number, got {str(size)[:60]!r}; 0 is all")
        # memory is for one registration at a time, and the app chooses the device
        alone = {**request, "multi_gpu": False, "device": "cpu", "max_workers": 1}
        return dict(super().__call__(alone, datastore, one))
