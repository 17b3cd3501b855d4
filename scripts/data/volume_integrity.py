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
"""Is a file of voxels whole, and what its header says: checked before memory is taken for it.

Readers take missing voxels for zeros, wait for ever at a pipe, and allocate whatever a header claims.
"""

from __future__ import annotations

import gzip
import re
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from scripts.data.nifti_writing import GzipFile
from scripts.utils.errors import InputFileError
from scripts.utils.memory import available_memory
from scripts.utils.regular_files import DATA_FILE, read_start

LEAST_SLOPE = 1e-15
MOST_DIMENSIONS = 10  # of a MetaImage
LONGEST_FIELD = 500  # of an NRRD header, characters
MOST_SHRUNK = 1100  # zlib makes data smaller by up to 1032 times
_LONGEST_HEADER = 540  # bytes, of NIfTI-2
_QFORM = ("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z")
_FREE_TEXT = (b"#", b"content:", b"labels:", b"units:", b"sample units:")  # of NRRD, of any length


def check_nrrd(path: str, start: bytes) -> None:
    """Refuse NRRD fields so long that ITK's library would write beyond the buffer of its error message.

    Raises:
        InputFileError: naming the file.
    """
    if not path.lower().endswith((".nrrd", ".nhdr")):
        return
    header = start.split(b"\n\n")[0].split(b"\r\n\r\n")[0]
    for line in header.splitlines():
        if len(line) > LONGEST_FIELD and not line.lower().startswith(_FREE_TEXT) and b":=" not in line:
            raise InputFileError(
                f"'{path}': its NRRD header has a field of {len(line)} characters; shorten or remove the field"
            )


def check_metaimage(path: str, start: bytes) -> None:
    """Refuse a MetaImage of so many dimensions that ITK's library would write beyond its arrays.

    Raises:
        InputFileError: naming the file.
    """
    if not path.lower().endswith((".mha", ".mhd")):
        return
    found = re.search(rb"(?m)^NDims\s*[=:]\s*(\S+)", start)
    if found and not (found[1].isdigit() and 0 < int(found[1]) <= MOST_DIMENSIONS):
        raise InputFileError(
            f"'{path}' says it has {found[1][:20].decode('ascii', 'replace')} dimensions; give a 3-D volume"
        )


def check_compression(path: str, start: bytes) -> None:
    """Refuse a file whose name says that it is compressed with gzip and which is not, or the other way round.

    Raises:
        InputFileError: naming the file, and the name it should have.
    """
    name = path.lower()
    is_packed = start.startswith(b"\x1f\x8b")
    if start and name.endswith(".gz") and not is_packed:
        raise InputFileError(
            f"'{path}' is not an image that can be read: its name ends in .gz, but it is not compressed; rename it, or"
            " give NIfTI, NRRD, MHA/MHD or a folder with one DICOM series"
        )
    if is_packed and name.endswith((".nii", ".hdr", ".img", ".nrrd", ".mha")):
        raise InputFileError(f"'{path}' is compressed with gzip; rename it to end in {Path(path).suffix}.gz")


def check_claim(path: str, shape: tuple[int, ...], bytes_per_voxel: int) -> None:
    """Refuse a header that claims more voxels than there is memory for.

    Args:
        path: file or folder.
        shape: voxels along each axis.
        bytes_per_voxel: of the type in the file.

    Raises:
        InputFileError: naming the file, what it claims, and what there is.
    """
    size, voxels = " x ".join(str(count) for count in shape), int(np.prod(shape, dtype=object))
    needed = voxels * (bytes_per_voxel + np.dtype(np.float32).itemsize)  # as it is read, and as it is worked with
    free = available_memory()
    if needed > free:
        raise InputFileError(
            f"'{path}' says it has {size} voxels, which need {needed / 2**30:.1f} GiB of memory, and {free / 2**30:.1f}"
            " GiB are free; repair its header, or crop or resample it"
        )


def check_held(path: str, start: bytes, shape: tuple[int, ...], bytes_per_voxel: int) -> None:
    """Refuse an NRRD or MetaImage header that claims more voxels than its file can hold, however well compressed.

    Args:
        path: file.
        start: its first bytes.
        shape: voxels along each axis.
        bytes_per_voxel: of the type in the file.

    Raises:
        InputFileError: naming the file, what it claims, and what there is.
    """
    if not path.lower().endswith((".nrrd", ".mha")):
        return
    held, voxels = Path(path).stat().st_size, int(np.prod(shape, dtype=object))
    detached = DATA_FILE.search(start)
    is_elsewhere = detached is not None and detached[1].strip().upper() != b"LOCAL"
    doubly_packed = b"bz" in start.lower()
    if voxels * bytes_per_voxel > MOST_SHRUNK * held and not (is_elsewhere or doubly_packed):
        size = " x ".join(str(count) for count in shape)
        raise InputFileError(f"'{path}' says it has {size} voxels, but has only {held} bytes; copy it again")


def check_complete(path: str, header: Any) -> None:
    """Refuse a compressed or Analyze file that is cut off or damaged.

    Args:
        path: file that ITK reads.
        header: of :func:`nifti_header`.

    Raises:
        InputFileError: naming the file.
    """
    if path.lower().endswith(".gz"):
        _length(path)
    if header is None:
        return
    voxels = voxel_file(path)
    dims = [int(size) for size in header["dim"]]
    count = int(np.prod([max(size, 1) for size in dims[1 : dims[0] + 1]], dtype=object))
    needed = max(float(header["vox_offset"]), 0) + count * int(header["bitpix"]) // 8
    length = _length(voxels)
    if length < needed:
        raise InputFileError(f"'{voxels}' is cut off: it has {length} bytes of {needed:g}; copy it again")


def check_analyze(path: str, header: Any) -> None:
    """Refuse an Analyze file that only SPM reads rightly: a scale in a field without a name, an affine in a .mat file.

    Raises:
        InputFileError: naming the file and what it has.
    """
    scale = float(np.frombuffer(header.binaryblock[112:116], f"{header.endianness}f4")[0])
    if np.isfinite(scale) and scale not in (0, 1):
        raise InputFileError(
            f"'{path}' has a scale of {scale:g} that only SPM knows (Analyze header); convert it to NIfTI with SPM"
        )
    matrix = _beside(path, (".mat",))
    if matrix is not None:
        raise InputFileError(f"'{path}' has its geometry in '{matrix}', which only SPM reads; convert it to NIfTI")


def check_begin(path: str, header: Any) -> int:
    """Return the byte at which the voxels of a NIfTI file begin.

    Raises:
        InputFileError: it lies inside the header.
    """
    begins, single = float(header["vox_offset"]), is_nifti(header) and bytes(header["magic"].item()).startswith(b"n+")
    least = int(header.sizeof_hdr) + 4 if single else 0
    if not least <= begins < 2**62:  # each reader begins elsewhere then
        raise InputFileError(
            f"'{path}' says that its voxels begin at byte {begins:g}, inside its header; repair vox_offset, which is"
            f" {least} or more"
        )
    return int(begins)


def voxel_file(path: str) -> str:
    """Return the file that holds the voxels of a NIfTI or Analyze file: another one than the header's for .hdr.

    Raises:
        InputFileError: it is not there.
    """
    if not path.lower().endswith((".hdr", ".hdr.gz")):
        return path
    found = _beside(path, (".img", ".img.gz"))
    if found is None:
        raise InputFileError(f"'{path}' has no .img file beside it, in which its voxels are; copy that one, too")
    return found


def check_nifti_numbers(path: str, header: Any) -> None:
    """Refuse a NIfTI header whose geometry has NaN or infinite numbers, or whose slope other readers take for none.

    Args:
        path: file, for the message.
        header: of :func:`nifti_header`.

    Raises:
        InputFileError: naming the file.
    """
    if 0 < abs(float(header["scl_slope"])) < LEAST_SLOPE:
        raise InputFileError(f"'{path}' has scl_slope = {float(header['scl_slope']):g} in its header; repair it")
    used = {"pixdim": slice(1, 4)}
    if header["sform_code"] > 0:
        used |= {"srow_x": slice(4), "srow_y": slice(4), "srow_z": slice(4)}
    elif header["qform_code"] > 0:
        used |= {name: slice(1) for name in _QFORM}
    for name, part in used.items():
        values = np.atleast_1d(header[name])[part]
        if not np.isfinite(values).all():
            raise InputFileError(f"'{path}' has {name} = {values.tolist()} in its header, not all numbers; repair it")


def nifti_header(path: str, start: bytes) -> Any:
    """Return the header of a NIfTI or Analyze file as it is written, unchecked, or None for other files.

    nibabel's ``load`` takes scaling and offset out of it, and repairs some of it. Of ``.img`` it lies in another file.

    Args:
        path: file.
        start: its first bytes, of :func:`scripts.utils.regular_files.read_start`.
    """
    name = path.lower()
    if name.endswith((".img", ".img.gz")):
        other = _beside(path, (".hdr", ".hdr.gz"))
        path, start = (other, read_start(other)) if other else (path, start)
    elif not name.endswith((".nii", ".nii.gz", ".hdr", ".hdr.gz")):
        return None
    try:
        start = gzip.GzipFile(fileobj=BytesIO(start)).read(_LONGEST_HEADER) if path.lower().endswith(".gz") else start
    except (OSError, EOFError, zlib.error):  # told by check_complete, or by ITK
        return None
    for kind in (nib.Nifti1Header, nib.Nifti2Header):
        size = kind.sizeof_hdr
        for order in "<>":
            if len(start) >= size and int.from_bytes(start[:4], "little" if order == "<" else "big") == size:
                return kind(start[:size], endianness=order, check=False)
    return None


def _length(path: str) -> int:
    """Return the number of bytes of a file, uncompressed."""
    if not path.lower().endswith(".gz"):
        return Path(path).stat().st_size
    try:
        return _uncompressed_length(path)
    except Exception as error:  # the compressors raise several kinds of their own
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputFileError(f"'{path}' is cut off or damaged ({reason}); copy it again") from error


def _uncompressed_length(path: str) -> int:
    length = 0
    with GzipFile(path, "rb") as stream:
        while part := stream.read(2**22):
            length += len(part)
    return length


def is_nifti(header: Any) -> bool:
    """Tell NIfTI from Analyze, which has other fields in the places of scale and matrices."""
    return bytes(header["magic"].item()).startswith((b"n+", b"ni"))


def _beside(path: str, suffixes: tuple[str, ...]) -> str | None:
    """Return the other file of a pair, if it is there."""
    start = Path(path).with_suffix("") if path.lower().endswith(".gz") else Path(path)
    found = (start.with_suffix(case) for suffix in suffixes for case in (suffix, suffix.upper()))
    return next((str(other) for other in found if other.is_file()), None)
