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
"""Requirements files with hashes, as pip and uv write them: read, written, compared with what is installed."""

from __future__ import annotations

import re
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
DEMO_LOCK = ROOT / "requirements.lock"  # what make demo installs
BUILD_LOCK = ROOT / "requirements-build.lock"  # builds packages that come as source
CPU_LOCK = ROOT / "requirements-cpu.lock"  # torch without CUDA, where pip finds it
CUDA_LOCK = ROOT / "requirements-cuda.lock"  # what builds of torch with CUDA need
_PIN = re.compile(r"([A-Za-z0-9._-]+)==([^\s;]+)(?:\s*;\s*(.+))?")


class Pin(NamedTuple):
    """One package of a lock."""

    name: str  # normalized: lower case, dashes
    version: str
    marker: str  # where it is needed, as in PEP 508; empty: everywhere
    hashes: tuple[str, ...]  # SHA-256 of every file that may be installed, without "sha256:"

    def lines(self) -> str:
        """Return the entry as pip reads it."""
        marker = f" ; {self.marker}" if self.marker else ""
        return " \\\n    ".join([f"{self.name}=={self.version}{marker}", *(f"--hash=sha256:{x}" for x in self.hashes)])


def normalized(name: str) -> str:
    """Return a package's name in the form of PEP 503."""
    return re.sub(r"[-_.]+", "-", name).lower()


def read_pins(path: Path) -> dict[str, Pin]:
    """Return the entries of a lock, or of a list of versions such as constraints.txt, by normalized name.

    Raises:
        ValueError: a line is no ``name==version``, or a hash is no SHA-256.
    """
    text = "\n".join(line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("#"))
    pins = {}
    for entry in filter(None, (line.strip() for line in re.sub(r"\\\n", " ", text).splitlines())):
        requirement, *hashes = (part.strip() for part in entry.split("--hash="))
        match = _PIN.fullmatch(requirement)
        if match is None or not all(re.fullmatch(r"sha256:[0-9a-f]{64}", value) for value in hashes):
            raise ValueError(f"{path}: expected name==version and --hash=sha256:..., got '{entry[:80]}'")
        name = normalized(match[1])
        digests = tuple(value.removeprefix("sha256:") for value in hashes)
        pins[name] = Pin(name, match[2], match[3] or "", digests)
    return pins


def write_pins(path: Path, pins: Iterable[Pin], comment: str) -> None:
    """Write a lock, sorted by name, under a comment of one or more lines."""
    head = "".join(f"# {line}\n" for line in comment.splitlines())
    path.write_text(head + "".join(f"{pin.lines()}\n" for pin in sorted(pins)), encoding="utf-8")


def public_version(version: str) -> str:
    """Return a version without its local part: 2.13.0+cpu is a build of 2.13.0."""
    return version.partition("+")[0]


def installed_version(name: str) -> str | None:
    """Return the version of an installed package without its local part, or None."""
    try:
        return public_version(metadata.version(name))
    except metadata.PackageNotFoundError:
        return None
