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
"""Refuse what is no file, before it is opened: a pipe would never answer."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

from scripts.utils.errors import InputFileError


def check_regular(path: str) -> None:
    """Refuse pipes, devices and sockets, which never end, also as the file that a header names for its voxels.

    Raises:
        InputFileError: naming the file.
    """
    for name in (path, *_data_files(path)):
        try:
            mode = Path(name).stat().st_mode
        except (OSError, ValueError) as error:  # of a null byte in the name
            reason = getattr(error, "strerror", None) or error
            where = "" if name == path else f", where the header of '{path}' says its voxels are,"
            raise InputFileError(f"'{name}'{where} can't be read ({reason}); give an existing file") from error
        if not (stat.S_ISREG(mode) or (stat.S_ISDIR(mode) and name == path)):
            where = "" if name == path else f", where the header of '{path}' says its voxels are,"
            raise InputFileError(f"'{name}'{where} is a pipe, a device or a folder, not a file; give a file")


_HEADER_BYTES = 65536

_DATA_FILE = re.compile(rb"(?im)^(?:data[ ]?file:|ElementDataFile\s*=)[ \t]*([^\r\n]*)")


def _data_files(path: str) -> Iterator[str]:
    """Yield the files in which the voxels of an NRRD or MetaImage header lie, where it names single ones."""
    if not path.lower().endswith((".nrrd", ".nhdr", ".mha", ".mhd")) or not Path(path).is_file():
        return
    with open(path, "rb") as file:
        found = _DATA_FILE.search(file.read(_HEADER_BYTES))
    if found is None:
        return
    named = os.fsdecode(found[1].strip())
    if "%" not in named and not re.fullmatch(r"(?i)LOCAL|LIST.*|", named):  # patterns and lists are ITK's to read
        yield str(Path(path).parent / named)
