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
"""A real server process and what a client sends to it."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import requests
from monailabel.client import MONAILabelClient

APP = Path(__file__).resolve().parents[1]
ROOT = APP.parent
MODEL = "unigradicon"


class Server:
    """A running server.

    Args:
        process: of the server.
        port: on 127.0.0.1.
        work_dir: where it writes.
        log: its output.
    """

    def __init__(self, process: subprocess.Popen, port: int, work_dir: Path, log: Path) -> None:
        self.process, self.work_dir, self.log = process, work_dir, log
        self.url = f"http://127.0.0.1:{port}"

    def client(self, folder: Path) -> MONAILabelClient:
        """Return the client that 3D Slicer's module uses."""
        return MONAILabelClient(self.url, tmpdir=str(folder), client_id="annotator")

    def infer(self, image: str, /, output: str = "all", files: Any = None, **params: Any) -> requests.Response:
        """Post an infer request as OHIF does: params as a form field."""
        query = {"image": image, "output": output}
        data = {"params": json.dumps(params)}
        return requests.post(f"{self.url}/infer/{MODEL}", params=query, data=data, files=files, timeout=600)

    def params(self, image: str, **params: Any) -> dict[str, Any]:
        """Return the params of an answer that must be good."""
        answer = self.infer(image, output="json", **params)
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def result(self, image: str, path: Path, **params: Any) -> Path:
        """Return the file of an answer that must be good."""
        answer = self.infer(image, output="image", **params)
        assert answer.status_code == 200, answer.text
        path.write_bytes(answer.content)
        return path

    def info(self) -> dict[str, Any]:
        """Return what the server offers."""
        return dict(requests.get(f"{self.url}/info/", timeout=60).json())

    def memory_mib(self) -> float:
        """Return the resident memory of the server."""
        return psutil.Process(self.process.pid).memory_info().rss / 2**20

    def open_files(self) -> int:
        """Return the number of file descriptors of the server."""
        return psutil.Process(self.process.pid).num_fds()


@contextlib.contextmanager
def running_server(command: list[str], folder: Path, work_dir: Path, port: int) -> Iterator[Server]:
    """Start a server and wait until it answers; end it afterwards."""
    log = folder / "server.log"
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    environment.pop("OMP_WAIT_POLICY", None)  # of CI, for suites of two processes: it halves the speed of one
    with log.open("wb") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT, cwd=folder, env=environment)
    try:
        server = Server(process, port, work_dir, log)
        for _ in range(240):
            assert process.poll() is None, log.read_text()[-3000:]
            with contextlib.suppress(requests.ConnectionError):
                requests.get(f"{server.url}/info/", timeout=60)
                break
            time.sleep(0.5)
        else:
            raise AssertionError(f"no answer: {log.read_text()[-3000:]}")
        yield server
    finally:
        process.terminate()
        process.wait(timeout=30)


def free_port() -> int:
    """Return a port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def serve_command(studies: Path, work_dir: Path, port: int, *more: str) -> list[str]:
    """Return the command of the docs."""
    return [
        *(sys.executable, str(APP / "serve.py"), "--studies", str(studies), "--work_dir", str(work_dir)),
        *("--port", str(port), *more),
    ]
