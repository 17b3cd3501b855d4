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
"""Files appear whole or not at all: written under a temporary name in the same folder, then renamed."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from fnmatch import fnmatchcase
from pathlib import Path

from scripts.utils.errors import InputError


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside ``path``, with its suffix, and rename it to ``path`` when the block succeeds.

    The folder is made if missing. When the block fails, the temporary file is removed and an older ``path`` stays.

    Raises:
        InputError: the file can't be written (disk full, no permission, ...), naming it.
    """
    path = Path(path)
    temporary = path.with_name(f".{os.getpid()}.{path.name}")  # writers choose the format by the suffix
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except InputError:
        raise
    except OSError as error:
        raise unwritable(path, error.strerror or error) from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def reserve(path: str | os.PathLike[str], size: int) -> None:
    """Make a file of a size, so that a library that can't tell a full disk may write it.

    Args:
        path: the file; what it holds is lost.
        size: bytes.

    Raises:
        OSError: there is no room, or no permission.
    """
    with open(path, "wb") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, size)
            return
        except AttributeError:  # macOS, Windows
            pass
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                raise
        if shutil.disk_usage(Path(path).parent).free < size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def remove(path: str | os.PathLike[str]) -> None:
    """Remove a file or a folder of results if it is there.

    Raises:
        InputError: it can't be removed, naming it.
    """
    try:
        if Path(path).is_dir():
            shutil.rmtree(path)
        Path(path).unlink(missing_ok=True)
    except OSError as error:
        raise unwritable(path, error.strerror or error) from error


def sweep(folder: str | os.PathLike[str], names: Iterable[str]) -> None:
    """Remove what killed processes left half written in a folder.

    Args:
        folder: of results.
        names: of the results, or patterns with ``*``; other files that happen to be named alike stay.
    """
    wanted = set(names)
    for path in Path(folder).iterdir() if Path(folder).is_dir() else ():
        temporary = re.match(r"\.(\d+)\.(.*)", path.name)  # of `replacing` and of scripts.data.dicom_writing
        if temporary and any(fnmatchcase(temporary[2], name) for name in wanted) and not _runs(int(temporary[1])):
            with suppress(InputError):
                remove(path)


def _runs(process: int) -> bool:
    """Tell whether another process of this number is at work."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return process != os.getpid()


def unwritable(path: str | os.PathLike[str], reason: object) -> InputError:
    """Return the error for a file that can't be written, with what helps against that reason."""
    advice = "free space on the disk, or give another output_dir"
    if reason == os.strerror(errno.ENAMETOOLONG):
        advice = (
            f"its name has {len(os.fsencode(Path(path).name))} bytes: give the inputs shorter names, or the case a name"
        )
    elif reason in (os.strerror(errno.EACCES), os.strerror(errno.EPERM), os.strerror(errno.EROFS)):
        advice = "check the permissions of its folder, or give another output_dir"
    return InputError(f"'{path}' can't be written ({reason}); {advice}")
