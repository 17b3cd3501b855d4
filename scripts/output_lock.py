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
"""One run at a time in an output folder: a second one is refused, and nothing is left behind, even by a killed run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .atomic import unwritable
from .errors import InputError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


@contextmanager
def alone_in(folder: str | os.PathLike[str], rank: int = 0) -> Iterator[None]:
    """Keep other runs out of a folder, which is made if missing, while the context lasts.

    The system's lock is on the folder itself, so there is no file of it, and it ends with the process.

    Args:
        folder: where results go.
        rank: of this process among those of one run; only the first one locks.

    Raises:
        InputError: another run works there, or the folder can't be made.
    """
    if fcntl is None or rank > 0:
        yield
        return
    is_new = not Path(folder).exists()
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise unwritable(folder, error.strerror or error) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(
                f"another run is writing to '{folder}'; wait until it has ended, or give another output folder"
            ) from error
        except OSError:  # a file system without locks
            pass
        yield
    finally:
        os.close(descriptor)
        if is_new:
            with suppress(OSError):  # there are results in it
                Path(folder).rmdir()
