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
"""Landmark files: spaces, columns that are kept, directions, and one clear error each for what can't be read."""

from __future__ import annotations

import csv
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.data import MetaTensor

from scripts.data.landmarks import check_same_points, open_landmarks, read_landmarks, write_warped_landmarks
from scripts.geometry.grid_transform import GridTransform
from scripts.training.preprocessing import AddLandmarksd
from scripts.utils.errors import InputError, InputFileError

POINTS = "x,y,z\n1,2,3\n-4.5,5e1,6\n"


def write(folder: Path, text: str, name: str = "points.csv") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def shift(voxels: tuple[float, float, float]) -> GridTransform:
    ddf = torch.tensor(voxels).view(3, 1, 1, 1).expand(3, 200, 200, 200)
    affine = torch.eye(4)
    affine[:3, 3] = -100
    return GridTransform(ddf, affine, affine)


def test_lps_is_the_default_and_ras_can_be_named(tmp_path: Path) -> None:
    path = write(tmp_path, POINTS)
    assert read_landmarks(path).points_ras_mm.tolist() == [[-1, -2, 3], [4.5, -50, 6]]
    assert read_landmarks(path, "ras").points_ras_mm.tolist() == [[1, 2, 3], [-4.5, 50, 6]]


def test_other_columns_are_kept_in_any_order(tmp_path: Path) -> None:
    path = write(tmp_path, '\ufeffname, Z ,Y,X,label\n"a, b",3,2,1,7\n\nc,6,5,4,8\n')
    landmarks = read_landmarks(path, "RAS")
    assert landmarks.points_ras_mm.tolist() == [[1, 2, 3], [4, 5, 6]]
    assert landmarks.extra == ({"name": "a, b", "label": "7"}, {"name": "c", "label": "8"})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must begin with a line that names the columns x,y,z"),
        ("1,2,3\n4,5,6\n", "must begin with a line that names the columns x,y,z .* got '1,2,3'"),
        ("x,y\n1,2\n", "names the columns x,y,z"),
        ("x,x,y,z\n1,2,3,4\n", "once each"),
        ("x,y,z\n", "has a header and no points"),
        ("x,y,z\n1,2\n", "point 1: 2 cells for 3 columns"),
        ("x,y,z\n1,2,3\n1,two,3\n", "point 2: y is 'two'; give a finite number in mm"),
        ("x,y,z\n1,2,nan\n", "point 1: z is 'nan'; give a finite number"),
        ("x,y,z\ninf,2,3\n", "point 1: x is 'inf'; give a finite number"),
        ("x,y,z\n,2,3\n", "point 1: x is ''; give a finite number"),
    ],
)
def test_what_can_not_be_read_gives_one_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        read_landmarks(write(tmp_path, text))
    assert "\n" not in str(error.value)


def test_a_missing_file_and_an_unknown_space_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputFileError, match=r"none\.csv' can't be read"):
        read_landmarks(tmp_path / "none.csv")
    with pytest.raises(InputError, match="landmark_space 'MNI' is unknown; give LPS"):
        read_landmarks(write(tmp_path, POINTS), "MNI")
    path = tmp_path / "binary.csv"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="can't be read as CSV"):
        read_landmarks(path)


def test_pairs_must_have_as_many_points(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has 2 points and moving_landmarks .* 1; give the same landmarks"):
        check_same_points(
            open_landmarks(write(tmp_path, POINTS)), open_landmarks(write(tmp_path, "x,y,z\n1,2,3\n", "moving.csv"))
        )


@pytest.mark.parametrize(("space", "sign"), [("RAS", 1.0), ("LPS", -1.0)])
def test_fixed_points_go_forward_and_moving_points_back(tmp_path: Path, space: str, sign: float) -> None:
    fixed = read_landmarks(write(tmp_path, "name,x,y,z\nhilum,1,2,3\n", "fixed.csv"), space)
    moving = read_landmarks(write(tmp_path, "x,y,z,side\n10,20,30,left\n", "moving.csv"), space)
    groups = [("fixed", fixed, shift((5.0, 0, 2.0))), ("moving", moving, shift((-5.0, 0, -2.0)))]
    write_warped_landmarks(tmp_path / "warped.csv", groups, space)
    with open(tmp_path / "warped.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["image", "x", "y", "z", "warped_x", "warped_y", "warped_z", "name", "side"]
    expected = [("fixed", (1, 2, 3), 5, "hilum", ""), ("moving", (10, 20, 30), -5, "", "left")]
    for row, (image, point, step, name, side) in zip(rows, expected, strict=True):
        assert (row["image"], row["name"], row["side"]) == (image, name, side)
        assert [float(row[axis]) for axis in "xyz"] == pytest.approx(point)
        carried = [point[0] + sign * step, point[1], point[2] + step * 2 / 5]
        assert [float(row[f"warped_{axis}"]) for axis in "xyz"] == pytest.approx(carried, abs=1e-5)


def test_a_written_file_can_be_read_again(tmp_path: Path) -> None:
    landmarks = read_landmarks(write(tmp_path, POINTS))
    write_warped_landmarks(tmp_path / "warped.csv", [("fixed", landmarks, shift((0, 0, 0)))])
    again = read_landmarks(tmp_path / "warped.csv")
    torch.testing.assert_close(again.points_ras_mm, landmarks.points_ras_mm)


MARKED = [[10.0, 20.0, 30.0], [-1.5, 2.0, 3.0]]  # as the numbers stand in the files


def fcsv(system: str | None) -> str:
    """Return a file of 3D Slicer 4 or 5 with its space written as given, or not at all."""
    line = "" if system is None else f"# CoordinateSystem = {system}\n"
    return (
        f"# Markups fiducial file version = 4.11\n{line}"
        "# columns = id,x,y,z,ow,ox,oy,oz,vis,sel,lock,label,desc,associatedNodeID\n"
        'vtkMRML_0,10,20,30,0,0,0,1,1,1,0,carina,"a, b",node\nvtkMRML_1,-1.5,2,3,0,0,0,1,1,1,0,F-2,,\n'
    )


def markups(system: str | None, **more: Any) -> str:
    """Return markups of 3D Slicer 5."""
    points = [
        {"id": "1", "label": "carina", "description": "a, b", "position": MARKED[0], "positionStatus": "defined"},
        {"id": "2", "label": "F-2", "position": MARKED[1], **more.pop("second", {})},
    ]
    space = {} if system is None else {"coordinateSystem": system}
    return json.dumps({"@schema": "x", "markups": [{"type": "Fiducial", **space, **more, "controlPoints": points}]})


def vtk(system: str | None) -> str:
    """Return points as VTK's legacy file."""
    title = "points" if system is None else f"vtk output SPACE={system}"
    return f"# vtk DataFile Version 3.0\n{title}\nASCII\nDATASET POLYDATA\nPOINTS 2 float\n10 20 30 -1.5 2 3\n"


SPACES: list[tuple[str, Callable[[str | None], str], str | None, str]] = [
    *(
        (".fcsv", fcsv, written, space)
        for written, space in (("LPS", "LPS"), ("RAS", "RAS"), ("1", "LPS"), ("0", "RAS"))
    ),
    (".fcsv", fcsv, "ras", "RAS"),
    (".fcsv", fcsv, None, "RAS"),
    (".mrk.json", markups, "LPS", "LPS"),
    (".mrk.json", markups, "RAS", "RAS"),
    (".mrk.json", markups, None, "LPS"),
    (".json", markups, "RAS", "RAS"),
    (".vtk", vtk, "LPS", "LPS"),
    (".vtk", vtk, "RAS", "RAS"),
]


@pytest.mark.parametrize("given", ["LPS", "RAS", "voxel"])
@pytest.mark.parametrize(("suffix", "make", "written", "space"), SPACES)
def test_the_space_that_a_file_states_goes_before_the_option(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    suffix: str,
    make: Callable[[str | None], str],
    written: str | None,
    space: str,
    given: str,
) -> None:
    path = write(tmp_path, make(written), f"points{suffix}")
    with caplog.at_level(logging.WARNING):
        for _ in range(3):  # as checks, measures and outputs do
            landmarks = read_landmarks(path, given, torch.eye(4))
    expected = torch.tensor(MARKED, dtype=torch.float64) * torch.tensor([1.0 if space == "RAS" else -1.0] * 2 + [1.0])
    torch.testing.assert_close(landmarks.points_ras_mm, expected, rtol=0, atol=1e-5)
    if written is not None:
        assert len(caplog.records) == (given.upper() != space)
        assert all(f"states the space {space}" in record.message for record in caplog.records)
    if suffix != ".vtk":
        assert landmarks.extra == ({"label": "carina", "description": "a, b"}, {"label": "F-2", "description": ""})


@pytest.mark.parametrize("given", ["LPS", "RAS"])
def test_a_vtk_file_without_a_space_takes_the_option_s(tmp_path: Path, given: str) -> None:
    path = write(tmp_path, vtk(None), "p.vtk")
    sign = 1 if given == "RAS" else -1
    assert read_landmarks(path, given).points_ras_mm[0].tolist() == [10 * sign, 20 * sign, 30]
    with pytest.raises(InputError, match="VOXEL is for CSV"):
        read_landmarks(path, "voxel", torch.eye(4))


def test_a_file_without_a_space_is_said_to_be_read_as_slicer_does(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        read_landmarks(write(tmp_path, fcsv(None), "old.fcsv"))
    assert "states no CoordinateSystem; it is read as RAS" in caplog.text


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("p.mrk.json", markups("LPS", second={"positionStatus": "undefined"}), "'F-2' was not placed"),
        ("p.mrk.json", markups("LPS", coordinateUnits="cm"), "coordinateUnits 'cm'; give points in mm"),
        ("p.mrk.json", markups("LPS", coordinateUnits=["um", "UCUM", "micrometer"]), "coordinateUnits 'um'"),
        ("p.mrk.json", markups("IJK"), "coordinate system 'IJK'"),
        ("p.mrk.json", "{}", "not markups"),
        ("p.mrk.json", '{"markups": []}', "no points"),
        ("p.fcsv", fcsv("2"), "coordinate system '2'"),
        ("p.fcsv", "# CoordinateSystem = LPS\n", "no points"),
        ("p.fcsv", "# CoordinateSystem = LPS\nid,nan,1,2\n", "not finite"),
        ("p.vtk", "nothing\nat all\n", "can't be read"),
    ],
)
def test_slicer_files_that_can_not_be_used_give_one_line(tmp_path: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        read_landmarks(write(tmp_path, text, name))
    assert "\n" not in str(error.value)
    assert name in str(error.value)


def test_a_missing_slicer_file_is_named(tmp_path: Path) -> None:
    for name in ("none.fcsv", "none.mrk.json", "none.vtk"):
        with pytest.raises(InputFileError, match="can't be read"):
            read_landmarks(tmp_path / name)


@pytest.mark.parametrize("unit", ["mm", ["mm", "UCUM", "millimeter"]])
def test_markups_in_mm_are_read(tmp_path: Path, unit: Any) -> None:
    path = write(tmp_path, markups("RAS", coordinateUnits=unit), "p.mrk.json")
    assert read_landmarks(path, "RAS").points_ras_mm.tolist() == MARKED


@pytest.mark.parametrize(("option", "sign"), [("LPS", -1.0), ("RAS", 1.0)])
def test_warped_landmarks_of_files_in_several_spaces_are_written_in_the_option_s(
    tmp_path: Path, option: str, sign: float
) -> None:
    fixed = read_landmarks(write(tmp_path, fcsv("RAS"), "fixed.fcsv"), option)
    moving = read_landmarks(write(tmp_path, markups("LPS"), "moving.mrk.json"), option)
    groups = [("fixed", fixed, shift((5.0, 0, 2.0))), ("moving", moving, shift((-5.0, 0, -2.0)))]
    write_warped_landmarks(tmp_path / "warped.csv", groups, option)
    with open(tmp_path / "warped.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["label"] for row in rows] == ["carina", "F-2"] * 2
    for row, (x, y, z), file_sign, step in zip(rows, MARKED * 2, [1, 1, -1, -1], [5, 5, -5, -5], strict=True):
        marked = [x * sign * file_sign, y * sign * file_sign, z]
        assert [float(row[axis]) for axis in "xyz"] == pytest.approx(marked)
        carried = [marked[0] + sign * step, marked[1], z + step * 2 / 5]
        assert [float(row[f"warped_{axis}"]) for axis in "xyz"] == pytest.approx(carried, abs=1e-5)


def test_a_registration_and_a_training_list_take_slicer_files(tmp_path: Path) -> None:
    files = write(tmp_path, fcsv("0"), "f.fcsv"), write(tmp_path, markups("RAS"), "m.mrk.json")
    pair = [read_landmarks(file) for file in files]
    torch.testing.assert_close(pair[0].points_ras_mm, pair[1].points_ras_mm)
    record = {"landmarks": str(tmp_path / "f.fcsv"), "image": MetaTensor(torch.zeros(1, 2, 2, 2))}
    assert AddLandmarksd()(record)["landmarks"].tolist() == MARKED
