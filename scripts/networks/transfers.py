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
"""Bring a file over HTTPS into a .part file, resuming an earlier transfer if the server's file is still the same.

``FILE.part.json`` records what tells that it is: the strong ETag, or else the time of the last change. A server that
can't resume sends the whole file, and so does one whose file changed (If-Range of RFC 9110, 13.1.5).
"""

from __future__ import annotations

import json
import logging
import os
import ssl
import sys
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

import pooch
import requests

from scripts.utils.errors import InputError

logger = logging.getLogger(__name__)

TIMEOUT_SECONDS = 60.0  # without a byte
CHUNK = 1 << 16  # what a cut loses


class _ChangedError(requests.exceptions.RequestException):
    """The server does not send the rest of what is in the .part file."""


def transfer(url: str, part: Path) -> None:
    """Bring the rest of a file, or all of it, into ``part``.

    Raises:
        InputError: no HTTPS, no answer, or a connection that was cut; what came is kept.
        OSError: the disk is full, ...
    """
    try:
        try:
            _transfer(url, part)
        except _ChangedError:
            remove_part(part)
            _transfer(url, part)
    except InputError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a Location that is no URL
        if isinstance(error, OSError) and error.errno:  # of the disk: errors of requests have no number
            raise
        reason = getattr(error.args[0], "reason", error) if error.args else error  # without a redirect's query
        raise InputError(
            f"download: {url} could not be fetched ({reason}); check the network or the proxy, then run the same"
            " command again to resume"
        ) from error


def remove_part(part: Path) -> None:
    """Remove a .part file and what is recorded of it."""
    part.unlink(missing_ok=True)
    _record_of(part).unlink(missing_ok=True)


def _transfer(url: str, part: Path) -> None:
    with part.open("ab") as file:
        start = max(file.tell() - 1, 0)  # the last byte comes again, so that a whole part is no other case
        validator = _read_validator(part, url) if start else ""

        def check(answer: requests.Response, *_: Any, **__: Any) -> None:
            """Refuse what is no file, and a redirect before it is followed; keep the part if its rest comes."""
            if answer.is_redirect:
                check_https(urljoin(answer.url, answer.headers["location"]), f" (redirected from {_site(answer.url)})")
            elif answer.status_code == HTTPStatus.PARTIAL_CONTENT:
                total = start + int(answer.headers.get("Content-Length", 0))
                place = f"bytes {start}-{total - 1}/{total}"
                if answer.headers.get("Content-Range") != place or _validator(answer) != validator:
                    raise _ChangedError("the server sent another part than was asked for")
                file.truncate(start)
            elif answer.ok:
                if start:
                    logger.info("%s can't be resumed: starting anew", part)
                file.truncate(0)
                record = {"url": url, "validator": _validator(answer)}
                _record_of(part).write_text(json.dumps(record), encoding="utf-8")
            elif answer.status_code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and validator:
                raise _ChangedError
            else:
                site = _site(answer.url)
                raise InputError(f"download: {site} answers {answer.status_code} {answer.reason} for {url}")

        pooch.HTTPDownloader(
            progressbar=sys.stderr.isatty(),
            chunk_size=CHUNK,
            timeout=TIMEOUT_SECONDS,
            headers={"Accept-Encoding": "identity"}
            | ({"Range": f"bytes={start}-", "If-Range": validator} if validator else {}),
            verify=_certificates(),
            hooks={"response": check},
        )(url, file, None)


def _certificates() -> str | bool:
    """Return the file or folder of certificates to trust; True: those of certifi.

    What ``REQUESTS_CA_BUNDLE`` names wins, then ``SSL_CERT_FILE``, then what OpenSSL finds on the system.
    """
    named = os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE")
    system = ssl.get_default_verify_paths()
    return named or system.cafile or (system.capath if system.capath and os.listdir(system.capath) else True)


def _validator(answer: requests.Response) -> str:
    """Return what tells whether a file is still the same: a strong ETag, or the time of its last change, or nothing."""
    etag = answer.headers.get("ETag", "")
    return answer.headers.get("Last-Modified", "") if etag.startswith("W/") or not etag else etag


def _record_of(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _read_validator(part: Path, url: str) -> str:
    """Return the recorded validator of a .part file; nothing if it is of another URL."""
    try:
        record = json.loads(_record_of(part).read_text(encoding="utf-8"))
        return str(record["validator"]) if record["url"] == url else ""
    except (OSError, ValueError, LookupError, TypeError):
        return ""


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
