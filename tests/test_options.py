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
"""A typo among the options must stop the run; everything that MONAI allows otherwise stays allowed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from monai.bundle import ConfigWorkflow, run

from scripts.options import raise_unknown
from scripts.utils.errors import InputError, find_input_error

CONFIG = """
bundle_root: .
fixed: null
moving: null
steps: 50
progress: true
turn: "$@steps > 1"
evaluator: {amp: false, note: "@extra_note"}
extra_note: null
noted: "$print('ran with', @steps, @evaluator)"
inference: "%run"
run:
  - _target_: scripts.options.check_options
  - "@noted"
"""


@pytest.fixture
def config(tmp_path: Path) -> str:
    folder = tmp_path / "configs"
    folder.mkdir()
    (folder / "metadata.json").write_text('{"version": "0.1.0"}')
    (folder / "inference.yaml").write_text(CONFIG)
    (folder / "more.yaml").write_text("learning_rate: 0.1\n")
    return str(folder / "inference.yaml")


def execute(config: Any, **options: Any) -> None:
    run(run_id="inference", config_file=config, **options)


def refusal(config: Any, **options: Any) -> str:
    with pytest.raises(RuntimeError) as caught:
        execute(config, **options)
    error = find_input_error(caught.value)
    assert error is not None, caught.value
    return str(error)


@pytest.mark.parametrize(
    "options",
    [
        {"fixed": "a.nii.gz", "steps": 3},
        {"evaluator::amp": True},
        {"evaluator#amp": True},
        {"bundle_root": "/tmp"},
        {"my_steps": 7, "steps": "@my_steps"},
    ],
)
def test_declared_nested_and_referenced_options_are_allowed(options: dict, config: str) -> None:
    execute(config, **options)


def test_a_typo_is_refused_with_the_closest_option(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    message = refusal(config, fixd="a.nii.gz", moving="b.nii.gz")
    assert message.startswith("unknown option --fixd, did you mean 'fixed'?")
    assert "moving" not in message
    assert "ran with" not in capsys.readouterr().out


def test_a_typo_with_nothing_as_value_is_refused(config: str) -> None:
    assert "--fixd" in refusal(config, fixd=None)


def test_an_option_of_a_file_that_is_not_in_use_is_refused(config: str) -> None:
    assert "--learning_rate" in refusal(config, learning_rate=1)
    execute([config, str(Path(config).with_name("more.yaml"))], learning_rate=1)


def test_a_typo_in_an_args_file_is_refused(config: str, tmp_path: Path) -> None:
    args = tmp_path / "args.yaml"
    args.write_text(f"config_file: {config}\nstpes: 3\n")
    with pytest.raises(RuntimeError) as caught:
        run(run_id="inference", args_file=str(args))
    assert "--stpes, did you mean 'steps'?" in str(find_input_error(caught.value))
    args.write_text(f"config_file: {config}\nsteps: 3\n")
    run(run_id="inference", args_file=str(args))


@pytest.mark.parametrize(("option", "value"), [("progress", "false"), ("progress", "no"), ("turn", "false")])
def test_a_text_for_a_switch_is_refused(config: str, option: str, value: str) -> None:
    message = refusal(config, **{option: value})
    assert message.startswith(f"{option}: expected True or False, got the text '{value}'; write --{option} True or")


@pytest.mark.parametrize("value", [False, 0])
def test_a_switch_takes_false(config: str, value: Any) -> None:
    execute(config, progress=value, turn=True)


def test_a_switch_in_lower_case_on_the_command_line_is_refused(config: str) -> None:
    result = command(config, "--progress", "false")
    assert result.returncode == 1
    assert "error: progress: expected True or False, got the text 'false'" in result.stderr
    assert "ran with" not in result.stdout


def test_a_word_without_option_is_refused(config: str) -> None:
    assert "'b.nii.gz' was given without the name of an option" in refusal(config, init_id="b.nii.gz")


def workflow(config: str, **options: Any) -> ConfigWorkflow:
    made = ConfigWorkflow(config_file=config, workflow_type="infer", logging_file=False, **options)
    made.initialize()
    return made


def test_a_workflow_built_in_python_is_checked_as_well(config: str) -> None:
    """Which files it was built from is not known then: the ids of all files in the folder are allowed."""
    workflow(config, steps=3, learning_rate=2, **{"evaluator::amp": True}).run()
    with pytest.raises(RuntimeError) as caught:
        workflow(config, fixd="x").run()
    assert "--fixd" in str(find_input_error(caught.value))


def command(config: str, *words: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess:
    root = str(Path(__file__).resolve().parents[1])
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "monai.bundle", "run", "inference", "--config_file", config, *words],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "PYTHONPATH": root, **(environment or {})},
    )


def test_the_command_ends_with_one_line_and_status_1(config: str) -> None:
    result = command(config, "--fixd", "a.nii.gz", "--steps", "2")
    assert result.returncode == 1
    assert "error: unknown option --fixd, did you mean 'fixed'?" in result.stderr
    assert "Traceback" not in result.stderr
    assert "ran with" not in result.stdout


def test_a_value_cut_at_a_hash_is_refused(config: str) -> None:
    """The command line parser of MONAI takes '#' for a comment."""
    result = command(config, "--fixed", "scan#2.nii.gz")
    assert result.returncode == 1
    assert "error: fixed 'scan#2.nii.gz' is cut at the '#'" in result.stderr


def test_an_option_of_another_config_file_is_told_from_a_typo() -> None:
    with pytest.raises(
        InputError, match=r"unknown option --exported, of configs/inference_exported\.yaml, which is not"
    ):
        raise_unknown(["exported"], {"fixed"}, {"fixed"})
    with pytest.raises(
        InputError, match=r"unknown option --dash\.nii\.gz \(if -dash\.nii\.gz is a file, write \./-dash"
    ):
        raise_unknown(["dash.nii.gz"], {"fixed"}, {"fixed"})
    with pytest.raises(InputError, match="unknown option --fixd, did you mean 'fixed'"):
        raise_unknown(["fixd"], {"fixed"}, {"fixed"})
