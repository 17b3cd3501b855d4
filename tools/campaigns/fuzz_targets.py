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
"""Readers of text and small binary files, for hypothesis (the suite) and atheris (:mod:`tools.campaigns.fuzz_bytes`).

Whatever the bytes, a reader returns something or raises an InputError of one line; it never writes.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from scripts.apply.point_files import carry_points
from scripts.data.cases import cases_of_rows, read_datalist
from scripts.data.landmarks import read_landmarks
from scripts.data.nifti_reading import nifti_file_header, read_nifti
from scripts.data.volume_integrity import check_complete, check_nrrd, is_nifti, nifti_header
from scripts.networks.checkpoint_files import read_checkpoint
from scripts.training.lists import load_records
from scripts.utils.errors import InputError
from scripts.utils.regular_files import check_data_file, read_start


class Target(NamedTuple):
    """A reader, and files that it reads."""

    suffix: str
    read: Callable[[Path], Any]
    seeds: tuple[bytes, ...]


def _points(path: Path) -> None:
    carry_points(str(path), lambda points: points, path.with_name(f"out{path.suffix}"))


def _datalist(path: Path) -> None:
    rows = read_datalist(str(path))
    defaults = {"fixed_modality": "mr", "moving_modality": "ct"}
    cases_of_rows(rows, "", path.parent, defaults, path.parent, isolate=True)


def _nifti(path: Path) -> None:
    raw = nifti_header(str(path), read_start(str(path)))
    if raw is not None and is_nifti(raw):
        nifti_file_header(str(path), raw)
        read_nifti(str(path), raw)
    else:
        check_complete(str(path), raw)


def _nrrd(path: Path) -> None:
    start = read_start(str(path))
    check_nrrd(str(path), start)
    check_data_file(str(path), start)


CSV = b"x,y,z,name\n1,2,3,a\n4.5,-6e1,7,b\n"
FCSV = b"""# Markups fiducial file version = 4.11
# CoordinateSystem = LPS
# columns = id,x,y,z
1,1,2,3,0,0,0,1,1,1,0,F-1,,
"""
MARKUPS = b"""{"markups": [{"type": "Fiducial", "coordinateSystem": "LPS",
"controlPoints": [{"id": "1", "position": [1.0, 2.0, 3.0]}]}]}"""
VTK = b"# vtk DataFile Version 3.0\nx\nASCII\nDATASET POLYDATA\nPOINTS 2 float\n1 2 3 4 5 6\n"
JSON_LIST = b'[{"case": "a", "fixed": "f.nii", "moving": "m.nii", "frame": 0, "fixed_modality": "ct"}]'
CSV_LIST = b"case,fixed,moving,fixed_modality\na,f.nii,m.nii,ct\n"
TRAINING = b'{"datasets": [{"name": "a", "modality": "ct", "images": [{"image": "a.nii"}], "pairs_per_epoch": 2}]}'
LEARN2REG = b'{"name": "A", "modality": {"0": "MR"}, "registration_val": [{"fixed": "./f", "moving": "./m"}]}'
NRRD = b"NRRD0004\ntype: short\ndimension: 3\nsizes: 5 6 4\nencoding: raw\ndata file: a.raw\n\n"
MHD = b"NDims = 3\nDimSize = 5 6 4\nElementType = MET_SHORT\nElementDataFile = a.raw\n"
TARGETS = {
    "landmarks": Target(".csv", lambda path: read_landmarks(path, "LPS", torch.eye(4)), (CSV, b"1 2 3\n")),
    "voxels": Target(".csv", lambda path: read_landmarks(path, "voxel", torch.eye(4)), (b"1,2,3\n4,5,6\n",)),
    "points_csv": Target(".csv", _points, (CSV,)),
    "points_fcsv": Target(".fcsv", _points, (FCSV,)),
    "points_markups": Target(".mrk.json", _points, (MARKUPS,)),
    "points_vtk": Target(".vtk", _points, (VTK,)),
    "datalist_json": Target(".json", _datalist, (JSON_LIST, LEARN2REG)),
    "datalist_csv": Target(".csv", _datalist, (CSV_LIST,)),
    "training_list": Target(".json", lambda path: load_records(str(path)), (TRAINING, LEARN2REG)),
    "checkpoint": Target(".pt", read_checkpoint, (b"PK\x03\x04", b"\x80\x02}q\x00.")),
    "nifti": Target(".nii", _nifti, (b"\x5c\x01\x00\x00" + bytes(348),)),
    "nrrd": Target(".nhdr", _nrrd, (NRRD,)),
    "metaimage": Target(".mhd", _nrrd, (MHD,)),
}


def try_bytes(name: str, content: bytes) -> str:
    """Give a reader bytes.

    Returns:
        "read" or "refused".

    Raises:
        AssertionError: the refusal is no single line, or a file was changed.
        Exception: what the reader let through.
    """
    target = TARGETS[name]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"a{target.suffix}"
        path.write_bytes(content)
        try:
            target.read(path)
            outcome = "read"
        except InputError as error:
            text = str(error)
            assert "\n" not in text.strip("\n"), f"several lines: {text!r}"
            assert len(text) < 3000, f"a long line: {text[:200]!r}"
            assert sorted(p.name for p in Path(folder).iterdir()) == [path.name], "a refused file left results"
            outcome = "refused"
        assert path.read_bytes() == content, "the input was changed"
    return outcome
