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
"""A fast look at every file of a training list before anything heavy starts: it is there, readable and whole.

Headers are read, not voxels. Whether a NIfTI file was cut short shows by its length (compressed: by the length that
gzip notes in the last four bytes), so that thousands of files take seconds.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nibabel as nib
from tqdm import tqdm

from .errors import InputError, InputFileError
from .training_preprocessing import AddLandmarksd
from .validation import check_header

MOST_NAMED = 5  # files in one error line


def check_files(records: Sequence[Mapping[str, Any]], progress: bool = True) -> int:
    """Check all files that records name; return how many.

    Args:
        records: of :mod:`scripts.training_lists`.
        progress: show a progress bar.

    Raises:
        InputError: naming the files that can't be used, all at once.
    """
    images = [image for record in records for image in (record, record.get("fixed"), record.get("moving")) if image]
    files: dict[tuple[str, str], tuple[Any, ...]] = {}
    for image in images:
        frame = image.get("frame")
        for path in (*image.get("images", {}).values(), *([image["image"]] if "image" in image else [])):
            files["image", str(path)] = (frame,)
        for key in ("mask", "label"):
            if key in image:
                files[key, str(image[key])] = (frame,)
        if "landmarks" in image:
            files["landmarks", str(image["landmarks"])] = (image.get("landmark_space", "LPS"),)
    jobs = [(kind, path, *rest) for (kind, path), rest in files.items()]
    with ThreadPoolExecutor(min(16, (os.cpu_count() or 1) * 4)) as pool:
        found = list(tqdm(pool.map(_problem, jobs), total=len(jobs), desc="checking files", disable=not progress))
    problems = [problem for problem in found if problem]
    if problems:
        more = f" (and {len(problems) - MOST_NAMED} more files)" if len(problems) > MOST_NAMED else ""
        raise InputError(
            f"{len(problems)} of {len(jobs)} files can't be used: {'; '.join(problems[:MOST_NAMED])}{more}"
        )
    return len(jobs)


def _problem(job: tuple[Any, ...]) -> str | None:
    """Return what is wrong with a file, or None."""
    kind, path, setting = job
    try:
        if kind == "landmarks":
            if str(setting).lower() != "voxel":
                AddLandmarksd()({"landmarks": path, "landmark_space": setting})
            elif not Path(path).read_text(encoding="utf-8").strip():
                raise InputError(f"landmarks '{path}' is empty")
        else:
            check_header(kind, path, setting)
            check_length(path)
    except (InputError, OSError, UnicodeDecodeError) as error:
        return str(error)
    return None


def check_length(path: str) -> None:
    """Refuse a NIfTI file that is shorter than its header says; other formats pass.

    Raises:
        InputFileError: naming the file, what it should hold and what it holds.
    """
    name = path.lower()
    if not name.endswith((".nii", ".nii.gz")):
        return
    try:
        image: Any = nib.load(path)
    except nib.filebasedimages.ImageFileError:  # another format of that name, which ITK reads
        return
    offset = int(image.dataobj.offset)
    size = image.get_data_dtype().itemsize
    for axis in image.shape:
        size *= int(axis)
    expected = offset + size
    with open(path, "rb") as file:
        is_compressed = file.read(2) == b"\x1f\x8b"
        file.seek(-min(4, os.fstat(file.fileno()).st_size), os.SEEK_END)
        tail = file.read(4)
    if is_compressed:
        # gzip notes the length of what it holds, modulo 2^32; a file that was cut ends in other bytes
        noted = struct.unpack("<I", tail)[0]
        whole = noted == expected % 2**32 or expected % 2**32 < noted <= expected % 2**32 + 4096
    else:
        noted = Path(path).stat().st_size
        whole = noted >= expected
    if not whole:
        raise InputFileError(
            f"'{path}' is cut short or damaged: its header announces {expected} bytes, it ends with a note of {noted};"
            " copy or export it again"
        )
