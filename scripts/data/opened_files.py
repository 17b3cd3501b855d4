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
"""Files that were opened when a case was checked, kept with the case until their contents are used.

A list of thousands of cases is checked long before its last case is read, so what is kept has to be small: an opened
file holds no voxels, and a DICOM series its slices as columns (:mod:`scripts.data.dicom_packing`).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Final, Protocol

logger = logging.getLogger(__name__)

OPENED: Final = "opened"
"""Entry of a case: opened files by the names of the entries that hold their paths."""


class OpenedFile(Protocol):
    """A file whose header, or all of which, was read."""

    @property
    def path(self) -> str:
        """Return the file."""

    def is_current(self) -> bool:
        """Tell whether the file is still the one that was opened."""


class Kept(bytes):
    """Carries an opened file through MONAI's collation and decollation, which pass on tensors, numbers, texts alone."""

    opened: Any

    @classmethod
    def of(cls, opened: OpenedFile) -> Kept:
        """Return what a case is to hold of an opened file."""
        kept = cls()
        kept.opened = opened
        return kept

    def __repr__(self) -> str:
        """Return what a person needs of it in a listing of a case."""
        return f"<opened file {self.opened.path}>"


def opened_file(case: Mapping[Any, Any], key: str, path: str) -> Any:
    """Return the opened file of a case entry, or None where it has to be opened: anew if it has changed.

    A cohort can wait for hours, and a file may be repaired or exported again meanwhile: then what is registered is the
    file as it is, and report.json records its size and time of change.

    Args:
        case: may lack opened files.
        key: entry of the file.
        path: of the file that is wanted.
    """
    kept = (case.get(OPENED) or {}).get(key)
    opened = None if kept is None else kept.opened
    if opened is None or opened.path != path:
        return None
    if not opened.is_current():
        logger.info("%s: '%s' has changed since it was checked; it is opened anew", key, path)
        return None
    return opened
