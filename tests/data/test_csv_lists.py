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
"""Lists as spreadsheets write them: separators, blank rows, byte order marks; what can't be read is said."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from scripts.cohort.cases import load_cohort
from scripts.data.cases import read_datalist
from scripts.data.landmarks import read_landmarks
from scripts.utils.errors import InputError
from tests.helpers.chain import write

ROWS = [
    {"case": "a", "fixed": "f 1.nii.gz", "moving": "m,1.nii.gz", "fixed_modality": "ct"},
    {"case": "b", "fixed": "f2.nii.gz", "moving": "m;2.nii.gz"},
]


def listed(folder: Path, content: str | bytes) -> str:
    path = folder / "pairs.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def table(separator: str = ",", end: str = "\n", **rows: str) -> str:
    """The list of ROWS with rows added: before the header, between, or behind."""
    lines = [["case", "fixed", "moving", "fixed_modality"]]
    lines += [[row.get(name, "") for name in lines[0]] for row in ROWS]
    text = [separator.join(f'"{cell}"' if set(",;") & set(cell) else cell for cell in line) for line in lines]
    parts = [rows.get("first"), *text[:2], rows.get("between"), text[2], rows.get("last")]
    return end.join(part for part in parts if part is not None) + end


@pytest.mark.parametrize(
    "content",
    [
        table(),
        table(";"),
        table("\t"),
        table(";", "\r\n"),
        "\ufeff" + table(";"),
        table(first="", between="", last="\n\n"),
        table(between=",,,", last=",,,\n , ,,"),
        table(";", between=";;;", last=" \n;;;;;;\n"),
        table("\t", last="\t\t\t"),
        table(";", first="sep=;"),
        table(",", first='"sep=,"'),
        table(first=",,,"),
        table().replace("\n", ",,\n"),  # columns without any content
    ],
)
def test_what_spreadsheets_write_is_read(content: str, tmp_path: Path) -> None:
    assert read_datalist(listed(tmp_path, content)) == ROWS


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("fixed|moving\na|b\n", r"unknown entry 'fixed\|moving'; columns are separated by commas, semicolons or tabs"),
        ("fixed moving\na b\n", "this list has one column"),
        ("fixed,moving\na;b\n", "row 1 is separated by semicolons, but the header by commas"),
        ("fixed;moving\na;b\nc,d\n", "row 2 is separated by commas, but the header by semicolons"),
        ("fixed;moving\na;b;c\n", r"row 1 has more cells \(3\) than the header \(2, separated by semicolons\)"),
        ("fixed,moving,fixed\na,b,c\n", "has the column 'fixed' twice"),
        ("fixed,,moving\na,b,c\n", "unknown entry ''"),
        ("fixed,moving\n,,\n", "has no cases"),
        ("\n\n", "has no cases"),
        ("fixed,moving\nä,b\n".encode("latin-1"), r"is not UTF-8 text \(byte 0xe4 at 13\)"),
        ("fixed,moving\na,b\n".encode("utf-16"), "is not UTF-8 text"),
    ],
)
def test_a_list_that_does_not_fit_its_header_is_refused(content: str | bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        read_datalist(listed(tmp_path, content))


def test_blank_rows_are_no_failed_pairs(tmp_path: Path) -> None:
    for name in ("f.nii.gz", "m.nii.gz"):
        write(tmp_path / name, np.random.default_rng(0).normal(size=(8, 9, 7)).astype(np.float32))
    path = listed(tmp_path, "fixed;moving\n;\nf.nii.gz;m.nii.gz\n;\n \n;;\n")
    cases = load_cohort(datalist=path, output_dir=tmp_path / "out", fixed_modality="mr", moving_modality="mr")
    assert [(case["case"], case.get("error")) for case in cases] == [("m_to_f", None)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("x;y;z\n1;2;3\n", "separated by semicolons: separate by commas, with points in the decimals"),
        ("x\ty\tz\n1\t2\t3\n", "separated by tabs"),
        ("x;y;z\n1,5;2,5;3,5\n", "separated by semicolons"),
        ("x,y,z\n1,5,2,5,3,5\n", "6 cells for 3 columns .*decimals have points"),
        ('x,y,z\n"1,5","2,5","3,5"\n', "x is '1,5'; give a finite number in mm, such as 12.5"),
        ("x,y,z\n1;2;3\n", "1 cells for 3 columns"),
    ],
)
def test_landmarks_with_semicolons_or_decimal_commas_are_refused(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "points.csv"
    path.write_text(content)
    with pytest.raises(InputError, match=message):
        read_landmarks(path)
