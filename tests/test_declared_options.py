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
"""Options are declared once, in the config files: what follows from it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from monai.bundle import ConfigParser

from scripts.declared_options import CONFIGS, declared_options, defaults_of
from scripts.utils.errors import InputError
from scripts.workflow import Workflow, run_workflow
from tests.helpers.known_pair import ROOT

FILE = """# What it does.
#
#   a command

# ---- inputs ----
fixed: null # an image, "so # much"
moving: null
# ---- work ----
# a remark
device: "$torch.device('cpu')" # where to compute
rate: 2.0e-5 # a number
group:
  levels: # a mapping
    fast: [[32, 40]]

    slow: [[64, 1]]
  off_or_on: "off" # a word
shape: [1, 2] # a list
plain: {a: 1} # a mapping
a::b: true # of another file

# ---- workflow ----
imports:
  - $import torch
part: {_target_: x}
"""


def test_names_defaults_comments_and_headings_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(FILE)
    options = declared_options([tmp_path / "a.yaml"])
    assert {name: option.default for name, option in options.items()} == {
        "fixed": None,
        "moving": None,
        "device": "$torch.device('cpu')",
        "rate": 2e-5,
        "group::levels": {"fast": [[32, 40]], "slow": [[64, 1]]},
        "group::off_or_on": "off",
        "shape": [1, 2],
        "plain": {"a": 1},
        "a::b": True,
    }
    assert options["fixed"].text == 'an image, "so # much"'
    assert options["moving"].text == ""
    assert [options[name].section for name in ("moving", "device", "a::b")] == ["inputs", "work", "work"]
    assert [options[name].text for name in ("device", "group::levels", "a::b")] == [
        *("where to compute", "a mapping", "of another file")
    ]
    assert yaml.safe_load(options["rate"].default_text) == 2e-5


def test_a_later_file_keeps_comment_and_section_of_the_earlier_one(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(FILE)
    (tmp_path / "b.yaml").write_text("rate: 3\ngroup: {off_or_on: on}\n")
    files = [tmp_path / "a.yaml", tmp_path / "b.yaml"]
    option = declared_options(files)["rate"]
    assert (option.default, option.text, option.section) == (3, "a number", "work")
    assert defaults_of(files)["rate"] == [2e-5]  # b.yaml is a user's own: it gives values, it declares no groups
    assert "group" not in defaults_of(files)


def test_what_monai_reads_is_read_without_a_word(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("seed: 3\nseed: 4\nlearning_rate: 2e-5\n")
    assert list(declared_options([path])) == ["seed", "learning_rate"]
    assert not recwarn


def test_the_defaults_are_those_that_monai_reads() -> None:
    for path in CONFIGS.glob("*.yaml"):
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        for option in declared_options([path]).values():
            group, _, member = option.name.partition("::")
            value = content[option.name] if option.name in content else content[group][member]
            assert value == option.default, option.name


def made(**options: Any) -> Workflow:
    workflow = Workflow(
        [CONFIGS / "inference.yaml"],
        {"bundle_root": str(ROOT), "model": "none", **options},
        workflow_type="inference",
        logging_file=False,
    )
    workflow.initialize()
    return workflow


def test_settings_are_the_options_of_registration_and_preprocessing() -> None:
    settings = made(**{"field::sigma": 3, "device": "cpu"}).parser.get_parsed_content("settings")
    declared = declared_options(["inference.yaml"]).values()
    wanted = {o.name.partition("::")[0] for o in declared if o.section in ("registration", "preprocessing")}
    assert set(settings) == wanted | {"device"}
    assert settings["field"]["sigma"] == 3
    assert list(settings["field"]) == ["levels", "learning_rate", "sigma"]
    assert settings["network_optimization"] == {"steps": 50, "learning_rate": 2e-5, "sigma": 5}
    # as chosen for the weights, where the options are null
    assert settings["match_orientation"] is True
    assert (settings["ct_window"], settings["mr_percentiles"]) == ([-1000.0, 1000.0], [0.0, 99.0])
    # what does not change a result, or is an input or a path, is none
    assert not {"progress", "overlap", "summary", "seed", "fixed", "output_dir", "save", "bundle_root"} & set(settings)


def test_an_exported_config_has_the_same_settings(tmp_path: Path) -> None:
    workflow = made(device="cpu", lambda_gradicon=3.0)
    ConfigParser.export_config_file(workflow.parser.get(), str(tmp_path / "exported.json"))
    again = Workflow([tmp_path / "exported.json"], {}, workflow_type="inference", logging_file=False)
    again.initialize()
    settings = again.parser.get_parsed_content("settings")
    assert settings == workflow.parser.get_parsed_content("settings")
    assert settings["lambda_gradicon"] == 3.0


def test_configs_laid_over_add_their_settings() -> None:
    workflow = Workflow(
        [CONFIGS / name for name in ("inference.yaml", "cohort.yaml")],
        {"bundle_root": str(ROOT), "model": "none", "save": {"page": False}},
        workflow_type="inference",
        logging_file=False,
    )
    workflow.initialize()
    with pytest.raises(RuntimeError):
        workflow.run()  # no pairs
    saves = workflow.parser.get_parsed_content("settings")["saves"]
    assert list(saves) == list(yaml.safe_load((CONFIGS / "inference.yaml").read_text())["save"])
    assert saves["page"] is False
    assert saves["transforms"] is True


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"seed": "many"}, "seed: expected a number, such as 0, got 'many'"),
        ({"lambda_gradicon": True}, "lambda_gradicon: expected a number, such as 1.5, got True"),
        ({"field::sigma": [2]}, "field::sigma: expected a number, such as 2, got [2]"),
        ({"image_shape": 175}, "image_shape: expected a list, such as [175, 175, 175], got 175"),
        ({"field": {"levels": [[16, 8]]}}, "field::levels: expected a mapping, such as"),
        ({"save::page": "true"}, "save::page: expected True or False, got the text 'true'"),
        ({"progress": 2}, "progress: expected True or False, such as True, got 2"),
        ({"save": False}, "save: expected a group of options, got False; give them singly, such as --save::transforms"),
        ({"save": {"pgae": True}}, "unknown option --save::pgae, did you mean 'save::page'?"),
        ({"field::sgima": 1}, "unknown option --field::sgima, did you mean 'field::sigma'?"),
    ],
)
def test_values_of_a_wrong_type_and_unknown_members_are_refused(options: dict[str, Any], line: str) -> None:
    with pytest.raises(InputError) as caught:
        run_workflow(("inference.yaml",), options)
    assert str(caught.value).startswith(line)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("options", [{"dice_weight": 0.5}, {"image_shape": (9, 9, 9)}, {"inverse": 0}])
def test_numbers_lists_and_switches_have_their_forms(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="nothing to register"):
        run_workflow(("inference.yaml",), options)


def test_training_takes_the_shape_of_the_weights(tmp_path: Path) -> None:
    (tmp_path / "end.yaml").write_text("run: [{_target_: scripts.options.check_options}]\n")
    nothing = dict.fromkeys(("network_shape", "down_channels", "up_channels"))
    run_workflow(("train.yaml", str(tmp_path / "end.yaml")), nothing)


def test_the_help_needs_no_heavy_packages() -> None:
    code = "import sys, scripts.cli; scripts.cli.build_parser(); print({'torch', 'monai', 'itk'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "set()", done.stderr
