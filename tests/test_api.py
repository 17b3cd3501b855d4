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
"""The Python API and the command: the same results as the bundle's own command, whatever kind of image comes in."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import itk
import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from scripts import cli
from scripts.api import register
from scripts.declared_options import declared_options
from scripts.transforms.load import LoadVolumesd
from scripts.utils.errors import InputError
from tests.helpers.known_pair import ROOT, SHIFT_LPS_MM, write_known_pair

SHEAR = torch.tensor([[1.0, 0.3, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
QUICK: dict[str, Any] = {
    "model": "none",
    "device": "cpu",
    "image_shape": [24, 24, 24],
    "field::levels": {"default": [[16, 20]]},
}


def test_images_of_all_kinds_give_the_same_result_and_leave_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = write_known_pair(tmp_path / "data")
    loaded = LoadVolumesd(["fixed", "moving"])({key: pair[key] for key in ("fixed", "moving")})
    inputs: dict[str, tuple[Any, Any]] = {
        "path": (Path(pair["moving"]), pair["fixed"]),
        "MetaTensor": (loaded["moving"], loaded["fixed"]),
        "ITK": (itk.imread(pair["moving"]), itk.imread(pair["fixed"])),
        "nibabel": (nib.load(pair["moving"]), nib.load(pair["fixed"])),
    }
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    results = {kind: register(*images, **QUICK) for kind, images in inputs.items()}
    assert sorted(tmp_path.rglob("*")) == before
    first = results["path"]
    for kind, result in results.items():
        np.testing.assert_allclose(result.warped_moving.numpy(), first.warped_moving.numpy(), atol=0.02, err_msg=kind)
        np.testing.assert_allclose(result.warped_moving.affine, loaded["fixed"].affine, atol=1e-4)
    assert first.warped_moving.shape == loaded["fixed"].shape
    point = (0.0, 10.0, 160.0)
    there = np.array(list(first.forward_transform.TransformPoint(point)))
    np.testing.assert_allclose(there, np.array(point) + SHIFT_LPS_MM, atol=2.5)
    back = np.array(list(first.inverse_transform.TransformPoint(there.tolist())))
    np.testing.assert_allclose(back, point, atol=1.5)
    assert first.verdict == first.report["quality"]["verdict"]
    assert first.output_dir is None


def test_a_label_in_memory_is_carried_and_files_stay_where_they_were_asked_for(tmp_path: Path) -> None:
    pair = write_known_pair(tmp_path / "data")
    label = nib.load(pair["moving_label"])
    result = register(pair["moving"], pair["fixed"], output_dir=tmp_path / "out", moving_label=label, **QUICK)
    assert result.warped_label is not None
    assert set(np.unique(result.warped_label.numpy())) == {0, 1, 2}
    assert result.warped_label.dtype == torch.uint8
    assert result.output_dir == tmp_path / "out"
    written = json.loads((tmp_path / "out" / "report.json").read_text())
    assert written == result.report
    assert all((tmp_path / "out" / name).is_file() for name in written["outputs"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"presett": "fast"}, "did you mean 'preset'"),
        ({"preset": "quick"}, "expected one of"),
        ({"moving": np.zeros((4, 4, 4))}, "MetaTensor"),
        ({"moving": 3}, "got a int"),
        ({"moving": MetaTensor(torch.zeros(2, 4, 4, 4))}, "one 3-D volume"),
        ({"fixed": "none.nii.gz"}, "does not exist"),
        ({"moving": MetaTensor(torch.rand(1, 4, 4, 4), affine=SHEAR)}, "has a shear"),
        ({"datalist": "x.csv"}, "datalist can't be given"),
    ],
)
def test_wrong_calls_are_refused_in_a_line(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    pair = write_known_pair(tmp_path / "data")
    call = {"moving": pair["moving"], "fixed": pair["fixed"], **QUICK, **change}
    with pytest.raises(InputError, match=words) as caught:
        register(call.pop("moving"), call.pop("fixed"), **call)
    assert "\n" not in str(caught.value)


def test_the_command_runs_from_another_folder(tmp_path: Path) -> None:
    pair = write_known_pair(tmp_path / "data")
    command = [sys.executable, "-W", "ignore", str(ROOT / "scripts"), "register", pair["moving"], pair["fixed"]]
    options = ["--model", "none", "--device", "cpu", "--image_shape", "[24,24,24]", "--progress", "false"]
    levels = ["--field::levels", "{default: [[16, 8]]}"]
    done = subprocess.run([*command, *options, *levels], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "output" / "report.json").is_file()
    assert "verdict" in done.stdout
    carry = [str(tmp_path / "output" / "forward_transform.h5"), "--landmarks", pair["fixed_landmarks"]]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(ROOT / "scripts"), "apply", *carry, "--output_dir", "points"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "points" / "fixed_warped.csv").is_file()
    done = subprocess.run([*command[:-1], "none.nii.gz"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith("error: fixed: 'none.nii.gz' does not exist")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", [*cli.COMMANDS, "report"])
def test_the_help_of_each_command_is_complete(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.build_parser().parse_args([command, "--help"])
    assert ended.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    if command in cli.COMMANDS:
        options = declared_options(cli.COMMANDS[command].configs)
        assert len(options) >= 14
        for option in options.values():
            assert option.name in text
            assert " ".join(option.text.split()[:4]) in text, option.name
        without = [o.name for o in options.values() if not o.text and not o.name.startswith(("fixed", "moving"))]
        assert without == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["register", "a", "b", "--presett", "fast"], "did you mean --preset"),
        (["register", "a", "b", "--pres", "fast"], "unrecognized arguments"),
        (["rgister", "a", "b"], "did you mean register"),
        (["register", "a"], "required: fixed"),
        ([], "required: COMMAND"),
    ],
)
def test_typing_errors_are_answered(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.build_parser().parse_args(arguments)
    assert ended.value.code == 2
    assert words in capsys.readouterr().err


def test_values_come_in_their_types() -> None:
    parsed = cli.build_parser().parse_args(
        [
            *(
                "register",
                "m.nii",
                "f.nii",
                "--network_optimization::steps",
                "7",
                "--inverse",
                "false",
                "--image_shape",
                "[1, 2, 3]",
            ),
            *("--prealign", "off", "--preset", "fast"),
        ]
    )
    assert (parsed.moving, parsed.fixed, parsed.steps, parsed.inverse) == ("m.nii", "f.nii", 7, False)
    assert (parsed.image_shape, parsed.prealign, parsed.preset) == ([1, 2, 3], "off", "fast")
    assert "seed" not in vars(parsed)
    parsed = cli.build_parser().parse_args(["register", "07", "1e3", "--fixed_series", "3.10", "--moving_mask", "null"])
    assert (parsed.moving, parsed.fixed, parsed.fixed_series, parsed.moving_mask) == ("07", "1e3", "3.10", None)
    parsed = cli.build_parser().parse_args(["apply", "['a.h5', 'b.h5']", "--invert", "[true, false]"])
    assert (parsed.transform, parsed.invert) == (["a.h5", "b.h5"], [True, False])


def test_a_positional_given_by_name_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.build_parser().parse_args(["apply", "--transform", "t.h5"])
    assert "transform is given without its name" in capsys.readouterr().err


def test_results_that_do_not_stay_are_not_announced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pair = write_known_pair(tmp_path / "data")
    register(pair["moving"], pair["fixed"], **QUICK)
    assert "results in" not in capsys.readouterr().out
    register(pair["moving"], pair["fixed"], output_dir=tmp_path / "out", **QUICK)
    assert f"results in {tmp_path / 'out'}" in capsys.readouterr().out


def test_images_that_are_aligned_already_are_not_called_a_failure(tmp_path: Path) -> None:
    pair = write_known_pair(tmp_path / "data")
    result = register(pair["fixed"], pair["fixed"], **QUICK)
    assert result.verdict == "ok", result.report["quality"]["reasons"]
