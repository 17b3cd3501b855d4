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

import gzip
import logging
import os
import struct
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nibabel.orientations import aff2axcodes
from tqdm import tqdm

from scripts.data.header_checks import check_header
from scripts.data.landmarks import read_landmarks
from scripts.data.nifti_reading import NiftiVoxels, voxels_end
from scripts.data.volume_integrity import voxel_file
from scripts.geometry.world_axes import LPS_RAS
from scripts.utils.errors import InputError, InputFileError
from scripts.utils.itk_modules import load_itk_modules

logger = logging.getLogger(__name__)

MOST_NAMED = 5  # files in one error line


def check_files(records: Sequence[Mapping[str, Any]], progress: bool = True, match_orientation: bool = False) -> int:
    """Check all files that records name; return how many. Warn of sets whose images have different orientations.

    Args:
        records: of :mod:`scripts.training.lists`.
        progress: show a progress bar.
        match_orientation: images are turned alike, so that orientations may differ without a warning.

    Raises:
        InputError: naming the files that can't be used, all at once.
    """
    files: dict[tuple[str, str], tuple[Any, ...]] = {}
    set_of: dict[str, str] = {}
    for record, image in ((r, i) for r in records for i in (r, r.get("fixed"), r.get("moving")) if i):
        frame = image.get("frame")
        for path in (*image.get("images", {}).values(), *([image["image"]] if "image" in image else [])):
            files["image", str(path)] = (frame,)
            set_of[str(path)] = str(record.get("set", "images"))
        for key in ("mask", "label"):
            if key in image:
                files[key, str(image[key])] = (frame,)
        if "landmarks" in image:
            files["landmarks", str(image["landmarks"])] = (image.get("landmark_space", "LPS"),)
    jobs = [(kind, path, *rest) for (kind, path), rest in files.items()]
    if jobs:
        load_itk_modules()
    with ThreadPoolExecutor(min(16, (os.cpu_count() or 1) * 4)) as pool:
        found = list(tqdm(pool.map(_look, jobs), total=len(jobs), desc="checking files", disable=not progress))
    problems = [problem for problem, _ in found if problem]
    if problems:
        more = f" (and {len(problems) - MOST_NAMED} more files)" if len(problems) > MOST_NAMED else ""
        raise InputError(
            f"{len(problems)} of {len(jobs)} files can't be used: {'; '.join(problems[:MOST_NAMED])}{more}"
        )
    orientations: dict[str, Counter[str]] = {}
    for (kind, path, _), (_, orientation) in zip(jobs, found, strict=True):
        if kind == "image":
            orientations.setdefault(set_of[path], Counter())[orientation] += 1
    for name, counts in orientations.items():
        if len(counts) > 1 and not match_orientation:
            logger.warning(
                "data set '%s' mixes orientations (%s): such pairs start flipped against each other; give"
                " --match_orientation True, or reorient them",
                *(name, ", ".join(f"{count} {code}" for code, count in counts.most_common())),
            )
    return len(jobs)


def _look(job: tuple[Any, ...]) -> tuple[str | None, str]:
    """Return what is wrong with a file, or None, and the orientation of an image, such as LPS."""
    kind, path, setting = job
    orientation = ""
    try:
        if kind == "landmarks":
            read_landmarks(path, str(setting), torch.eye(4))
        else:
            opened = check_header(kind, path, setting)
            if isinstance(opened.voxels, NiftiVoxels):
                check_length(opened.voxels)
            # from LPS to the RAS that the letters stand for
            orientation = "".join(aff2axcodes(LPS_RAS.numpy() @ _square(opened.header.direction)))
    except (InputError, OSError, UnicodeDecodeError) as error:
        return str(error), orientation
    return None, orientation


def _square(direction: np.ndarray) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = direction[:3, :3]
    return affine


def check_length(nifti: NiftiVoxels) -> None:
    """Refuse a NIfTI file that is shorter than its header states.

    Raises:
        InputFileError: naming the file, what it should hold and what it holds.
    """
    expected, path = voxels_end(nifti.path, nifti.raw), voxel_file(nifti.path)
    with open(path, "rb") as file:
        is_compressed = file.read(2) == b"\x1f\x8b"
        file.seek(-min(4, os.fstat(file.fileno()).st_size), os.SEEK_END)
        tail = file.read(4)
    if is_compressed:
        # gzip notes the length of what it holds, modulo 2^32; a file that was cut ends in other bytes
        noted = struct.unpack("<I", tail)[0]
        whole = noted == expected % 2**32 or expected % 2**32 < noted <= expected % 2**32 + 4096
        if not whole:  # several members, as bgzip and pigz may write: the note is of the last one
            noted = _unpacked_length(path)
            whole = noted >= expected
    else:
        noted = Path(path).stat().st_size
        whole = noted >= expected
    if not whole:
        raise InputFileError(
            f"'{path}' is cut short or damaged: its header announces {expected} bytes, it holds {max(noted, 0)};"
            " copy or export it again"
        )


def _unpacked_length(path: str) -> int:
    """Return how many bytes a gzip file holds, -1 if it is damaged."""
    total = 0
    try:
        with gzip.open(path) as file:
            while part := file.read(2**22):
                total += len(part)
    except (OSError, EOFError, zlib.error):
        return -1
    return total
