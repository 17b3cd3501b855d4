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

import logging
import re
import shutil
import time
from pathlib import Path
from typing import Any

import itk
import numpy as np
from monailabel.utils.sessions import Sessions

from monailabel_app.request_errors import RequestError, plain_errors
from scripts.reading import VolumeReader
from scripts.validation import check_header

logger = logging.getLogger(__name__)

# what ITK must take a file of each suffix for: it looks at the content, too
_READERS = {".nii.gz": "NiftiImageIO", ".nii": "NiftiImageIO", ".nrrd": "NrrdImageIO", ".mha": "MetaImageIO"}
EXTENSIONS = tuple(f"*{suffix}" for suffix in _READERS)
_HEADER_BYTES = 65536
OLD_SECONDS = 6 * 3600  # no request takes so long


def check_volume_file(option: str, path: str) -> Any:
    """Read an uploaded file and return the ITK image.

    Raises:
        RequestError: see :func:`refuse_foreign_data`; no 3-D volume of scalars, or damaged.
    """
    refuse_foreign_data(option, path)
    with plain_errors({f"'{path}'": "the file", path: "the file"}):
        check_header(option, path)
        return VolumeReader().read(path)


def check_image_file(option: str, path: str) -> None:
    """Read an uploaded image.

    Raises:
        RequestError: as :func:`check_volume_file`, or constant, or with voxels that are no numbers.
    """
    values = itk.array_from_image(check_volume_file(option, path))
    if not np.isfinite(values).all():
        raise RequestError(f"{option}: it has voxels that are NaN or infinite; repair them first")
    if values.min() == values.max():
        raise RequestError(f"{option}: it is constant; there is nothing to register")


def refuse_foreign_data(option: str, path: str) -> None:
    """Refuse a header that names another file for the voxels: it would read any file of the server.

    Raises:
        RequestError: such a header, an unknown suffix, or a content that is not of the suffix's format.
    """
    suffix = next((suffix for suffix in _READERS if path.lower().endswith(suffix)), None)
    if suffix is None:
        raise RequestError(f"{option}: expected a file that ends in {', '.join(_READERS)}")
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
    """MONAI Label's sessions without unpacking of archives, and with ids that can't be paths."""

    def add_session(self, image: str, expiry: int = 0, uncompress: bool = False) -> Any:
        """Store uploaded files as a session.

        Raises:
            RequestError: an archive; its entries could lead anywhere.
        """
        if uncompress:
            raise RequestError("uncompress: archives are not unpacked; send the files of the series one by one")
        return super().add_session(image, expiry, False)

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
