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
"""One run at a time in an output folder: a second one is refused, and a killed run leaves nothing that blocks."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from scripts.utils.atomic import unwritable
from scripts.utils.errors import InputError
from scripts.utils.paths import absolute

LOCK_NAME = ".lock"


@contextmanager
def alone_in(folder: str | os.PathLike[str], rank: int = 0) -> Iterator[None]:
    """Keep other runs out of a folder, which is made if missing, while the context lasts.

    The system's lock of the folder's :data:`LOCK_NAME` ends with the process; the file is removed at the context's end,
    and does not block where a killed run left it. File systems without locks have none. Of the processes of one run the
    first one locks, before the others go on and until all of them are at the context's end.

    Args:
        folder: where results go.
        rank: of this process.

    Raises:
        InputError: another run works there, or the folder can't be made.
    """
    if rank > 0:
        _meet()
        yield
        _meet()
        return
    folder = absolute(folder)
    is_new = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(folder, error.strerror or error) from error
    try:
        refusal = f"another run is writing to '{folder}'; wait until it has ended, or give another output folder"
        with locked(folder / LOCK_NAME, refusal):
            _meet()
            yield
            _meet()
    finally:
        if is_new:
            with suppress(OSError):  # there are results in it
                folder.rmdir()


@contextmanager
def locked(path: Path, refusal: str) -> Iterator[None]:
    """Hold the system's lock of a file, which is made and removed, while the context lasts.

    Args:
        path: of the file; file systems without locks have none.
        refusal: what the error says.

    Raises:
        InputError: another process holds the lock.
    """
    lock = FileLock(path)
    try:
        lock.acquire(blocking=False)
    except Timeout as error:
        raise InputError(refusal) from error
    except (OSError, NotImplementedError):  # a file system without locks, or where nothing can be written at all
        pass
    try:
        yield
    finally:
        if lock.is_locked:
            with suppress(OSError):  # Windows keeps a file that is open
                path.unlink()
            lock.release()


def _meet() -> None:
    """Wait for the other processes of this run."""
    import torch  # here, as a download needs no PyTorch

    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()
