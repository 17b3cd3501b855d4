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
"""Options are data: no code comes from the command line, an API or an args file."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from scripts.cli import main
from scripts.option_safety import refuse_code
from scripts.utils.errors import InputError
from scripts.workflow import run_workflow
from tests.helpers.commands import run_modules
from tests.helpers.known_pair import ROOT

CODE = "$__import__('pathlib').Path({path!r}).touch()"


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "monai.bundle", "run", *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


WORKFLOWS = (
    ("inference", ["inference"]),
    ("cohort", ["inference", "cohort"]),
    ("evaluate", ["inference", "evaluate"]),
    ("apply", ["apply"]),
    ("training", ["train"]),
    ("training", ["train", "finetune"]),
)


def test_a_command_runs_no_code_of_its_options(tmp_path: Path) -> None:
    code = CODE.format(path=str(tmp_path / "ran"))
    commands, options = [], []
    for run_id, configs in WORKFLOWS:
        files = [f"configs/{name}.yaml" for name in configs]
        options.append("output_dir" if run_id == "apply" else "seed")  # what is needed first
        commands.append(["monai.bundle", "run", run_id, "--config_file", str(files), f"--{options[-1]}", code])
    for result, option in zip(run_modules(commands, tmp_path), options, strict=True):
        assert result.returncode == 1
        last = result.stderr.strip().splitlines()[-1]
        assert last.startswith(f"error: {option}: expected a plain value, got the code"), last
    assert not (tmp_path / "ran").exists()


def test_all_workflows_are_guarded_before_an_option_is_used() -> None:
    guarded = 0
    for path in sorted((ROOT / "configs").glob("*.yaml")):
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        assert "initialize" not in content, path.name  # MONAI finds our code only when it comes to `run`
        if "run" in content:
            assert content["run"][0] == {"_target_": "scripts.option_safety.refuse_code_of_command"}, path.name
            guarded += 1
    assert guarded == 5


def test_an_args_file_is_no_config_file(tmp_path: Path) -> None:
    (tmp_path / "args.yaml").write_text(
        yaml.safe_dump(
            {"config_file": str(ROOT / "configs" / "apply.yaml"), "image": CODE.format(path=str(tmp_path / "ran"))}
        )
    )
    result = command("apply", "--args_file", str(tmp_path / "args.yaml"))
    assert "image: expected a plain value" in result.stderr
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "value",
    [
        "$1 + 1",
        "%other.yaml::key",
        {"_target_": "os.system", "command": "true"},
        [1, {"a": ["$1"]}],
    ],
)
def test_expressions_objects_and_parts_of_files_are_code(value: Any) -> None:
    with pytest.raises(InputError, match=r"^fixed: expected a plain value, got the code") as caught:
        refuse_code({"moving": "b.nii", "fixed": value})
    assert "mine.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["inferer::_target_", "add_metrics#_target_", "+add_metrics::_mode_", "a::_disabled_"])
def test_a_name_that_changes_what_is_built_is_code(name: str) -> None:
    with pytest.raises(InputError, match="got the code '_"):
        refuse_code({name: "subprocess.getoutput"})


def test_names_with_a_dollar_inside_are_no_code() -> None:
    refuse_code({"fixed": "a$b.nii.gz", "levels": {"default": [[16, 8]]}, "steps": 3, "mask": None, "same": "@steps"})


def test_the_api_and_the_short_command_run_no_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = CODE.format(path=str(tmp_path / "ran"))
    with pytest.raises(InputError, match="seed: expected a plain value"):
        run_workflow(["inference.yaml"], {"seed": code})
    assert main(["register", "a.nii", "b.nii", "--device", code]) == 1
    assert "device: expected a plain value" in capsys.readouterr().err
    assert not (tmp_path / "ran").exists()


def test_a_config_file_of_ones_own_may_compute(tmp_path: Path) -> None:
    own = tmp_path / "mine.yaml"
    own.write_text("seed: \"$open(@mark, 'w').close() or 3\"\nmark: " + str(tmp_path / "ran") + "\n")
    files = [str(ROOT / "configs" / "inference.yaml"), str(own)]
    result = command("inference", "--config_file", str(files))
    assert "nothing to register" in result.stderr
    assert (tmp_path / "ran").exists()
