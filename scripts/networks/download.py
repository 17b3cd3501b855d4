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
"""Download published weights: ``python -m scripts download unigradicon``.

HTTPS only, also where a server redirects to. What came is kept in ``FILE.part`` and the next call goes on there; the
file gets its name when it is whole and checked, and its SHA-256 is noted beside it in ``FILE.sha256``.
"""

from __future__ import annotations

import hashlib
import logging
import os
import ssl
from contextlib import suppress
from pathlib import Path
from typing import IO, NamedTuple

import yaml

from scripts.networks.published_weights import (
    PUBLISHED_FILES,
    ROOT,
    bundle_folder,
    record_of,
    recorded_sha256,
    sha256_of,
)
from scripts.networks.transfers import check_https, remove_part, transfer
from scripts.utils.atomic import replacing
from scripts.utils.errors import InputError, InputFileError

logger = logging.getLogger(__name__)

LISTING = "large_files.yml"


class Source(NamedTuple):
    """An entry of large_files.yml."""

    url: str
    hash_val: str  # empty: none is published
    hash_type: str


def read_source(model: str, bundle: Path) -> Source:
    """Return where the weights of a model are published: from the bundle's list, or from this bundle's.

    Raises:
        InputError: an unknown model; the list can't be read or does not have it.
    """
    if model not in PUBLISHED_FILES:
        raise InputError(f"model: expected one of {', '.join(PUBLISHED_FILES)}, got '{model}'")
    path = bundle / LISTING if (bundle / LISTING).is_file() else ROOT / LISTING
    try:
        entries = yaml.safe_load(path.read_text(encoding="utf-8"))["large_files"]
        entry = next(entry for entry in entries if entry["path"] == PUBLISHED_FILES[model])
        source = Source(str(entry["url"]), entry.get("hash_val") or "", entry.get("hash_type") or "sha256")
    except (OSError, ValueError, yaml.YAMLError, LookupError, TypeError, AttributeError, StopIteration) as error:
        raise InputFileError(
            f"{path} does not list {PUBLISHED_FILES[model]} with a url; fetch the repository again"
        ) from error
    if source.hash_type not in hashlib.algorithms_guaranteed or source.hash_type.startswith("shake"):
        raise InputError(f"{path}: hash_type '{source.hash_type}' is unknown; write sha256")
    return source


def download(model: str, bundle_root: str | Path = ".", context: ssl.SSLContext | None = None) -> Path:
    """Download the weights of a model into a bundle, or leave them if they are there; return their path.

    Args:
        model: a key of :data:`scripts.networks.published_weights.PUBLISHED_FILES`.
        bundle_root: folder that holds models/.
        context: certificates to trust; by default those of the system.

    Raises:
        InputError: no HTTPS, no connection, a hash or size that differs, no space, ...; what came is kept if it helps.
    """
    bundle = bundle_folder(bundle_root)
    source, target = read_source(model, bundle), bundle / PUBLISHED_FILES[model]
    if target.is_file() and _is_intact(target, source):
        return target
    sha256 = fetch(source, target, context)
    logger.info("%s is downloaded, SHA-256 %s", target, sha256)
    return target


def _is_intact(target: Path, source: Source) -> bool:
    """Tell whether a file is the one that was published or downloaded, as far as a hash is known."""
    try:
        sha256, recorded = sha256_of(target), recorded_sha256(target)
        listed = _digest(target, source.hash_type) if source.hash_val else ""
    except OSError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"download: '{target}' can't be read ({error.strerror}); check its permissions") from error
    if recorded not in (None, sha256) or listed != source.hash_val.lower():
        logger.warning("%s (SHA-256 %s) is not the file that was downloaded: fetching it again", target, sha256)
        return False
    note = "" if recorded else "; where it is from is not noted: remove it to fetch it again"
    logger.info("%s is there, SHA-256 %s%s", target, sha256, note)
    return True


def fetch(source: Source, target: Path, context: ssl.SSLContext | None = None) -> str:
    """Download a file to ``target`` and return its SHA-256; goes on with what an earlier call left.

    Raises:
        InputError: see :func:`download`.
    """
    check_https(source.url)
    part = target.with_name(f"{target.name}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with part.open("ab") as file:
            _lock(file, part)
            transfer(source.url, part, file, context)
        found = _digest(part, source.hash_type)
        if source.hash_val and found != source.hash_val.lower():
            remove_part(part)
            raise InputError(
                f"download: {source.url} has {source.hash_type} {found}, expected {source.hash_val}: the file was"
                " removed; try again later, and if it stays so, do not use it"
            )
        sha256 = sha256_of(part)
        with replacing(record_of(target)) as record:
            record.write_text(f"{sha256}  {target.name}\n", encoding="utf-8")
        os.replace(part, target)
        remove_part(part)
    except OSError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"download: '{part}' can't be written ({error.strerror or error}); free space on the disk or check the"
            " folder's permissions, then run the same command again: it goes on where it was"
        ) from error
    finally:
        with suppress(OSError):
            if not part.stat().st_size:
                remove_part(part)
    return sha256


def _lock(file: IO[bytes], part: Path) -> None:
    """Let one process at a time write a .part file, where the system has such locks."""
    try:
        import fcntl
    except ImportError:  # Windows
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise InputError(f"download: another process is writing '{part}'; wait until it is done") from error


def _digest(path: Path, kind: str) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, kind).hexdigest()
