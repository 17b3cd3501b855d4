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
"""The app that ``monailabel start_server --app monailabel_app --studies DIR`` loads; docs/monailabel.md explains it."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monailabel.config import settings as server_settings
from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.datastore import Datastore, DefaultLabelTag

if str(Path(__file__).resolve().parents[1]) not in sys.path:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from monailabel_app.app_settings import read_settings
from monailabel_app.atlases import StudySimilarity
from monailabel_app.batch_task import PropagateLabel
from monailabel_app.checked_datastore import CheckedDatastore
from monailabel_app.checked_endpoints import check_endpoints
from monailabel_app.infer_task import RegisterStudy
from monailabel_app.request_errors import RequestError, check_id, forgotten_if_refused
from monailabel_app.request_options import AUTO, FUSE, read_options, single
from monailabel_app.strategy import WorstRegistered
from monailabel_app.studies import FINAL, find_study
from monailabel_app.train_task import FineTune
from monailabel_app.uploads import EXTENSIONS, CheckedSessions, refuse_foreign_data, sweep

logger = logging.getLogger(__name__)

MODEL = "unigradicon"


class UniGradICON(MONAILabelApp):
    """Annotate by registration.

    Args:
        app_dir: folder of main.py; nothing is written there.
        studies: folder of the studies, or the address of a DICOMweb server.
        conf: of ``--conf``, see :mod:`monailabel_app.app_settings`.
    """

    def __init__(self, app_dir: str, studies: str, conf: Mapping[str, str]) -> None:
        self.app_settings = read_settings(conf, studies)
        self.similarity = StudySimilarity(self.app_settings)
        work = self.app_settings.work_dir
        # uploads, sessions and DICOM files of MONAI Label itself go to the work folder, too
        tempfile.tempdir = str(self.app_settings.temporary_dir)
        server_settings.MONAI_LABEL_SESSION_PATH = server_settings.MONAI_LABEL_SESSION_PATH or str(work / "sessions")
        cache = server_settings.MONAI_LABEL_DICOMWEB_CACHE_PATH or str(work / "dicomweb")
        server_settings.MONAI_LABEL_DICOMWEB_CACHE_PATH = cache
        os.environ.pop("MONAI_LABEL_CORS_ORIGINS", None)  # MONAI Label's own subprocesses fail with it
        super().__init__(
            app_dir=app_dir,
            studies=studies,
            conf=dict(conf),
            name="uniGradICON",
            description="Annotate by registration: labelled studies give new ones their labels",
        )
        check_endpoints(self, self.app_settings.max_upload_bytes)

    def init_datastore(self) -> Datastore:
        """Return the datastore; a local one checks ids and files."""
        if self.studies.startswith(("http://", "https://")):
            return super().init_datastore()
        return CheckedDatastore(
            self.studies,
            max_bytes=self.app_settings.max_upload_bytes,
            extensions=list(EXTENSIONS),
            auto_reload=server_settings.MONAI_LABEL_DATASTORE_AUTO_RELOAD,
            read_only=server_settings.MONAI_LABEL_DATASTORE_READ_ONLY,
        )

    def init_infers(self) -> dict[str, Any]:
        """Return the model."""
        return {MODEL: RegisterStudy(self.app_settings, self.datastore, self.similarity)}

    def init_trainers(self) -> dict[str, Any]:
        """Return the trainer."""
        return {MODEL: FineTune(self.app_settings)}

    def init_strategies(self) -> dict[str, Any]:
        """Return the strategy, and MONAI Label's random choice."""
        return {"worst_registered": WorstRegistered(self.app_settings, self.similarity), **super().init_strategies()}

    def init_batch_infer(self) -> Any:
        """Return the batch."""
        return PropagateLabel()

    def _load_sessions(self, load: bool = False) -> Any:
        """Return the store of sessions, with checks."""
        path = server_settings.MONAI_LABEL_SESSION_PATH
        expiry = server_settings.MONAI_LABEL_SESSION_EXPIRY
        return CheckedSessions(path, expiry, self.app_settings.max_upload_bytes) if load else None

    def cleanup_sessions(self) -> None:
        """Remove what is old, every few minutes: sessions, and what killed or refused requests left."""
        super().cleanup_sessions()
        sweep(self.app_settings.temporary_dir)

    def infer(self, request: Mapping[str, Any], datastore: Datastore | None = None) -> dict[str, Any]:
        """Serve one request; ``image`` is an id of the datastore, or a file that the server itself has just received.

        Raises:
            RequestError: an id that is a path or unknown, an unknown model, a wrong option.
        """
        with forgotten_if_refused(request.get("image"), request.get("label")):
            return self._infer(dict(request), datastore or self.datastore())

    def _infer(self, given: dict[str, Any], store: Datastore) -> dict[str, Any]:
        given = single(given)
        self._check_model(given)
        image = given.get("image")
        save = bool(given.pop("save_label", False))
        tag = given.get("label_tag") or DefaultLabelTag.ORIGINAL
        tag = str(getattr(tag, "value", tag))
        if self._was_received(image):
            if Path(str(image)).is_file():
                refuse_foreign_data("image", str(image), self.app_settings.max_upload_bytes)
            given["image_id"], save = None, False
        else:
            if check_id("image", image) not in store.list_images():
                raise RequestError(f"image: there is no study '{image}'", 404)
            given["image_id"], given["image"] = image, store.get_image_uri(image)
        if save:
            self._check_saving(store, str(image), tag, given)
        # MONAI Label takes an existing file as it is, and saves nothing for it
        answer = dict(super().infer(given, store))
        if save:
            params = answer["params"]
            info = {"model": MODEL, "params": params, "label_info": params.get("label_info", [])}
            answer["label"], answer["tag"] = store.save_label(image, answer["file"], tag, info), tag
        return answer

    def infer_wsi(self, request: Mapping[str, Any], datastore: Datastore | None = None) -> dict[str, Any]:
        """Refuse: slides can't be registered here."""
        raise RequestError("whole slide images can't be registered; use /infer", 404)

    def batch_infer(self, request: Mapping[str, Any], datastore: Datastore | None = None) -> dict[str, Any]:
        """Serve one request for many studies."""
        return dict(super().batch_infer(self.check_batch(request, datastore), datastore))

    def check_batch(self, request: Mapping[str, Any], datastore: Datastore | None = None) -> dict[str, Any]:
        """Return a batch's request with one value for each option.

        Raises:
            RequestError: what can't be served for any study.
        """
        given, store = single(request), datastore or self.datastore()
        self._check_model(given)
        if (given.get("result") or "label") != "label":
            raise RequestError("result: a batch stores labels; ask /infer for other results")
        options = read_options(given, list(self.app_settings.weights_by_name()))
        if options.moving not in (AUTO, FUSE):
            moving = find_study(store, options.moving, "moving", self.app_settings.modality)
            if moving.label is None:
                raise RequestError(f"moving: '{moving.id}' has no final label; label it first")
        self._batch_infer.check(given, store)
        return given

    def train(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Fine-tune."""
        self.check_train(request)
        return dict(super().train(dict(request)))

    def check_train(self, request: Mapping[str, Any]) -> None:
        """Refuse a training that can't succeed, before it is queued.

        Raises:
            RequestError: its reason.
        """
        model = request.get("model")
        if not isinstance(model, str) or model not in self._trainers:
            raise RequestError(f"model: there is no '{str(model)[:60]}' to train; use {MODEL}", 404)
        self._trainers[model].check(request, self.datastore())

    def _check_model(self, request: Mapping[str, Any]) -> None:
        if not isinstance(request.get("model"), str) or request["model"] not in self._infers:
            raise RequestError(f"model: there is no '{str(request.get('model'))[:60]}'; use {MODEL}", 404)

    def next_sample(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Return the next study to label."""
        if not isinstance(request.get("strategy"), str) or request["strategy"] not in self._strategies:
            known = ", ".join(self._strategies)
            raise RequestError(f"strategy: expected one of {known}, got '{str(request.get('strategy'))[:60]}'", 404)
        return dict(super().next_sample(dict(request)))

    def _was_received(self, image: Any) -> bool:
        """Return whether a path is that of an upload or a session, where only the server itself puts files."""
        if not isinstance(image, str) or not os.path.isabs(image) or not os.path.exists(image):
            return False
        path = Path(image).resolve()
        uploads = self.app_settings.temporary_dir
        sessions = Path(server_settings.MONAI_LABEL_SESSION_PATH).resolve()
        return path.parent == uploads or path.is_relative_to(sessions)

    def _check_saving(self, store: Datastore, image: str, tag: str, request: Mapping[str, Any]) -> None:
        if (request.get("result") or "label") != "label":
            raise RequestError("save_label: only a label can be saved; leave result out, or save_label")
        check_id("label_tag", tag)
        if tag == FINAL and store.get_label_by_image_id(image, tag):
            raise RequestError(f"label_tag: '{image}' has a final label, which is not overwritten; use 'original'", 409)
