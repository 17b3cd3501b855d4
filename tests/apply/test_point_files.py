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
"""Points of other tools: each axis and sign, and everything else in a file left as it was."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import itk
import numpy as np
import pytest

from scripts.apply.point_files import carry_points
from scripts.utils.errors import InputError

SHIFT_LPS = np.array([1.0, -2.0, 4.0])


def shift(points: np.ndarray) -> np.ndarray:
    return points + SHIFT_LPS


def _csv(path: Path, space: str) -> None:
    path.write_text('name,x,y,z\ncarina,10,20,30\n"apex, left",-1.5,2,3\n')


def _fcsv(path: Path, space: str) -> None:
    path.write_text(
        f"# Markups fiducial file version = 4.11\n# CoordinateSystem = {space}\n"
        "# columns = id,x,y,z,ow,ox,oy,oz,vis,sel,lock,label,desc,associatedNodeID\n"
        'vtkMRML_0,10,20,30,0,0,0,1,1,1,0,carina,"a, b",node\nvtkMRML_1,-1.5,2,3,0,0,0,1,1,1,0,F-2,,\n'
    )


def _markups(path: Path, space: str) -> None:
    points = [{"id": "1", "label": "carina", "position": [10, 20, 30]}, {"id": "2", "position": [-1.5, 2.0, 3.0]}]
    path.write_text(
        json.dumps({"@schema": "x", "markups": [{"type": "Line", "coordinateSystem": space, "controlPoints": points}]})
    )


def _vtk(path: Path, space: str) -> None:
    path.write_text(
        f"# vtk DataFile Version 3.0\nvtk output SPACE={space}\nASCII\nDATASET POLYDATA\nPOINTS 2 float\n"
        "10 20 30 -1.5 2 3\nVERTICES 2 4\n1 0 1 1\n"
    )


def read(path: Path) -> np.ndarray:
    """Return the points of a written file, read here and not by the code under test."""
    text = path.read_text()
    if path.name.endswith(".mrk.json"):
        return np.array([p["position"] for p in json.loads(text)["markups"][0]["controlPoints"]])
    if path.suffix == ".vtk":
        return itk.array_from_vector_container(itk.meshread(str(path)).GetPoints()).reshape(-1, 3)
    rows = [line.split(",") for line in text.splitlines() if line and not line.startswith(("#", "x,"))]
    first = 1 if path.suffix == ".fcsv" else 0
    return np.array([[float(cell) for cell in row[first : first + 3]] for row in rows])


WRITERS: dict[str, Callable[[Path, str], None]] = {
    ".csv": _csv,
    ".fcsv": _fcsv,
    ".mrk.json": _markups,
    ".vtk": _vtk,
}


@pytest.mark.parametrize("space", ["LPS", "RAS"])
@pytest.mark.parametrize("suffix", WRITERS)
def test_points_are_carried_in_the_space_of_their_file(tmp_path: Path, suffix: str, space: str) -> None:
    path, out = tmp_path / f"p{suffix}", tmp_path / f"out{suffix}"
    WRITERS[suffix](path, space)
    before = path.read_bytes()
    given = space if suffix == ".csv" else ("RAS" if space == "LPS" else "LPS")  # what the file says, wins
    assert carry_points(str(path), shift, out, given) == 2
    expected = np.array([[10, 20, 30], [-1.5, 2, 3]]) + SHIFT_LPS * ([1, 1, 1] if space == "LPS" else [-1, -1, 1])
    np.testing.assert_allclose(read(out), expected, atol=1e-5)
    assert path.read_bytes() == before


def test_what_else_a_file_says_is_kept(tmp_path: Path) -> None:
    for suffix, words in ((".csv", ["apex, left"]), (".fcsv", ['"a, b"', "F-2", "# CoordinateSystem = LPS"])):
        WRITERS[suffix](tmp_path / f"p{suffix}", "LPS")
        carry_points(str(tmp_path / f"p{suffix}"), shift, tmp_path / f"o{suffix}")
        assert all(word in (tmp_path / f"o{suffix}").read_text() for word in words)
    _markups(tmp_path / "p.mrk.json", "RAS")
    carry_points(str(tmp_path / "p.mrk.json"), shift, tmp_path / "o.mrk.json")
    markup = json.loads((tmp_path / "o.mrk.json").read_text())["markups"][0]
    assert markup["type"] == "Line"
    assert markup["coordinateSystem"] == "RAS"
    assert markup["controlPoints"][0]["label"] == "carina"
    _vtk(tmp_path / "p.vtk", "RAS")
    carry_points(str(tmp_path / "p.vtk"), shift, tmp_path / "o.vtk")
    assert "SPACE=RAS" in (tmp_path / "o.vtk").read_text()
    assert itk.meshread(str(tmp_path / "o.vtk")).GetNumberOfCells() == 2


def test_an_old_fcsv_counts_its_spaces(tmp_path: Path) -> None:
    """Slicer before 5 wrote 0 for RAS and 1 for LPS."""
    _fcsv(tmp_path / "p.fcsv", "0")
    carry_points(str(tmp_path / "p.fcsv"), shift, tmp_path / "o.fcsv")
    np.testing.assert_allclose(read(tmp_path / "o.fcsv")[0], [9, 22, 34])


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("p.csv", "a,b\n1,2\n", "columns x,y,z"),
        ("p.fcsv", "# CoordinateSystem = IJK\nid,1,2,3\n", "coordinate system 'IJK'"),
        ("p.fcsv", "# CoordinateSystem = LPS\nid,1,two,3\n", "without three numbers"),
        ("p.fcsv", "# CoordinateSystem = LPS\n", "no points"),
        ("p.mrk.json", "{}", "not markups"),
        ("p.mrk.json", '{"markups": [{"controlPoints": []}]}', "no points"),
        ("p.mrk.json", '{"markups": [{"controlPoints": [{"position": [1, 2, null]}]}]}', "not finite|not markups"),
        ("p.vtk", "nothing\nat all\n", "can't be read"),
        ("p.xyz", "1 2 3\n", "ends in .csv"),
    ],
)
def test_a_file_without_points_is_refused_in_a_line(tmp_path: Path, name: str, content: str, words: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=words) as caught:
        carry_points(str(tmp_path / name), shift, tmp_path / f"out_{name}")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / f"out_{name}").exists()


def test_points_that_were_not_placed_stay_as_they_are(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    _markups(tmp_path / "p.mrk.json", "LPS")
    content = json.loads((tmp_path / "p.mrk.json").read_text())
    content["markups"][0]["controlPoints"][0].update(position=[0, 0, 0], positionStatus="undefined")
    (tmp_path / "p.mrk.json").write_text(json.dumps(content))
    assert carry_points(str(tmp_path / "p.mrk.json"), shift, tmp_path / "o.mrk.json") == 1
    np.testing.assert_allclose(read(tmp_path / "o.mrk.json"), [[0, 0, 0], np.array([-1.5, 2, 3]) + SHIFT_LPS])
    assert "1 points were not placed" in caplog.text


def test_markups_in_other_units_are_refused(tmp_path: Path) -> None:
    _markups(tmp_path / "p.mrk.json", "LPS")
    content = json.loads((tmp_path / "p.mrk.json").read_text())
    content["markups"][0]["coordinateUnits"] = "cm"
    (tmp_path / "p.mrk.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="coordinateUnits 'cm'"):
        carry_points(str(tmp_path / "p.mrk.json"), shift, tmp_path / "o.mrk.json")
