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
"""Bring a file over HTTPS into a .part file, going on where an earlier call stopped if the file is still the same.

What tells that it is (the strong ETag, or the time of the last change) is kept beside the .part file. A server that
does not go on with a part sends the whole file, and so does one whose file changed (If-Range of RFC 9110, 13.1.5).
"""

from __future__ import annotations

import http.client
import json
import logging
import os
import re
import ssl
import urllib.error
import urllib.request
from email.message import Message
from http import HTTPStatus
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from tqdm import tqdm

from scripts.utils.errors import InputError

logger = logging.getLogger(__name__)

TIMEOUT_SECONDS = 60.0  # without a byte
CHUNK = 1 << 20


class _ChangedError(Exception):
    """What lies in the .part file is of no use: start anew."""


def transfer(url: str, part: Path, file: IO[bytes], context: ssl.SSLContext | None = None) -> None:
    """Bring the rest of a file, or all of it, into ``part``.

    Args:
        url: HTTPS; redirects are followed to HTTPS only.
        part: where the bytes go.
        file: the same, open for appending.
        context: certificates to trust; by default those of the system.

    Raises:
        InputError: no HTTPS, no answer, or a connection that was cut; what came is kept.
        OSError: the disk is full, ...
    """
    try:
        _transfer(url, part, file, context)
    except _ChangedError:
        _restart(part, file)
        _transfer(url, part, file, context)


def remove_part(part: Path) -> None:
    """Remove a .part file and what is known of it."""
    part.unlink(missing_ok=True)
    _state_of(part).unlink(missing_ok=True)


def _transfer(url: str, part: Path, file: IO[bytes], context: ssl.SSLContext | None) -> None:
    """Bring the rest of a file into ``part``, open for appending."""
    state = _read_state(part, url)
    have = file.seek(0, os.SEEK_END)
    if have and not state.get("validator"):
        _restart(part, file)
        have = 0
    with _open(url, have, state.get("validator", ""), context) as answer:
        start, total = _place(answer, have)
        validator = _validator(answer.headers)
        if start and validator != state["validator"]:
            raise _ChangedError
        if have and not start:
            logger.info("the server does not go on with the part that is there: starting anew")
        if not start:
            _restart(part, file)
        state = {"url": url, "validator": validator, "total": total}
        _state_of(part).write_text(json.dumps(state), encoding="utf-8")
        with tqdm(total=total, initial=start, unit="B", unit_scale=True, desc=part.stem, disable=None) as bar:
            while chunk := _read(answer, url):
                file.write(chunk)
                bar.update(len(chunk))
    file.flush()
    os.fsync(file.fileno())
    size = file.tell()
    if total is not None and size > total:
        _restart(part, file)
        raise InputError(f"download: {_site(url)} sent {size} bytes in place of {total}; run the same command again")
    if total is not None and size < total:
        raise _cut(url, f"after {size} of {total} bytes")


def _open(url: str, have: int, validator: str, context: ssl.SSLContext | None) -> http.client.HTTPResponse:
    """Ask for a file, from byte ``have`` on if it is still the same one."""
    check_https(url)
    headers = {"User-Agent": "unigradicon-monai-bundle", "Accept-Encoding": "identity"}
    if have:
        headers |= {"Range": f"bytes={have}-", "If-Range": validator}
    opener = urllib.request.build_opener(_HttpsOnly, urllib.request.HTTPSHandler(context=context))
    try:
        answer: http.client.HTTPResponse = opener.open(
            urllib.request.Request(url, headers=headers), timeout=TIMEOUT_SECONDS
        )
        return answer
    except urllib.error.HTTPError as error:
        if error.code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and have:
            error.close()
            raise _ChangedError from error
        raise InputError(f"download: {_site(error.url)} answers {error.code} {error.reason} for {url}") from error
    except InputError:
        raise
    except (OSError, ValueError, http.client.HTTPException) as error:  # ValueError: a Location that is no URL
        reason = getattr(error, "reason", None) or error
        raise InputError(f"download: {url} can't be reached ({reason}); check the network or the proxy") from error


class _HttpsOnly(urllib.request.HTTPRedirectHandler):
    """Follows redirects to HTTPS only."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        check_https(newurl, f" (redirected from {req.full_url})")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def check_https(url: str, where: str = "") -> None:
    """Refuse a URL that is not HTTPS.

    Raises:
        InputError: with the URL's scheme and host, and ``where`` it came from.
    """
    parts = urlsplit(url)
    if parts.scheme != "https" or not parts.hostname:
        raise InputError(f"download: only https is used, got {_site(url)}{where}; large_files.yml names the URL")


def _site(url: str) -> str:
    """Return a URL's scheme and host: what follows may be a key that a redirect gave."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname}"


def _place(answer: http.client.HTTPResponse, have: int) -> tuple[int, int | None]:
    """Return the byte at which an answer starts, and the size of the whole file, None if the server does not tell."""
    if answer.status == HTTPStatus.PARTIAL_CONTENT:
        match = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", answer.headers.get("Content-Range", ""))
        if match is None or int(match[1]) != have:
            raise _ChangedError
        return have, int(match[2])
    length = answer.headers.get("Content-Length", "")
    return 0, int(length) if length.isdecimal() else None


def _validator(headers: Message) -> str:
    """Return what tells whether a file is still the same: a strong ETag, or the time of its last change, or nothing."""
    etag = headers.get("ETag", "")
    return headers.get("Last-Modified", "") if etag.startswith("W/") or not etag else etag


def _read(answer: http.client.HTTPResponse, url: str) -> bytes:
    try:
        return answer.read(CHUNK)
    except (OSError, http.client.HTTPException) as error:
        raise _cut(url, f"({error})") from error


def _cut(url: str, where: str) -> InputError:
    return InputError(
        f"download: the connection to {_site(url)} was cut {where}; run the same command again, it goes on where it was"
    )


def _state_of(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _read_state(part: Path, url: str) -> dict[str, Any]:
    """Return what is known of a .part file; nothing if it is of another URL."""
    try:
        state = json.loads(_state_of(part).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return state if isinstance(state, dict) and state.get("url") == url else {}


def _restart(part: Path, file: IO[bytes]) -> None:
    _state_of(part).unlink(missing_ok=True)
    file.truncate(0)
    file.seek(0)
