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
"""Checks in front of MONAI Label's endpoints: requests are refused with one line before they are stored or queued.

MONAI Label answers 200 and hands some requests unread to a process in the background, parses texts unchecked, and
passes the paths of ``/proxy/`` on. The functions behind its routes are wrapped, so its own check of roles comes first.
"""

from __future__ import annotations

import functools
import inspect
import json
import sys
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

import requests
from fastapi import HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.middleware import Middleware
from fastapi.responses import JSONResponse
from monailabel.datastore.local import LocalDatastore

from monailabel_app.request_errors import RequestError, check_id
from monailabel_app.uploads import check_suffix, too_large

Arguments = dict[str, Any]
Scope = MutableMapping[str, Any]
MOST_JSON = 16 * 2**20  # bytes of a body that is no form
_LONG_BODY = f"request: a body that is no form may have {MOST_JSON // 2**20} MB at most"
_FORM_EXTRA = 2**20  # bytes of a form beside its files


def check_endpoints(app: Any, max_bytes: int) -> None:
    """Wrap MONAI Label's endpoints where they run in this process; does nothing in its background processes.

    Args:
        app: :class:`monailabel_app.main.UniGradICON`.
        max_bytes: of a request's body.
    """
    main = sys.modules.get("monailabel.app")
    if main is None:
        return
    from monailabel.endpoints import batch_infer, datastore, infer, model, proxy, scoring, session, train

    def train_model(given: Arguments) -> None:
        app.check_train({"model": given["model"], **(given["params"] or {})})

    def train_all(given: Arguments) -> None:
        for name in app.info()["trainers"]:
            params = given["params"] or {}
            app.check_train({"model": name, **(params.get(name) or params)})

    def batch(given: Arguments) -> None:
        app.check_batch({"model": given["model"], "images": given["images"], **(given["params"] or {})})

    def image_file(given: Arguments) -> None:
        _json_object("params", given["params"])
        check_suffix("image", given["file"].filename)

    def label_file(given: Arguments) -> None:
        _json_object("params", given["params"])
        check_suffix("label", given["label"].filename)

    def info(given: Arguments) -> None:
        _json_object("info", given["info"])

    def known(given: Arguments) -> None:
        study = check_id("id", given.get("image", given.get("label")))
        if isinstance(app.datastore(), LocalDatastore) and study not in app.datastore().list_images():
            raise RequestError(f"there is no study '{study}'", 404)
        if given.get("tag") is not None:
            check_id("tag", given["tag"])

    def inference(given: Arguments) -> None:
        _json_object("params", given["params"])
        if not given["file"] and not given["image"] and not given["session_id"]:
            raise RequestError("image: expected an id of the datastore, a file or a session_id, got none of them")
        if given["file"]:
            check_suffix("file", given["file"].filename)
        elif given["session_id"] and app.sessions().get_session(given["session_id"]) is None:
            raise RequestError(f"session_id: there is no session {given['session_id'][:60]!r}", 404)
        if given["output"] == "dicom_seg" and isinstance(app.datastore(), LocalDatastore):
            raise RequestError("output: dicom_seg needs studies on a DICOMweb server; ask for image, json or all")

    def session_files(given: Arguments) -> None:
        files = given["files"]
        if len(files) == 1 and not given["uncompress"]:
            check_suffix("session", files[0].filename)

    def scoring_method(given: Arguments) -> None:
        raise RequestError(f"method: there is no scoring '{str(given['method'])[:60]}'", 404)

    def weights_file(given: Arguments) -> None:
        raise RequestError("model: weights can't be sent; fine-tune, or put a file into the work folder's models", 404)

    def proxied(given: Arguments) -> None:
        if not app.studies.startswith(("http://", "https://")):
            raise RequestError("proxy: the studies are a folder of this server, not on a DICOMweb server", 404)
        if ".." in given["path"].split("/"):
            raise RequestError(f"proxy: {given['path'][:60]!r} leads out of the DICOMweb server's address")

    _wrap(train, "run_model", train_model)
    _wrap(train, "run", train_all)
    _wrap(batch_infer, "run", batch)
    _wrap(datastore, "add_image", image_file)
    _wrap(datastore, "save_label", label_file)
    _wrap(datastore, "update_image_info", info)
    _wrap(datastore, "update_label_info", info)
    for name in ("get_image_info", "get_label_info", "download_image", "download_label"):
        _wrap(datastore, name, known)
    _wrap(infer, "run_inference", inference)
    _wrap(session, "create_session", session_files)
    _wrap(scoring, "run_method", scoring_method)
    _wrap(model, "update_model", weights_file)
    _wrap(proxy, "proxy_dicom", proxied)
    # it runs already: its stack is built anew
    main.app.user_middleware.insert(0, Middleware(LimitBody, max_bytes=max_bytes))
    main.app.add_exception_handler(RequestValidationError, _one_line)
    main.app.middleware_stack = main.app.build_middleware_stack()


def _wrap(module: Any, name: str, check: Callable[[Arguments], None]) -> None:
    """Let a function of a module check its arguments first, and say in one line that a DICOMweb server is away."""
    function = getattr(module, name)
    signature = inspect.signature(function)

    def checked(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        check(bound.arguments)
        return function(*args, **kwargs)

    @functools.wraps(function)
    def plain(*args: Any, **kwargs: Any) -> Any:
        try:
            return checked(*args, **kwargs)
        except requests.RequestException as error:
            raise _away(error) from error

    @functools.wraps(function)
    async def awaited(*args: Any, **kwargs: Any) -> Any:
        try:
            return await checked(*args, **kwargs)
        except requests.RequestException as error:
            raise _away(error) from error

    setattr(module, name, awaited if inspect.iscoroutinefunction(function) else plain)


def _away(error: requests.RequestException) -> RequestError:
    return RequestError(f"the DICOMweb server can't be reached ({type(error).__name__}); try again later", 502)


async def _one_line(request: Request, error: RequestValidationError) -> JSONResponse:
    """Answer a request that FastAPI can't read with its first reason."""
    first = error.errors()[0]
    where = " ".join(str(part) for part in first["loc"])
    return JSONResponse({"detail": f"{where}: {first['msg']}, got {str(first.get('input'))[:60]!r}"}, 422)


def _json_object(option: str, text: Any) -> None:
    """Refuse a text that is no JSON object.

    Raises:
        RequestError: with the beginning of the text.
    """
    try:
        content = json.loads(text) if text else {}
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, Mapping):
        raise RequestError(f'{option}: expected a JSON object such as {{"moving": "auto"}}, got {str(text)[:60]!r}')


class LimitBody:
    """An ASGI application in front of another one that ends requests whose body is too large, with the status 413.

    Args:
        app: the other one.
        max_bytes: of the files in a form; other bodies are limited to :data:`MOST_JSON`.
    """

    def __init__(self, app: Callable[..., Awaitable[None]], max_bytes: int) -> None:
        self.app, self.max_bytes = app, max_bytes

    async def __call__(self, scope: Scope, receive: Callable[[], Awaitable[Any]], send: Any) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        is_form = headers.get(b"content-type", b"").startswith(b"multipart/")
        most = self.max_bytes + _FORM_EXTRA if is_form else MOST_JSON
        error = too_large("request", self.max_bytes) if is_form else RequestError(_LONG_BODY, 413)
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length) > most:
            # a client that does not wait for leave sends all before it reads the answer
            while b"expect" not in headers and (await receive()).get("more_body", False):
                pass
            await JSONResponse({"detail": error.detail}, error.status_code)(scope, receive, send)
            return
        received = 0

        async def counted() -> Any:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > most:
                raise HTTPException(error.status_code, error.detail)
            return message

        await self.app(scope, counted, send)
