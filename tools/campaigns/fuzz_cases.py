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
"""Broken and odd volumes for :mod:`tools.campaigns.fuzz`, each made from its number alone.

A case knows what must come of it where that is certain: the voxels, or a refusal. Else either is right, as long as an
accepted volume agrees with nibabel or the header and a refused one is refused in one line.
"""

from __future__ import annotations

import gzip
import os
import struct
from pathlib import Path

import nibabel as nib
import numpy as np

from tools.campaigns.fuzz_case import AFFINE, MHA, NRRD, SHAPE, Case, Make, voxels
from tools.campaigns.fuzz_dicom import DICOM_KINDS
from tools.campaigns.fuzz_geometry import GEOMETRY_KINDS

# offsets and struct formats of NIfTI-1 header fields
FIELDS = {
    **{f"dim{n}": (40 + 2 * n, "h") for n in range(8)},
    **{f"pixdim{n}": (76 + 4 * n, "f") for n in range(8)},
    **{f"srow{n}": (280 + 4 * n, "f") for n in range(12)},
    **{f"quatern{n}": (256 + 4 * n, "f") for n in range(6)},
    **{"sizeof_hdr": (0, "i"), "datatype": (70, "h"), "bitpix": (72, "h"), "vox_offset": (108, "f")},
    **{"scl_slope": (112, "f"), "scl_inter": (116, "f"), "units": (123, "B"), "intent": (68, "h")},
    **{"qform_code": (252, "h"), "sform_code": (254, "h")},
}
ODD = {
    "h": [0, 1, 2, 3, 4, 5, 7, 8, -1, -32768, 32767, 1000, 16, 64, 128, 256, 512, 768, 1024, 1280, 1536, 1792, 2304],
    "i": [0, -1, 348, 540, 2**31 - 1, -(2**31), 1],
    "f": [0.0, -1.0, 1.0, float("nan"), float("inf"), -float("inf"), 1e-30, 1e30, 3.4e38, 352.0, 353.5, -352.0, 1e9],
    "B": [0, 1, 2, 3, 8, 10, 18, 255],
}


def _nifti(values: np.ndarray, affine: np.ndarray = AFFINE) -> bytes:
    image = nib.Nifti1Image(values, affine, dtype=values.dtype)
    image.header.set_xyzt_units("mm")
    return image.to_bytes()


def _save(path: Path, content: bytes, random: np.random.Generator | None = None) -> Path:
    if random is not None and random.random() < 0.3:
        path = path.with_name(path.name + ".gz")
        content = gzip.compress(content, 1)
    path.write_bytes(content)
    return path


def nifti_fields(random: np.random.Generator, folder: Path) -> Case:
    """One to four header fields with odd values."""
    content = bytearray(_nifti(voxels(random)))
    for name in random.choice(list(FIELDS), random.integers(1, 5), replace=False):
        offset, form = FIELDS[name]
        struct.pack_into("<" + form, content, offset, random.choice(ODD[form]).item())
    return Case(_save(folder / "a.nii", bytes(content), random))


def nifti_bytes(random: np.random.Generator, folder: Path) -> Case:
    """Random bytes of the header."""
    content = bytearray(_nifti(voxels(random)))
    for at in random.integers(0, 352, random.integers(1, 12)):
        content[at] = random.integers(256)
    return Case(_save(folder / "a.nii", bytes(content), random))


def nifti_types(random: np.random.Generator, folder: Path) -> Case:
    """Each type in either byte order: the right voxels, or a refusal of what is no scalar or not exact."""
    name = random.choice(["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8", "c8", "c16", "rgb", "rgba"])
    if name.startswith("rgb"):
        kinds = [(letter, "u1") for letter in name.upper()]
        values = np.zeros(SHAPE, dtype=kinds)
        for letter, _ in kinds:
            values[letter] = voxels(random)
        return Case(_save(folder / "a.nii", nib.Nifti1Image(values, AFFINE).to_bytes(), random), refused=True)
    values = voxels(random, np.dtype(str(name)))
    image = nib.Nifti1Image(values, AFFINE, dtype=values.dtype)
    content = image.to_bytes()
    if random.random() < 0.5:
        header = image.header.as_byteswapped(">")
        header["vox_offset"] = 352
        content = header.binaryblock + b"\0" * 4 + values.astype(values.dtype.newbyteorder(">")).tobytes(order="F")
    path = _save(folder / "a.nii", content, random)
    return Case(path, refused=True) if name.startswith("c") else Case(path, values.astype(np.float64), AFFINE)


def nifti_scale(random: np.random.Generator, folder: Path) -> Case:
    """Slope and intercept: 0 means none, as NIfTI says."""
    values, content = voxels(random), bytearray(_nifti(np.zeros(SHAPE, np.int16)))
    slope, inter = (float(random.choice(list(choice))) for choice in ((0, 1, -2, 0.5, 100), (0, -1024, 3.5)))
    struct.pack_into("<ff", content, 112, slope, inter)
    content[352:] = values.tobytes(order="F")
    expected = values * slope + inter if slope else values.astype(np.float64)
    return Case(_save(folder / "a.nii", bytes(content), random), expected, AFFINE)


def nifti_units(random: np.random.Generator, folder: Path) -> Case:
    """Lengths in meters or micrometers: in mm, or refused."""
    content = bytearray(_nifti(voxels(random)))
    content[123] = int(random.choice([0, 1, 2, 3]))
    scale = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}[content[123]]
    affine = np.diag([scale, scale, scale, 1.0]) @ AFFINE
    values = np.frombuffer(bytes(content[352:]), np.int16).reshape(SHAPE, order="F").astype(np.float64)
    return Case(_save(folder / "a.nii", bytes(content), random), values, affine)


def nifti_affines(random: np.random.Generator, folder: Path) -> Case:
    """Singular, sheared, mirrored, huge, tiny and not finite affines."""
    affine = AFFINE.copy()
    kind = random.choice(["singular", "shear", "mirror", "nan", "zero", "huge", "tiny", "turn"])
    refused = kind in ("singular", "shear", "nan", "zero")
    if kind == "singular":
        affine[:, 1] = affine[:, 0]
    elif kind == "shear":
        affine[0, 1] += random.uniform(0.5, 2)
    elif kind == "mirror":
        affine[:, int(random.integers(3))] *= -1
    elif kind in ("nan", "zero"):
        affine[:3, int(random.integers(3))] = np.nan if kind == "nan" else 0
    elif kind in ("huge", "tiny"):
        affine[:3] *= 1e6 if kind == "huge" else 1e-6
    else:
        affine[:3, :3] = np.linalg.qr(random.normal(size=(3, 3)))[0] @ np.diag([1.5, 1.2, 2.0])
    content = bytearray(_nifti(voxels(random)))
    struct.pack_into("<12f", content, 280, *affine[:3].ravel())
    struct.pack_into("<hh", content, 252, 0, 1)
    struct.pack_into("<3f", content, 80, *np.nan_to_num(np.linalg.norm(affine[:3, :3], axis=0)))
    values = np.frombuffer(bytes(content[352:]), np.int16).reshape(SHAPE, order="F").astype(np.float64)
    path = _save(folder / "a.nii", bytes(content), random)
    return Case(path, refused=True) if refused else Case(path, values, affine)


def nifti_cut(random: np.random.Generator, folder: Path) -> Case:
    """Cut off anywhere, before or after compression."""
    values = voxels(random)
    content = _nifti(values)
    if random.random() < 0.5:
        packed = gzip.compress(content)
        length = int(random.integers(0, len(packed)))
        (folder / "a.nii.gz").write_bytes(packed[:length])
        # without the sum at its end it still holds every voxel
        return Case(folder / "a.nii.gz", values.astype(np.float64), AFFINE, refused=length < len(packed) - 8)
    (folder / "a.nii").write_bytes(content[: random.integers(0, len(content))])
    return Case(folder / "a.nii", refused=True)


def nifti_gzip(random: np.random.Generator, folder: Path) -> Case:
    """Compression that the name does not tell, damaged, doubled, or followed by rubbish."""
    values = voxels(random)
    content = _nifti(values)
    packed = bytearray(gzip.compress(content))
    kind = random.choice(["plain.gz", "packed", "damaged", "twice", "members", "rubbish", "empty"])
    path = folder / ("a.nii" if kind == "packed" else "a.nii.gz")
    if kind == "damaged":
        packed[int(random.integers(0, len(packed)))] ^= int(random.integers(1, 256))
    half = len(content) // 2
    written = {
        "plain.gz": content,
        "twice": gzip.compress(bytes(packed)),
        "members": gzip.compress(content[:half]) + gzip.compress(content[half:]),
        "rubbish": bytes(packed) + random.bytes(50),
        "empty": b"",
    }.get(str(kind), bytes(packed))
    path.write_bytes(written)
    if kind in ("members", "packed"):
        return Case(path, values.astype(np.float64), AFFINE)  # both are right, or refused
    return Case(path, refused=kind in ("twice", "empty"))


def nifti_huge(random: np.random.Generator, folder: Path) -> Case:
    """A few bytes that claim to be a giant."""
    content = bytearray(_nifti(voxels(random)))
    dims = [3, *(int(n) for n in random.choice([20000, 32767, 30000], 3)), 1, 1, 1, 1]
    struct.pack_into("<8h", content, 40, *dims)
    if random.random() < 0.3:  # compressed zeros, so that there is something to read
        path = folder / "a.nii.gz"
        with gzip.open(path, "wb", 1) as stream:
            stream.write(content)
            for _ in range(8):
                stream.write(bytes(2**20))
        return Case(path, refused=True)
    return Case(_save(folder / "a.nii", bytes(content), random), refused=True)


def content(random: np.random.Generator, folder: Path) -> Case:
    """Voxels that can't be registered, or hardly."""
    values = voxels(random, np.float32)
    kind = random.choice(["nan", "inf", "constant", "bright", "int16", "air", "large", "tiny", "all_nan"])
    spot = tuple(int(random.integers(n)) for n in SHAPE)
    modality = "mr"
    if kind in ("nan", "inf"):
        values[spot] = float(kind)
    elif kind == "all_nan":
        values[:] = np.nan
    elif kind in ("constant", "bright"):
        values[:] = float(random.integers(-5, 5))
        values[spot] += 1000.0 * (kind == "bright")
    elif kind == "int16":
        values = random.choice([-32768, 32767, 0], SHAPE).astype(np.int16)
    elif kind == "air":
        values[:], modality = -1024, "ct"
    else:
        values *= np.float32(1e36 if kind == "large" else 1e-40)
    suffix = str(random.choice(["nii", "mha", "nrrd"]))
    path = folder / f"a.{suffix}"
    if suffix == "nii":
        path.write_bytes(_nifti(values))
    else:
        _write_text_header(path, values, suffix)
    refused = kind in ("nan", "inf", "constant", "all_nan", "air", "bright")
    return Case(path, None if refused else values.astype(np.float64), None if refused else AFFINE, refused, modality)


NRRD_TYPES = {"int16": "short", "float32": "float", "uint8": "uchar"}
MHA_TYPES = {"int16": "MET_SHORT", "float32": "MET_FLOAT", "uint8": "MET_UCHAR"}


def _write_text_header(path: Path, values: np.ndarray, suffix: str, lines: list[str] | None = None) -> None:
    sizes, data = " ".join(map(str, values.shape)), values.tobytes(order="F")
    if suffix == "nrrd":
        text = NRRD.format(type=NRRD_TYPES[values.dtype.name], sizes=sizes, encoding="raw") + "\n"
    else:
        text = MHA.format(type=MHA_TYPES[values.dtype.name], sizes=sizes)
    path.write_bytes(("\n".join(lines) + "\n" if lines is not None else text).encode() + data)


def text_headers(random: np.random.Generator, folder: Path) -> Case:
    """NRRD and MetaImage: lines changed, dropped, doubled, numbers made odd, data cut, bytes changed."""
    values, suffix = voxels(random), str(random.choice(["nrrd", "mha"]))
    path = folder / f"a.{suffix}"
    _write_text_header(path, values, suffix)
    raw = path.read_bytes()
    head = raw[: len(raw) - values.nbytes]
    lines = head.decode().rstrip("\n").splitlines()
    kind = random.choice(["number", "drop", "double", "cut", "bytes", "huge", "encoding", "word", "none"])
    at = int(random.integers(1, len(lines) - 1))
    if kind == "number":
        words = lines[at].replace("(", " ( ").replace(",", " , ").replace(")", " ) ").split()
        spots = [n for n, word in enumerate(words) if word.lstrip("-").replace(".", "").isdigit()]
        odd = ["0", "-1", "nan", "inf", "1e300", "99999999999", "", "x", "3.7", "-0", "2147483648"]
        for spot in spots[: random.integers(1, 3)]:
            words[spot] = str(random.choice(odd))
        lines[at] = " ".join(words)
    elif kind == "drop":
        del lines[at]
    elif kind == "double":
        lines.insert(at, lines[at])
    elif kind == "huge":
        at = next(n for n, line in enumerate(lines) if line.startswith(("sizes", "DimSize")))
        lines[at] = lines[at].split("5")[0] + "50000 60000 40000"
    elif kind == "encoding":
        choices = {"nrrd": ["gzip", "bzip2", "hex", "ascii", "nonsense"], "mha": ["True"]}[suffix]
        lines = [
            f"encoding: {random.choice(choices)}"
            if line.startswith("encoding")
            else line.replace("CompressedData = False", "CompressedData = True")
            for line in lines
        ]
    elif kind == "word":
        lines[at] = lines[at][: len(lines[at]) // 2] + str(random.choice(["", "\x00", "é" * 300, "%s%n", "A" * 5000]))
    body = raw[len(head) :]
    if kind == "cut":
        body = body[: random.integers(0, len(body))]
    whole = bytearray(("\n".join(lines) + ("\n\n" if suffix == "nrrd" else "\n")).encode() + body)
    if kind == "bytes":
        for spot in random.integers(0, len(head), random.integers(1, 6)):
            whole[spot] = random.integers(256)
    path.write_bytes(bytes(whole))
    if kind == "none":
        return Case(path, values.astype(np.float64), AFFINE)
    return Case(path, refused=kind in ("cut", "huge"))


def detached(random: np.random.Generator, folder: Path) -> Case:
    """Headers whose voxels lie in another file, which may be missing, odd or endless."""
    values, suffix = voxels(random), str(random.choice(["nhdr", "mhd"]))
    target = str(random.choice(["a.raw", "missing.raw", "/dev/zero", "pipe", ".", "../a.raw", "short.raw"]))
    (folder / "a.raw").write_bytes(values.tobytes(order="F"))
    (folder / "short.raw").write_bytes(b"123")
    os.mkfifo(folder / "pipe")
    sizes, path = " ".join(map(str, SHAPE)), folder / f"a.{suffix}"
    if suffix == "nhdr":
        path.write_text(NRRD.format(type="short", sizes=sizes, encoding="raw") + f"data file: {target}\n")
    else:
        path.write_text(MHA.format(type="MET_SHORT", sizes=sizes).replace("LOCAL", target))
    if target == "a.raw":
        return Case(path, values.astype(np.float64), AFFINE)
    return Case(path, refused=True)


def odd_files(random: np.random.Generator, folder: Path) -> Case:
    """What is no regular file, or holds something else."""
    values = voxels(random)
    good = folder / "good.nii"
    good.write_bytes(_nifti(values))
    kind = random.choice(["link", "loop", "dangling", "pipe", "device", "empty", "text", "folder", "noise", "name"])
    path = folder / f"a.{random.choice(['nii', 'nii.gz', 'mha', 'nrrd', 'dcm', 'hdr'])}"
    if kind in ("link", "name"):
        path = folder / ("a.nii" if kind == "link" else "ä ö'\"&\n(1).nii")
        path.symlink_to(good)
        return Case(path, values.astype(np.float64), AFFINE)
    if kind == "loop":
        path.symlink_to(path)
    elif kind == "dangling":
        path.symlink_to(folder / "nothing")
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to(str(random.choice(["/dev/zero", "/dev/null", "/dev/random"])))
    elif kind == "folder":
        path.mkdir()
        (path / "notes.txt").write_text("no image")
        os.mkfifo(path / "pipe")
    else:
        path.write_bytes({"empty": b"", "text": b"no image\n" * 100}.get(str(kind), random.bytes(2000)))
    return Case(path, refused=True)


KINDS: tuple[Make, ...] = (
    *(nifti_fields, nifti_bytes, nifti_types, nifti_scale, nifti_units, nifti_affines, nifti_cut, nifti_gzip),
    *(nifti_huge, content, text_headers, text_headers, detached, odd_files),
    *DICOM_KINDS,
    *GEOMETRY_KINDS,
)


def make_case(number: int, folder: Path) -> tuple[str, Case]:
    """Make the case of a number in an empty folder; return the name of its kind and the case."""
    kind = KINDS[number % len(KINDS)]
    return kind.__name__, kind(np.random.default_rng(number), folder)
