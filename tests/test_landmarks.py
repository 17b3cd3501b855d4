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
from pathlib import Path

import pytest
import torch

from scripts.errors import InputError, InputFileError
from scripts.landmarks import read_landmark_pair, read_landmarks, write_warped_landmarks
from scripts.transform_io import GridTransform

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
        read_landmark_pair(write(tmp_path, POINTS), write(tmp_path, "x,y,z\n1,2,3\n", "moving.csv"))


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
