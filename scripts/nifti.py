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
"""Writing NIfTI: scalar and vector volumes, whole or not at all, compressed on all processors.

nibabel makes the header; the voxels are compressed here, in parallel, because a dense displacement field
(three floats a voxel, nearly incompressible) takes longer to compress than to compute.
"""

from __future__ import annotations

import itertools
import os
import struct
import zlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import BinaryIO

import nibabel as nib
import numpy as np

from .atomic import replacing

CHUNK_BYTES = 4 * 2**20
GZIP_HEADER = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x04\x03"  # deflate, no time stamp: the same bytes each time
DEFLATE_END = zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS).flush()


def write_nifti(
    path: str | os.PathLike[str], components: Iterable[np.ndarray], affine_ras: np.ndarray, vector: bool = False
) -> None:
    """Write a volume as ``.nii.gz``.

    Args:
        path: the file.
        components: arrays (I, J, K) of one type: a single one, or the three of a vector image; taken one at a time.
        affine_ras: (4, 4), voxel -> world RAS mm, written as sform and qform.
        vector: write a vector image (5-D, intent 1007), which ITK reads as such, without changing signs.

    Raises:
        InputError: the file can't be written.
    """
    with replacing(path) as temporary, open(temporary, "wb") as file:
        chunks = _contents(components, np.asarray(affine_ras, dtype=np.float64), 3 if vector else 1)
        _write_gzip(file, chunks)


def _contents(components: Iterable[np.ndarray], affine_ras: np.ndarray, count: int) -> Iterator[tuple[bytes, bool]]:
    """Yield the bytes of the file in order, each with True if they are floating point numbers."""
    for number, volume in enumerate(components):
        if number == 0:
            yield _header(volume, affine_ras, count), False
        floats = volume.dtype.kind == "f"
        step = max(1, CHUNK_BYTES // max(1, volume[:, :, :1].nbytes))
        for start in range(0, volume.shape[2], step):
            yield volume[:, :, start : start + step].tobytes(order="F"), floats


def _header(volume: np.ndarray, affine_ras: np.ndarray, count: int) -> bytes:
    shape = volume.shape if count == 1 else (*volume.shape, 1, count)
    placeholder = np.broadcast_to(np.zeros((), volume.dtype), shape)
    image = nib.Nifti1Image(placeholder, affine_ras, dtype=volume.dtype)
    image.set_sform(affine_ras, code="scanner")
    image.set_qform(affine_ras, code="scanner")
    header = image.header
    header.set_xyzt_units("mm")
    header.set_slope_inter(1, 0)
    header.set_data_offset(352)
    if count > 1:
        header.set_intent("vector")
    return header.binaryblock + b"\0\0\0\0"  # no header extensions


def _write_gzip(file: BinaryIO, chunks: Iterable[tuple[bytes, bool]]) -> None:
    """Compress chunks in parallel into one gzip member (as pigz does): not every reader goes on to a second one."""
    workers = min(os.cpu_count() or 1, 8)
    checksum, size = 0, 0
    chunks = iter(chunks)
    file.write(GZIP_HEADER)
    with ThreadPoolExecutor(workers) as pool:
        while group := list(itertools.islice(chunks, 2 * workers)):
            pieces = pool.map(_deflate, group)
            for content, _ in group:
                checksum = zlib.crc32(content, checksum)
                size += len(content)
            file.writelines(pieces)
    file.write(DEFLATE_END + struct.pack("<II", checksum, size % 2**32))


def _deflate(chunk: tuple[bytes, bool]) -> bytes:
    """Return one chunk as raw deflate blocks that end on a byte."""
    content, floats = chunk
    # looking for repeats in the digits of floats costs two thirds of the time and saves nothing
    strategy = zlib.Z_RLE if floats else zlib.Z_DEFAULT_STRATEGY
    packer = zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS, 9, strategy)
    return packer.compress(content) + packer.flush(zlib.Z_SYNC_FLUSH)
