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
"""What clients send: volumes that hold their own data, and sessions that stay in their folder."""

from __future__ import annotations

import bz2
import logging
import re
import shutil
import tempfile
import time
import zlib
from pathlib import Path
from typing import Any

import itk
import numpy as np
from monailabel.utils.sessions import Sessions

from monailabel_app.request_errors import RequestError, plain_errors
from scripts.data.header import Header
from scripts.data.header_checks import check_header
from scripts.data.reading import read_header
from scripts.utils.errors import InputError

logger = logging.getLogger(__name__)

# what ITK must take a file of each suffix for: it looks at the content, too
_READERS = {".nii.gz": "NiftiImageIO", ".nii": "NiftiImageIO", ".nrrd": "NrrdImageIO", ".mha": "MetaImageIO"}
EXTENSIONS = tuple(f"*{suffix}" for suffix in _READERS)
_HEADER_BYTES = 65536
MAX_BYTES = 2 * 2**30  # of an upload, unpacked
_PIECE = 2**20  # bytes that are unpacked at a time
OLD_SECONDS = 6 * 3600  # no request takes so long


def check_volume_file(option: str, path: str, max_bytes: int = MAX_BYTES) -> Any:
    """Read an uploaded file and return the ITK image.

    Raises:
        RequestError: see :func:`refuse_foreign_data`; no 3-D volume of scalars, or damaged.
    """
    refuse_foreign_data(option, path, max_bytes)
    with plain_errors({f"'{path}'": "the file", path: "the file"}):
        opened = check_header(option, path)
        for warning in opened.header.warnings:
            logger.warning("%s", warning)
        return opened.read().image


def check_image_file(option: str, path: str, max_bytes: int = MAX_BYTES) -> None:
    """Read an uploaded image.

    Raises:
        RequestError: as :func:`check_volume_file`, or constant, or with voxels that are no numbers.
    """
    values = itk.array_from_image(check_volume_file(option, path, max_bytes))
    if not np.isfinite(values).all():
        raise RequestError(f"{option}: it has voxels that are NaN or infinite; repair them first")
    if values.min() == values.max():
        raise RequestError(f"{option}: it is constant; there is nothing to register")


def check_suffix(option: str, name: str | None) -> None:
    """Refuse a file whose name does not end as one of a volume does, before it is written.

    Raises:
        RequestError: naming the file.
    """
    if not (name or "").lower().endswith(tuple(_READERS)):
        raise RequestError(
            f"{option}: expected a file that ends in {', '.join(_READERS)}, got {Path(name or '').name[-60:]!r}"
        )


def too_large(option: str, max_bytes: int) -> RequestError:
    """Return the error for an upload above the limit."""
    return RequestError(
        f"{option}: more than {max_bytes / 2**30:.3g} GB unpacked; crop or resample it, or start the server with a"
        " larger --max_upload_gb",
        413,
    )


def refuse_large(option: str, path: str, max_bytes: int) -> None:
    """Refuse a file that is too large unpacked, or says so, without taking memory for it.

    Raises:
        RequestError: with the status 413.
    """
    with open(path, "rb") as file:
        start = file.read(_HEADER_BYTES)
    begins, packing = 0, b""
    if path.lower().endswith(".nrrd"):
        end = re.search(rb"\r?\n\r?\n", start)
        encoding = re.search(rb"(?im)^encoding:[ \t]*(\w+)", start)
        begins, packing = (end.end(), encoding[1].lower()) if end and encoding else (0, b"")
    elif path.lower().endswith(".mha"):
        end = re.search(rb"(?im)^ElementDataFile[^\n]*\n", start)
        begins, packing = (
            (end.end(), b"gz") if end and re.search(rb"(?im)^CompressedData\s*=\s*True", start) else (0, b"")
        )
    elif start[:2] == b"\x1f\x8b":
        packing = b"gz"
    size = Path(path).stat().st_size
    if packing[:2] in (b"gz", b"bz"):
        size = max(size, _unpacked_size(path, begins, packing[:2], max_bytes))
    if size > max_bytes + _HEADER_BYTES:
        raise too_large(option, max_bytes)
    try:
        header = read_header(path)
    except InputError:  # said by the checks that follow
        return
    if int(np.prod(header.shape, dtype=object)) * _voxel_bytes(header) > max_bytes:
        raise too_large(option, max_bytes)


def _voxel_bytes(header: Header) -> int:
    """Return the size of a voxel, or the least it can be where the type is not known."""
    return header.components * (np.dtype(header.dtype).itemsize if header.dtype else 1)


def _unpacked_size(path: str, begins: int, packing: bytes, most: int) -> int:
    """Return the number of bytes that a stream unpacks to, or one above ``most``; what is damaged ends the count."""
    count = 0
    with open(path, "rb") as file:
        file.seek(begins)
        data, unpacker = file.read(_PIECE), _unpacker(packing)
        try:
            while count <= most + _HEADER_BYTES:
                count += len(unpacker.decompress(data, _PIECE))
                if unpacker.eof:  # another stream may follow
                    data, unpacker = unpacker.unused_data, _unpacker(packing)
                elif packing == b"gz":
                    data = unpacker.unconsumed_tail
                else:
                    data = b""
                    if not unpacker.needs_input:
                        continue
                data = data or file.read(_PIECE)
                if not data:
                    break
        except (zlib.error, OSError, EOFError, ValueError):
            pass
    return count


def _unpacker(packing: bytes) -> Any:
    return zlib.decompressobj(wbits=47) if packing == b"gz" else bz2.BZ2Decompressor()


def refuse_foreign_data(option: str, path: str, max_bytes: int = MAX_BYTES) -> None:
    """Refuse a header that names another file for the voxels: it would read any file of the server.

    Args:
        option: for the message.
        path: of the upload.
        max_bytes: of it, unpacked.

    Raises:
        RequestError: such a header, an unknown suffix, too much data, or a content that is not of the suffix's format.
    """
    check_suffix(option, path)
    suffix = next(suffix for suffix in _READERS if path.lower().endswith(suffix))
    with open(path, "rb") as file:
        start = file.read(_HEADER_BYTES)
    if suffix == ".mha":
        # its only mention, at the start of a line: one within a comment could hide another
        mentions = len(re.findall(rb"(?i)ElementDataFile", start))
        own = mentions == 1 and re.search(rb"[\r\n]ElementDataFile\s*[=:]\s*LOCAL\s*[\r\n]", start) is not None
    elif suffix == ".nrrd":
        end = re.search(rb"\r?\n\r?\n", start)
        own = end is not None and not re.search(rb"(?i)[\r\n]\s*data\s*file\s*:", start[: end.start()])
    else:
        own = True
    if not own:
        raise RequestError(f"{option}: its header names another file for the voxels; send one file that holds them")
    reader = itk.ImageIOFactory.CreateImageIO(path, itk.CommonEnums.IOFileMode_ReadMode)
    if reader is None or reader.GetNameOfClass() != _READERS[suffix]:
        raise RequestError(f"{option}: the file is no {suffix} file, or can't be read")
    refuse_large(option, path, max_bytes)


def sweep(folder: Path) -> None:
    """Remove what requests that were killed left behind.

    Args:
        folder: the app's temporary folder.
    """
    for path in folder.iterdir():
        try:
            if time.time() - path.stat().st_mtime > OLD_SECONDS:
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        except OSError as error:  # another process was faster
            logger.debug("%s is left: %s", path, error)


class CheckedSessions(Sessions):
    """MONAI Label's sessions without unpacking of archives, with checked files, and with ids that can't be paths.

    Args:
        store_path: folder of the sessions.
        expiry: seconds that a session is kept.
        max_bytes: of a file, unpacked.
    """

    def __init__(self, store_path: str = "", expiry: int = 3600, max_bytes: int = MAX_BYTES) -> None:
        super().__init__(store_path, expiry)
        self.max_bytes = max_bytes

    def add_session(self, data_file: str, expiry: int = 0, uncompress: bool = False, session_id: Any = None) -> Any:
        """Store an uploaded volume, or the files of a DICOM series, as a session.

        Raises:
            RequestError: an archive, whose entries could lead anywhere; a file that is no volume; no DICOM series.
        """
        path = Path(data_file)
        try:
            if uncompress:
                raise RequestError("uncompress: archives are not unpacked; send the files of the series one by one")
            if path.is_dir():
                with plain_errors({f"'{data_file}'": "the upload", data_file: "the upload"}):
                    header = check_header("session", data_file).header
                if int(np.prod(header.shape, dtype=object)) * _voxel_bytes(header) > self.max_bytes:
                    raise too_large("session", self.max_bytes)
            else:
                check_volume_file("session", data_file, self.max_bytes)
        except RequestError:
            received = path if path.is_dir() else path.parent
            if received.parent == Path(tempfile.gettempdir()):
                shutil.rmtree(received, ignore_errors=True)
            raise
        return super().add_session(data_file, expiry, False, session_id)

    def get_session(self, session_id: str, update_ts: bool = True, fetch_cache: bool = True) -> Any:
        """Return a session, or None."""
        return super().get_session(session_id, update_ts, fetch_cache) if _is_uuid(session_id) else None

    def remove_session(self, session_id: str) -> Any:
        """Remove a session."""
        if not _is_uuid(session_id):
            raise RequestError("session: the id is none of a session", 404)
        return super().remove_session(session_id)


def _is_uuid(text: Any) -> bool:
    return isinstance(text, str) and re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", text) is not None
