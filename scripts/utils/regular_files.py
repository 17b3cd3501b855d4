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
"""Refuse what is no file, before it is opened: a pipe would never answer. The first bytes of a file, and its state."""

from __future__ import annotations

import hashlib
import os
import re
import stat
from pathlib import Path

from scripts.utils.errors import InputFileError

HEADER_BYTES = 65536
DATA_FILE = re.compile(rb"(?im)^(?:data[ ]?file:|ElementDataFile\s*=)[ \t]*([^\r\n]*)")


def check_file(path: str, named_by: str | None = None) -> None:
    """Refuse pipes, devices and sockets, which never end.

    Args:
        path: file or folder.
        named_by: the file whose header names ``path`` as the file of its voxels.

    Raises:
        InputFileError: naming the file.
    """
    where = "" if named_by is None else f", where the header of '{named_by}' says its voxels are,"
    try:
        mode = Path(path).stat().st_mode
    except (OSError, ValueError) as error:  # of a null byte in the name
        reason = getattr(error, "strerror", None) or error
        raise InputFileError(f"'{path}'{where} can't be read ({reason}); give an existing file") from error
    if not (stat.S_ISREG(mode) or (stat.S_ISDIR(mode) and named_by is None)):
        raise InputFileError(f"'{path}'{where} is a pipe, a device or a folder, not a file; give a file")


def read_start(path: str) -> bytes:
    """Return the first 64 KiB of a file, which hold its header; nothing of a folder."""
    if not Path(path).is_file():
        return b""
    with open(path, "rb") as file:
        return file.read(HEADER_BYTES)


def check_data_file(path: str, start: bytes) -> None:
    """Refuse pipes, devices and folders that an NRRD or MetaImage header names as the file of its voxels.

    Args:
        path: the header's file.
        start: its first bytes, of :func:`read_start`.

    Raises:
        InputFileError: naming both files.
    """
    found = DATA_FILE.search(start) if path.lower().endswith((".nrrd", ".nhdr", ".mha", ".mhd")) else None
    named = "" if found is None else os.fsdecode(found[1].strip())
    if "%" not in named and not re.fullmatch(r"(?i)LOCAL|LIST.*|", named):  # patterns and lists are ITK's to read
        check_file(str(Path(path).parent / named), named_by=path)


def file_state(path: str) -> str:
    """Return what changes when a file is written again: its size and time of change, of a folder those of its files."""
    if not Path(path).is_dir():
        held = Path(path).stat()
        return f"{held.st_size} {held.st_mtime_ns}"
    with os.scandir(path) as entries:
        found = sorted((one.name, one.stat().st_size, one.stat().st_mtime_ns) for one in entries if one.is_file())
    return hashlib.sha256(repr(found).encode()).hexdigest()
