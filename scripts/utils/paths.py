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
"""Paths that users give: made into text, checked to exist and to be readable or writable, before anything starts."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path
from typing import Any

from scripts.utils.errors import InputError, InputFileError
from scripts.utils.regular_files import check_file

IMAGE_SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd", ".dcm", ".gz")
# of the formats that ITK reads beside these: they are no part of a result's name, either
_OTHER_SUFFIXES = (
    *(".img.gz", ".hdr.gz", ".img", ".hdr", ".nia", ".tif", ".tiff", ".lsm", ".mnc", ".mnc2", ".mrc", ".rec", ".pic"),
    *(".gipl", ".gipl.gz", ".vtk", ".spr", ".hdf", ".h4", ".hdf4", ".he4", ".h5", ".hdf5", ".he5", ".hd5", ".dicom"),
    *(".ima", ".png", ".jpg", ".jpeg", ".bmp", ".j2k", ".jp2", ".jpt"),
)
LONGEST_NAME = 255  # bytes, on Linux, macOS and Windows alike
_BY_LENGTH = sorted((*IMAGE_SUFFIXES, *_OTHER_SUFFIXES), key=len, reverse=True)  # .nii.gz before .gz
POINT_SUFFIXES = (".csv", ".fcsv", ".mrk.json", ".vtk")


def stem(path: str) -> str:
    """Return a file's name without its image suffix."""
    name = Path(os.path.abspath(path)).name  # of a link its own name
    for suffix in _BY_LENGTH:
        if name.lower().endswith(suffix):
            return name[: -len(suffix)] or name
    return name


def from_home(text: str, base: Path = Path()) -> Path:
    """Return a path with ``~`` and ``~user`` replaced by the home folder.

    A name that begins with ~ stays as it is if such a file or folder exists in ``base``, or no such user.
    """
    path = Path(text)
    if text.startswith("~") and path.parts[0] != "~" and os.path.lexists(base / path.parts[0]):
        return path
    try:
        return path.expanduser()
    except RuntimeError:  # no such user
        return path


def is_absent(value: Any) -> bool:
    """Tell whether an option was left out: nothing, an empty cell, or the word None of a command line."""
    return value is None or (isinstance(value, str) and value.strip() in ("", "None"))


def path_text(option: str, value: Any) -> str:
    """Return a path as text; the command line parser makes tuples of a,b and numbers of 123."""
    if isinstance(value, (tuple, list)) and all(isinstance(part, (str, int)) for part in value):
        return ",".join(str(part) for part in value)
    if isinstance(value, bool) or not isinstance(value, (str, int, float, os.PathLike)):
        hint = " (a name that begins with - is taken for an option: write ./-NAME)" if value is True else ""
        raise InputError(f"{option} must be a path, got {value!r}{hint}")
    return str(value)


def existing_path(option: str, value: Any, base: Path) -> str:
    """Return an existing, readable path, absolute; ``a::b`` is also looked for as ``a#b``, which MONAI can't pass on.

    Links are not followed: a link's own name stays.
    """
    text = path_text(option, value)
    candidates = [text] if "::" not in text else [text, text.replace("::", "#")]
    paths = [path for path in (base / from_home(name, base) for name in candidates) if os.path.exists(path)]
    if not paths:
        check_name_length(option, base / text)
        hint = " (MONAI turns '#' into '::' in options)" if "::" in text else ""
        if base != Path() and not Path(text).is_absolute():
            hint = f" ('{text}' is taken relative to the folder of the list that names it){hint}"
        raise InputFileError(f"{option}: '{base / text}' does not exist{hint}; give an existing file")
    if len(paths) > 1:
        raise InputError(
            f"{option}: '{paths[0]}' and '{paths[1]}' both exist, and MONAI can't tell them apart; rename one"
        )
    path = paths[0]
    folder_allowed = not option.endswith(("landmarks", "datalist", "ckpt_path", "init_ckpt"))
    if path.is_dir() and not folder_allowed:
        raise InputFileError(f"{option}: '{path}' is a folder; give a file")
    try:
        check_file(str(path))  # before it is opened: a pipe would never answer
    except InputFileError as error:
        raise InputFileError(f"{option}: {error}") from error
    try:
        if path.is_dir():
            os.listdir(path)
        else:
            with open(path, "rb", buffering=0) as file:
                file.read(1)
    except OSError as error:
        raise InputFileError(f"{option}: '{path}' can't be read ({error.strerror}); check its permissions") from error
    return str(absolute(path))


def absolute(path: str | os.PathLike[str]) -> Path:
    """Return a path that means the same file whatever the working directory becomes; links are not followed."""
    return Path(os.path.abspath(from_home(os.fspath(path))))


def check_name_length(option: str, path: Path) -> None:
    """Refuse a path that the system takes for too long.

    Raises:
        InputError: naming the option, the name and its length.
    """
    longest = max((os.fsencode(part) for part in path.parts), key=len, default=b"")
    is_too_long = len(longest) > LONGEST_NAME  # may lie in a folder that is still to be made
    try:
        os.lstat(path)
    except OSError as error:
        is_too_long |= error.errno == errno.ENAMETOOLONG
    except ValueError as error:  # a zero byte
        raise InputError(f"{option}: '{path}' is no path ({error}); give another") from error
    if is_too_long:
        raise InputError(
            f"{option}: the path of {len(os.fsencode(path))} bytes with the name '{os.fsdecode(longest)}' of"
            f" {len(longest)} bytes is too long for this system; give a shorter one"
        )


def check_output_dir(output_dir: Any, option: str = "output_dir") -> Path:
    """Return the output folder, absolute, if it can be written or made, leaving nothing behind.

    Raises:
        InputError: no folder given, a file is in the way, or no right to write.
    """
    if is_absent(output_dir):
        raise InputError(f"{option} is missing; give --{option} FOLDER")
    text = path_text(option, output_dir)
    if "::" in text or "#" in text:
        raise InputError(f"{option} '{text}': MONAI turns '#' into '::' in options; give a folder without either")
    folder = from_home(text)
    if folder.parts[:1] and folder.parts[0].startswith("~") and not os.path.lexists(folder.parts[0]):
        raise InputError(
            f"{option} '{folder}': there is no user '{folder.parts[0][1:]}' whose home folder it could be; write"
            f" ./{folder} for a folder of that name"
        )
    home = from_home(folder.parts[0]) if (folder := Path(text)).parts[:1] and text.startswith("~") else None
    if home is not None and home.is_absolute() and not home.is_dir():
        raise InputError(f"{option} '{text}': the home folder '{home}' does not exist; give another folder")
    folder = absolute(text)
    check_name_length(option, folder)
    existing = folder
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir():
        raise InputError(f"{option} '{folder}' can't be made: '{existing}' is a file; give another folder")
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"{option} '{folder}' can't be written ({reason}); give another folder") from error
    return folder
