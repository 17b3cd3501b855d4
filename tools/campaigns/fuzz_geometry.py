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
"""Headers that say their geometry twice, in other units, or not at all: for :mod:`tools.campaigns.fuzz`."""

from __future__ import annotations

import struct
from pathlib import Path

import nibabel as nib
import numpy as np

from tools.campaigns.fuzz_case import AFFINE, MHA, NRRD, SHAPE, Case, Make, voxels


def _turned(random: np.random.Generator) -> np.ndarray:
    """Return an affine with perpendicular axes of random directions."""
    affine = np.eye(4)
    affine[:3, :3] = np.linalg.qr(random.normal(size=(3, 3)))[0] * random.uniform(0.5, 4, 3)
    affine[:3, 3] = random.uniform(-100, 100, 3)
    return affine


def nifti_contradictions(random: np.random.Generator, folder: Path) -> Case:
    """Two affines that differ, by any codes, or a spacing of its own: the sform's if its code is above 0."""
    values = voxels(random)
    sform, qform = _turned(random), _turned(random)
    codes = [int(code) for code in random.choice([0, 1, 2, 4], 2)]
    content = bytearray(nib.Nifti1Image(values, AFFINE, dtype=values.dtype).to_bytes())
    header = nib.Nifti1Header()
    header.set_qform(qform, code=1)
    header.set_sform(sform, code=1)
    made = header.binaryblock
    content[76:92], content[256:328] = made[76:92], made[256:328]
    struct.pack_into("<hh", content, 252, codes[1], codes[0])
    kind = str(random.choice(["as it is", "spacing", "below zero", "zero", "sheared"]))
    if kind == "sheared":
        sform[:3, 0] += 0.4 * sform[:3, 1] * np.linalg.norm(sform[:3, 0]) / np.linalg.norm(sform[:3, 1])
        struct.pack_into("<12f", content, 280, *sform[:3].ravel())
    elif kind != "as it is":
        at = 76 + 4 * int(random.integers(1, 4))
        change = {"spacing": 2.0, "below zero": -1.0, "zero": 0.0}[kind]
        struct.pack_into("<f", content, at, change * struct.unpack_from("<f", content, at)[0])
    path = folder / "a.nii"
    path.write_bytes(bytes(content))
    expected = values.astype(np.float64)
    if codes[0]:
        return Case(path, refused=True) if kind == "sheared" else Case(path, expected, sform)
    if kind in ("below zero", "zero"):
        return Case(path, refused=True)
    if codes[1] == 0:
        return Case(path, expected)
    return Case(path, expected, None if kind == "spacing" else qform)


def text_geometry(random: np.random.Generator, folder: Path) -> Case:
    """NRRD and MetaImage in other units, or with sheared axes: in mm, or refused."""
    values, suffix = voxels(random), str(random.choice(["nrrd", "mha"]))
    unit, scale = [("um", 1e-3), ("cm", 10.0), ("mm", 1.0), ("parsec", 0.0)][int(random.integers(4))]
    sizes, is_sheared = " ".join(map(str, SHAPE)), bool(random.random() < 0.3)
    if suffix == "nrrd":
        text = NRRD.format(type="short", sizes=sizes, encoding="raw") + f'space units: "{unit}" "{unit}" "{unit}"\n\n'
        text = text.replace("(0,1.2,0)", "(0.5,1.2,0)") if is_sheared else text
    else:
        text = MHA.format(type="MET_SHORT", sizes=sizes).replace("Offset", f"DistanceUnits = {unit}\nOffset")
        text = text.replace("1 0 0 0 1 0 0 0 1", "1 0 0 0.5 0.866 0 0 0 1") if is_sheared else text
    path = folder / f"a.{suffix}"
    path.write_bytes(text.encode() + values.tobytes(order="F"))
    if is_sheared or not scale:
        return Case(path, refused=True)
    return Case(path, values.astype(np.float64), np.diag([scale] * 3 + [1.0]) @ AFFINE)


GEOMETRY_KINDS: tuple[Make, ...] = (nifti_contradictions, text_geometry)
