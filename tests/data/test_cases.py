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
"""Options and datalists become cases; whatever can't work is refused up front, in one line."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from scripts.data.cases import load_cases, require_cases
from scripts.transforms.outputs.save import check_outputs
from scripts.utils.errors import InputError


def save(path: Path, shape: tuple[int, ...] = (5, 6, 7)) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(np.arange(np.prod(shape), dtype=np.int16).reshape(shape), np.eye(4)), path)
    return str(path)


@pytest.fixture
def pair(tmp_path: Path) -> dict[str, Any]:
    return {
        "fixed": save(tmp_path / "fixed.nii.gz"),
        "moving": save(tmp_path / "moving.nii"),
        "fixed_modality": "ct",
        "moving_modality": "mri",
        "output_dir": str(tmp_path / "out"),
    }


@pytest.fixture
def listed(tmp_path: Path) -> dict[str, Any]:
    save(tmp_path / "lists" / "a.nii.gz")
    save(tmp_path / "lists" / "b.nii.gz")
    defaults = {"fixed_modality": "mr", "moving_modality": "mr", "output_dir": str(tmp_path / "out")}
    return {"datalist": str(tmp_path / "lists" / "pairs.json"), **defaults}


def write_list(listed: dict[str, Any], rows: Any) -> None:
    Path(listed["datalist"]).write_text(json.dumps(rows))


def test_a_pair_is_one_case_directly_in_the_output_folder(pair: dict[str, Any]) -> None:
    (case,) = load_cases(**pair)
    assert set(case.pop("opened")) == {"fixed", "moving"}
    assert case == {
        "case": "moving_to_fixed",
        "case_dir": pair["output_dir"],
        "fixed": pair["fixed"],
        "moving": pair["moving"],
        "fixed_modality": "ct",
        "moving_modality": "mr",
    }


def test_checking_leaves_nothing_behind(pair: dict[str, Any], tmp_path: Path) -> None:
    before = sorted(path.name for path in tmp_path.iterdir())
    load_cases(**pair)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_json_paths_are_relative_to_the_list_and_cases_win_over_options(listed: dict[str, Any], tmp_path: Path) -> None:
    write_list(
        listed,
        [
            {"fixed": "a.nii.gz", "moving": "b.nii.gz", "fixed_modality": "CT"},
            {"fixed": "a.nii.gz", "moving": "b.nii.gz", "fixed_label": None},
            {"case": "third", "fixed": "b.nii.gz", "moving": "a.nii.gz", "moving_label": "a.nii.gz"},
        ],
    )
    cases = load_cases(**listed)
    assert [case["case"] for case in cases] == ["b_to_a", "b_to_a_2", "third"]
    assert [case["fixed_modality"] for case in cases] == ["ct", "mr", "mr"]
    assert cases[2]["case_dir"] == str(tmp_path / "out" / "third")
    assert cases[2]["moving_label"] == str(tmp_path / "lists" / "a.nii.gz")
    assert "fixed_label" not in cases[1]


def test_csv_equals_json(listed: dict[str, Any]) -> None:
    write_list(
        listed, [{"fixed": "a.nii.gz", "moving": "b.nii.gz", "case": "x"}, {"fixed": "b.nii.gz", "moving": "a.nii.gz"}]
    )
    from_json = load_cases(**listed)
    csv = Path(listed["datalist"]).with_suffix(".csv")
    csv.write_text(
        "\ufefffixed, moving, case, fixed_mask\na.nii.gz,b.nii.gz,x,\nb.nii.gz,a.nii.gz,,\n", encoding="utf-8"
    )
    assert load_cases(**{**listed, "datalist": str(csv)}) == from_json


def test_a_path_with_a_hash_works(pair: dict[str, Any], tmp_path: Path) -> None:
    """MONAI's config parser hands over '::' instead of '#'."""
    path = save(tmp_path / "scan#2.nii.gz")
    assert load_cases(**{**pair, "moving": path.replace("#", "::")})[0]["moving"] == path


def test_paths_that_the_command_line_took_for_python_are_restored(pair: dict[str, Any], tmp_path: Path) -> None:
    path = save(tmp_path / "a,b.nii.gz")
    assert load_cases(**{**pair, "moving": tuple(path.split(","))})[0]["moving"] == path


def test_a_workflow_without_data_can_be_built_but_not_run() -> None:
    cases = load_cases(required=False)
    assert cases == []
    with pytest.raises(InputError, match="--fixed FILE and --moving FILE, or --datalist"):
        require_cases(cases)


def make_bad_files(folder: Path) -> None:
    """Write what the table below names as HERE/..."""
    (folder / "garbage.nii.gz").write_bytes(b"not an image")
    (folder / "empty").mkdir()
    (folder / "file").write_text("")
    (folder / "points.csv").write_text("a,b\n1,2\n")
    for name, shape in (("4d", (4, 5, 6, 3)), ("2d", (5, 6)), ("slice", (5, 6, 1))):
        save(folder / f"{name}.nii.gz", shape)


BAD_OPTIONS = [
    ({"fixed": "/no/such.nii.gz"}, r"^fixed: '/no/such.nii.gz' does not exist"),
    ({"moving_mask": "/no/such.nii.gz"}, r"^moving_mask: '/no/such.nii.gz' does not exist"),
    ({"fixed": "/no/a::b.nii.gz"}, r"fixed: .*does not exist \(MONAI turns '#' into '::'"),
    ({"fixed": "HERE/garbage.nii.gz"}, r"fixed: .*garbage.*not an image.*NIfTI, NRRD"),
    ({"moving": None}, r"moving is missing; give --moving FILE"),
    ({"fixed_modality": None}, r"fixed_modality is missing; give --fixed_modality ct or mr"),
    ({"moving_modality": "pet"}, r"moving_modality 'pet' is unknown; give ct or mr"),
    ({"datalist": "list.json"}, r"--datalist and --fixed exclude each other"),
    ({"output_dir": None}, r"output_dir is missing"),
    ({"output_dir": "HERE/file/out"}, r"output_dir .* '.*/file' is a file"),
    ({"output_dir": "/tmp/a::b"}, r"output_dir '/tmp/a::b': MONAI turns '#' into '::'"),
    ({"fixed": "HERE/empty"}, r"fixed: .*empty' is a folder without DICOM images"),
    ({"fixed": "HERE/2d.nii.gz"}, r"fixed: .* is 2-D \(5 x 6\); give a 3-D volume"),
    ({"moving": "HERE/slice.nii.gz"}, r"moving: .* is .*2-D.*; give a 3-D volume"),
    ({"fixed": "HERE/4d.nii.gz"}, r"fixed: .* is 4-D with 3 frames; select one with --frame N \(0 to 2\)"),
    ({"fixed": "HERE/4d.nii.gz", "frame": 3}, r"fixed: .* has 3 frames, but frame is 3; give 0 to 2"),
    ({"frame": "last"}, r"frame must be a whole number from 0, got 'last'"),
    (
        {"fixed_landmarks": "HERE/points.csv"},
        r"landmarks .*points.csv. must begin with a line that names the columns x,y,z",
    ),
    ({"fixed_landmarks": "HERE/empty"}, r"fixed_landmarks: .* is a folder; give a file"),
    ({"fixed": True}, r"fixed must be a path, got True"),
]


@pytest.mark.parametrize(("options", "message"), BAD_OPTIONS)
def test_bad_options_are_refused_in_one_line(
    options: dict[str, Any], message: str, pair: dict[str, Any], tmp_path: Path
) -> None:
    make_bad_files(tmp_path)
    here = {
        key: value.replace("HERE", str(tmp_path)) if isinstance(value, str) else value for key, value in options.items()
    }
    with pytest.raises(InputError, match=message) as caught:
        load_cases(**{**pair, **here})
    assert "\n" not in str(caught.value)
    assert not Path(pair["output_dir"]).exists()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"fixd": "a.nii.gz", "moving": "b.nii.gz"}], r"unknown entry 'fixd', did you mean 'fixed'\?"),
        ([{"moving": "b.nii.gz"}], r"case 1: fixed is missing"),
        ([{"fixed": "a.nii.gz", "moving": "gone.nii.gz"}], r"case 1: moving: '.*lists/gone.nii.gz' does not exist"),
        ([{"case": "../x", "fixed": "a.nii.gz", "moving": "b.nii.gz"}], r"the name '../x' can't be a folder's name"),
        (
            [{"case": "x", "fixed": "a.nii.gz", "moving": "b.nii.gz"}] * 2,
            r"case 2: the name 'x' is also that of case 1",
        ),
        ({"fixed": "a.nii.gz"}, r"must be a list of objects"),
        ([], r"has no cases"),
    ],
)
def test_bad_datalists_are_refused(rows: Any, message: str, listed: dict[str, Any]) -> None:
    write_list(listed, rows)
    with pytest.raises(InputError, match=message):
        load_cases(**listed)


def test_a_damaged_datalist_is_refused(listed: dict[str, Any]) -> None:
    Path(listed["datalist"]).write_text("[{")
    with pytest.raises(InputError, match="can't be read as JSON or CSV"):
        load_cases(**listed)
    with pytest.raises(InputError, match=r"must end in .json or .csv"):
        load_cases(**{**listed, "datalist": save(Path(listed["datalist"]).parent / "c.nii.gz")})


def test_an_input_that_the_result_would_overwrite_is_refused(pair: dict[str, Any]) -> None:
    moving = save(Path(pair["output_dir"]) / "warped_moving.nii.gz")
    with pytest.raises(InputError, match="would be overwritten"):
        check_outputs(load_cases(**{**pair, "moving": moving}), {"warped": True})


def test_an_output_folder_that_refuses_files_is_refused(pair: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    with pytest.raises(InputError, match=r"output_dir .* can't be written \(Permission denied\); give another folder"):
        load_cases(**pair)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_an_unwritable_output_folder_is_refused(pair: dict[str, Any], tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    with pytest.raises(InputError, match=r"output_dir .* can't be written"):
        load_cases(**{**pair, "output_dir": str(locked / "out")})
