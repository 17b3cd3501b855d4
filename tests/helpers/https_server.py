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
"""A small HTTPS server on this machine that answers as told and keeps what it was asked."""

from __future__ import annotations

import http.server
import re
import shutil
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


class Server(http.server.ThreadingHTTPServer):
    """What it serves, how it fails, and the requests that came."""

    content = b""
    etag: str | None = '"one"'
    modified: str | None = None
    cut_after: int | None = None  # bytes of the body, then the connection ends
    honours_range = True
    honours_if_range = True
    tells_length = True
    redirect: str | None = None  # Location of /moved
    requests: list[dict[str, str]]

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.server_port}/weights.trch"

    def handle_error(self, request: object, client_address: object) -> None:
        """Stay quiet about clients that leave."""


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name that http.server gives
        """Stay quiet."""

    def do_GET(self) -> None:
        server = self.server
        server.requests.append({name.lower(): value for name, value in self.headers.items()})
        if self.path == "/moved" and server.redirect:
            self.send_response(302)
            self.send_header("Location", server.redirect)
            self.end_headers()
            return
        if self.path != "/weights.trch":
            self.send_error(404)
            return
        start = self._start()
        if start >= len(server.content) and start:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(server.content)}")
            self.end_headers()
            return
        body = server.content[start:]
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(server.content) - 1}/{len(server.content)}")
        if server.tells_length:
            self.send_header("Content-Length", str(len(body)))
        for name, value in (("ETag", server.etag), ("Last-Modified", server.modified)):
            if value is not None:
                self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body if server.cut_after is None else body[: server.cut_after])

    def _start(self) -> int:
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if asked is None or not self.server.honours_range:
            return 0
        current = self.server.etag or self.server.modified
        same = self.headers.get("If-Range") == current or not self.server.honours_if_range
        return int(asked[1]) if same else 0


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """Return a certificate for 127.0.0.1 and its key; skips the test where openssl is absent."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl, which makes the certificate of the local server, is not on this machine")
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1"),
            *("-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)),
        ],
        check=True,
        capture_output=True,
    )
    return certificate, key


@contextmanager
def serving(certificate: Path, key: Path) -> Iterator[Server]:
    """Yield a server that runs."""
    server = Server(("127.0.0.1", 0), _Handler)
    server.requests = []
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
