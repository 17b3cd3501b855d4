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
"""Options that were renamed keep working by their old names, whichever way they come, with one line that says so."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import pytest
from monai.bundle import ConfigWorkflow, run

from scripts.api import register
from scripts.cli import main
from scripts.declared_options import declared_options
from scripts.old_names import NEW_NAMES
from scripts.utils.errors import InputError, find_input_error
from scripts.workflow import Workflow, run_workflow
from tests.helpers.known_pair import ROOT

INFERENCE = str(ROOT / "configs" / "inference.yaml")
SHOW = """
run:
  - _target_: scripts.option_safety.refuse_code_of_command
  - _target_: scripts.options.check_options
  - "$print('steps', @network_optimization::steps, 'saves', @save, 'shape', @image_shape, 'own', @own)"
own: null
"""


@pytest.fixture
def show(tmp_path: Path) -> str:
    """Return a config that prints options in place of registering."""
    path = tmp_path / "show.yaml"
    path.write_text(SHOW)
    return str(path)


def refusal(work: Any, *arguments: Any, **options: Any) -> str:
    with pytest.raises((RuntimeError, InputError)) as caught:
        work(*arguments, **options)
    error = find_input_error(caught.value)
    assert error is not None, caught.value
    assert "\n" not in str(error)
    return str(error)


def warned(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "scripts.old_names"]


def test_the_command_takes_old_names(show: str, capsys: pytest.CaptureFixture[str]) -> None:
    options = {"steps": 7, "save_page": True, "network_shape": [9, 9, 9], "own": 3}
    run(run_id="run", config_file=[INFERENCE, show], bundle_root=str(ROOT), **options)
    printed = capsys.readouterr().out
    assert "steps 7 saves" in printed
    assert "'page': True" in printed
    assert "shape [9, 9, 9] own 3" in printed
    assert printed.count("options have new names") == 1
    assert "steps is now network_optimization::steps, network_shape is now image_shape, save_page is now" in printed


def test_a_config_of_ones_own_takes_old_names_and_refers_to_them(
    tmp_path: Path, show: str, capsys: pytest.CaptureFixture[str]
) -> None:
    own = tmp_path / "mine.yaml"
    own.write_text('steps: 8\nown: "$@steps + @network_shape[0]"\n')
    run(run_id="run", config_file=[INFERENCE, show, str(own)], bundle_root=str(ROOT))
    assert "steps 8 saves" in (printed := capsys.readouterr().out)
    assert "own 183" in printed
    assert "steps is now network_optimization::steps, network_shape is now image_shape (" in printed


@pytest.mark.parametrize("made", [Workflow, ConfigWorkflow])
def test_workflows_built_in_python_take_old_names(made: type, caplog: pytest.LogCaptureFixture) -> None:
    """MONAI's own class does not keep the names of its files."""
    options = {"bundle_root": str(ROOT), "field_levels": {"default": [[8, 1]]}, "save_page": True}
    files = (
        {"config_files": [INFERENCE], "options": options} if made is Workflow else {"config_file": INFERENCE, **options}
    )
    workflow = made(workflow_type="inference", logging_file=False, **files)
    workflow.initialize()
    before = workflow.parser.get_parsed_content("inferer")  # somebody looked at it
    assert "nothing to register" in refusal(workflow.run)
    assert workflow.parser.get_parsed_content("field::levels") == {"default": [[8, 1]]}
    assert workflow.parser.get_parsed_content("save")["page"] is True
    assert [(level.size, level.steps) for level in workflow.parser.get_parsed_content("inferer").levels] == [(8, 1)]
    assert workflow.parser.get_parsed_content("inferer") is not before
    assert len(warned(caplog)) == 1


def test_the_api_and_the_short_command_take_old_names(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "does not exist" in refusal(register, "none.nii.gz", "none.nii.gz", lncc_sigma=3)
    assert "lncc_sigma is now network_optimization::sigma" in warned(caplog)[0]
    caplog.clear()
    assert main(["register", "none.nii.gz", "none.nii.gz", "--field_sigma", "3"]) == 1
    printed = capsys.readouterr()
    assert "does not exist" in printed.err
    assert "field_sigma is now field::sigma" in printed.out


def test_training_keeps_its_own_names(caplog: pytest.LogCaptureFixture) -> None:
    options = {"network_shape": [24, 24, 24], "learning_rate": 0.1, "lncc_sigma": 3}
    refusal(run_workflow, ("train.yaml",), options)
    assert warned(caplog) == []


@pytest.mark.parametrize(
    "options",
    [
        {"save_page": True, "save::page": False},
        {"save_page": True, "save::page": True},
        {"network_shape": [9, 9, 9], "image_shape": [8, 8, 8]},
        {"steps": 3, "network_optimization": {"steps": 4}},
    ],
)
def test_an_option_given_by_both_names_is_refused(show: str, options: dict[str, Any]) -> None:
    old = next(iter(options))
    full = NEW_NAMES[old]
    line = f"{old} is the old name of {full}, and both are given; leave out {old}"
    assert refusal(run, run_id="run", config_file=[INFERENCE, show], bundle_root=str(ROOT), **options) == line
    assert refusal(run_workflow, ("inference.yaml",), options) == line


def test_both_names_in_a_file_and_on_the_command_are_refused(tmp_path: Path, show: str) -> None:
    own = tmp_path / "mine.yaml"
    own.write_text("field: {sigma: 3}\n")
    files = [INFERENCE, show, str(own)]
    line = refusal(run, run_id="run", config_file=files, bundle_root=str(ROOT), field_sigma=4)
    assert line == "field_sigma is the old name of field::sigma, and both are given; leave out field_sigma"


def test_a_value_of_a_config_laid_over_is_no_option_given(caplog: pytest.LogCaptureFixture) -> None:
    """cohort.yaml turns pages on."""
    assert "no pairs" in refusal(run_workflow, ("inference.yaml", "cohort.yaml"), {"save_page": False})
    assert "save_page is now save::page" in warned(caplog)[0]


def test_all_processes_but_the_first_are_silent(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("RANK", "1")
    caplog.set_level(logging.INFO)
    assert "nothing to register" in refusal(run_workflow, ("inference.yaml",), {"steps": 3})
    assert warned(caplog) == []


def test_the_names_are_those_that_the_upgrading_page_says_and_the_configs_have() -> None:
    rows = re.findall(
        r"^\| `(\w+)` \| `([\w:]+)` \|$", (ROOT / "UPGRADING.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert {old: new for old, new in rows if old in NEW_NAMES} == NEW_NAMES
    assert set(NEW_NAMES.values()) <= set(declared_options(["inference.yaml"]))
