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
"""Outputs are declared once: each names its switch and its files, and what is removed, checked and listed follows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from monai.bundle import ConfigParser

from scripts.evaluation.learn2reg_submission import write_submission
from scripts.transforms.outputs.base import KINDS, Output
from scripts.transforms.outputs.files import is_result, remove_results, result_patterns
from scripts.transforms.outputs.save import SaveOutputsd, switched_on, write_outputs
from scripts.transforms.postprocessing import AddMetricsd, AddTransformsd, AddWarpedLabeld
from scripts.utils.errors import InputError
from tests.helpers.known_pair import ROOT
from tests.helpers.registered import registered_case


def learn2reg_case(folder: Path, subject: int) -> dict[Any, Any]:
    """A registered case of one grid, whose files are named as Learn2Reg's."""
    (folder / "data").mkdir(exist_ok=True)
    data = registered_case(folder / "data")
    data["moving"], data["moving_image"] = data["fixed"].clone(), data["fixed_image"].clone()
    for side, number in (("fixed", subject), ("moving", subject + 1)):
        data[side].meta["filename_or_obj"] = str(folder / f"Made_{number:04d}_0000.nii.gz")
    data["case_dir"] = str(folder / "out" / "case")
    return AddMetricsd()(AddWarpedLabeld()(AddTransformsd()(data)))


def test_a_field_of_an_earlier_pair_does_not_stay_nor_get_into_a_submission(tmp_path: Path) -> None:
    save = SaveOutputsd({"learn2reg": True})
    first = save(learn2reg_case(tmp_path, 1))
    folder = Path(first["case_dir"])
    assert first["written"] == ("disp_0001_0002.nii.gz",)
    own = folder / "disp_mine.nii.gz"
    own.write_text("a user's own file, named alike")
    save(learn2reg_case(tmp_path, 3))
    assert sorted(path.name for path in folder.iterdir()) == [
        "disp_0003_0004.nii.gz",
        "disp_mine.nii.gz",
        "report.json",
    ]
    assert write_submission(tmp_path / "out", tmp_path / "submission.zip") == 1
    SaveOutputsd({"displacement": True})(learn2reg_case(tmp_path, 5))
    assert sorted(path.name for path in folder.iterdir()) == ["disp_mine.nii.gz", "displacement.nii.gz", "report.json"]
    with pytest.raises(InputError, match="holds no disp_"):
        write_submission(tmp_path / "out", tmp_path / "submission.zip")
    assert own.is_file()


def test_a_report_that_a_user_has_changed_removes_nothing_elsewhere(tmp_path: Path) -> None:
    folder = tmp_path / "case"
    folder.mkdir()
    (tmp_path / "disp_0001_0002.nii.gz").write_text("x")
    for outputs in (["../disp_0001_0002.nii.gz", "notes.txt", 3], "disp_0001_0002.nii.gz", None):
        (folder / "notes.txt").write_text("x")
        (folder / "report.json").write_text(json.dumps({"outputs": outputs}))
        remove_results(folder)
        assert [path.name for path in folder.iterdir()] == ["notes.txt"]
    assert (tmp_path / "disp_0001_0002.nii.gz").is_file()


def test_the_config_offers_each_output_once() -> None:
    config = ConfigParser.load_config_file(str(ROOT / "configs" / "inference.yaml"))
    names = list(dict.fromkeys(kind.name for kind in KINDS))
    assert sorted(config["save"]) == sorted(names)
    assert result_patterns()[0] == "report.json"
    assert is_result("disp_0001_0002.nii.gz")
    assert not is_result("fixed.nii.gz")


@pytest.mark.parametrize(
    ("save", "words"),
    [
        ({"jacobain": True}, r"unknown output 'jacobain', did you mean 'jacobian'\?; known: "),
        ({"jacobian": "yes"}, "jacobian must be True or False, got 'yes'"),
    ],
)
def test_switches_that_are_none_are_refused_in_a_line(save: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        switched_on(save)
    assert "\n" not in str(caught.value)


def test_a_file_that_its_output_does_not_declare_is_an_error(tmp_path: Path) -> None:
    class Undeclared(Output):
        files = ("a.txt",)

        def write(self, data: Any, folder: Path) -> list[str]:
            return ["b.txt"]

    with pytest.raises(ValueError, match=r"Undeclared wrote 'b.txt', which its files do not declare"):
        write_outputs([Undeclared()], {}, tmp_path)
    assert Undeclared not in KINDS  # it has no name


def test_without_a_folder_nothing_is_written_and_the_report_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = learn2reg_case(tmp_path, 1)
    del data["case_dir"]
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    done = SaveOutputsd({"transforms": True, "warped": True}, seed=3)(data)
    assert sorted(tmp_path.rglob("*")) == before
    assert (done["report"]["seed"], done["report"]["outputs"]) == (3, [])
