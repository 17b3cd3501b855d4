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
"""Count how often files are opened, to find those that are read twice."""

from __future__ import annotations

import ctypes
import os
import struct
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

_IN_OPEN, _IN_NONBLOCK = 0x20, 0o4000
_EVENT = struct.Struct("iIII")


@contextmanager
def counted_opens(paths: Sequence[str | Path]) -> Iterator[Counter[str]]:
    """Count how often each of some files is opened, by Python or by any library: Linux's inotify.

    The counter is filled when the context ends; of a folder, each file in it is counted.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    watcher = libc.inotify_init1(_IN_NONBLOCK)
    if watcher < 0:
        raise OSError(ctypes.get_errno(), "inotify_init1")
    counts: Counter[str] = Counter()
    try:
        files = [
            str(one) for path in paths for one in ([path] if Path(path).is_file() else sorted(Path(path).iterdir()))
        ]
        names = {libc.inotify_add_watch(watcher, os.fsencode(file), _IN_OPEN): file for file in files}
        counts.update(dict.fromkeys(files, 0))
        yield counts
        events = b""
        while part := _read(watcher):
            events += part
        position = 0
        while position < len(events):
            watch, _, _, length = _EVENT.unpack_from(events, position)
            counts[names[watch]] += 1
            position += _EVENT.size + length
    finally:
        os.close(watcher)


def _read(watcher: int) -> bytes:
    try:
        return os.read(watcher, 65536)
    except BlockingIOError:  # nothing is left
        return b""
