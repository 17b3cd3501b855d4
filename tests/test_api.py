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
from collections.abc import Callable
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
from scripts.utils.errors import InputError
from scripts.workflow import run_workflow
from tests.helpers.commands import run_modules
from tests.helpers.known_pair import CENTER, ROOT, SHIFT_LPS_MM, write_known_pair
from tests.helpers.libraries import images, kinds_of

SHEAR = torch.tensor([[1.0, 0.3, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
QUICK: dict[str, Any] = {
    "model": "none",
    "device": "cpu",
    "image_shape": [24, 24, 24],
    "field::levels": {"default": [[16, 20]]},
}


def test_images_of_all_kinds_give_the_result_of_the_command_and_leave_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = write_known_pair(tmp_path / "data")
    run_workflow(("inference.yaml",), {**QUICK, "progress": False, **images(pair), "output_dir": str(tmp_path / "out")})
    written = nib.load(tmp_path / "out" / "warped_moving.nii.gz")
    field = itk.array_from_image(itk.imread(str(tmp_path / "out" / "displacement.nii.gz"))).T
    inputs = {"path": (Path(pair["moving"]), pair["fixed"]), **kinds_of(pair)}
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    results = {kind: register(*given, **QUICK) for kind, given in inputs.items()}
    assert sorted(tmp_path.rglob("*")) == before
    for kind, result in results.items():
        assert result.warped_moving.dtype == torch.float32
        assert result.warped_moving[0].numpy().tobytes() == np.asanyarray(written.dataobj).tobytes(), kind
        signs = np.array([-1, -1, 1], np.float32)[:, None, None, None]
        np.testing.assert_array_equal(result.displacement_mm.numpy() * signs, field, err_msg=kind)
        np.testing.assert_allclose(result.warped_moving.affine, written.affine, atol=1e-5)
        assert result.report["inputs"]["fixed"] == (pair["fixed"] if kind == "path" else "from memory")
    first = results["path"]
    assert first.verdict == first.report["quality"]["verdict"]
    assert first.output_dir is None
    assert first.inverse_transform is not None
    points = np.array([[0.0, 10.0, 160.0], CENTER]) * [-1, -1, 1]  # RAS
    there = first.forward_transform(points)
    np.testing.assert_allclose(there, points + SHIFT_LPS_MM * [-1, -1, 1], atol=2.5)
    np.testing.assert_allclose(first.inverse_transform(there), points, atol=1.5)
    by_itk = first.forward_transform.to_itk().TransformPoint((points[0] * [-1, -1, 1]).tolist())
    np.testing.assert_allclose(np.array(list(by_itk)) * [-1, -1, 1], there[0], atol=1e-6)
    with pytest.raises(InputError, match=r"shape \(N, 3\)"):
        first.forward_transform(points[0])


@pytest.mark.parametrize("library", [np.asarray, torch.as_tensor])
def test_arrays_with_their_affines_are_images(tmp_path: Path, library: Callable[[Any], Any]) -> None:
    """A known shift of the world along each axis, LPS and RAS told apart, and masks, labels and points in memory."""
    pair = write_known_pair(tmp_path / "data")
    loaded = {key: nib.load(path) for key, path in pair.items() if path.endswith(".nii.gz")}
    arrays = {key: library(np.asanyarray(image.dataobj).copy()) for key, image in loaded.items()}
    arrays |= {f"{side}_mask": arrays[side] > 100 for side in ("fixed", "moving")}
    points = {key: np.loadtxt(pair[key], delimiter=",", skiprows=1) for key in pair if key.endswith("landmarks")}
    affines = {"fixed_affine": loaded["fixed"].affine, "moving_affine": loaded["moving"].affine}
    result = register(**arrays, **affines, **{key: library(value) for key, value in points.items()}, **QUICK)
    by_files = register(**pair, fixed_mask=arrays["fixed_mask"], moving_mask=arrays["moving_mask"], **affines, **QUICK)
    assert result.metrics["dice"]["after"]["mean"] == pytest.approx(by_files.metrics["dice"]["after"]["mean"], abs=1e-3)
    before, after = (result.metrics["tre_mm"][when]["mean"] for when in ("before", "after"))
    assert before == pytest.approx(by_files.metrics["tre_mm"]["before"]["mean"], abs=1e-4)
    assert after < 2 < before
    np.testing.assert_allclose(result.displacement_mm, by_files.displacement_mm, atol=1e-3)
    assert result.warped_label is not None
    assert set(np.unique(result.warped_label.numpy())) == {0, 1, 2}
    ras = {key: value * [-1, -1, 1] for key, value in points.items()}
    in_ras = register(arrays["moving"], arrays["fixed"], **affines, **ras, landmark_space="RAS", **QUICK)
    assert in_ras.metrics["tre_mm"]["before"]["mean"] == pytest.approx(before, abs=1e-6)


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
        ({"moving": np.zeros((4, 4, 4))}, "moving: an array has no geometry; give its affine"),
        ({"moving": np.zeros((4, 4, 4)), "affine": np.eye(3)}, r"finite \(4, 4\) matrix"),
        ({"moving_affine": np.eye(4)}, "moving_affine is for arrays"),
        ({"moving": np.zeros((4, 4, 4, 3)), "affine": np.eye(4)}, "'from memory' is 4-D with 3 frames; select one"),
        ({"moving": np.zeros((4, 4, 1)), "affine": np.eye(4)}, "'from memory' is a single slice"),
        ({"moving": np.full((4, 4, 4), np.nan), "affine": np.eye(4)}, "moving: 'from memory' has 64 of 64 voxels"),
        ({"moving": np.ones((4, 4, 4), complex), "affine": np.eye(4)}, "type complex128; give numbers"),
        ({"moving": np.ones((4, 4, 4)), "affine": np.diag([1, 0, 1, 1])}, "'from memory' has the spacing 1 x 0 x 1"),
        ({"moving": itk.image_from_array(np.zeros((4, 4, 4, 3), np.float32), is_vector=True)}, "3 values per voxel"),
        ({"moving": np.zeros((4, 4, 4, 3)), "affine": np.eye(4), "frame": 1.0}, "frame must be a whole number from 0"),
        ({"moving": np.zeros((4, 4, 4)), "affine": [[1, 2], [3]]}, "the affine of an array must be a finite"),
        ({"moving": np.zeros((4, 4, 4)), "affine": "abc"}, "the affine of an array must be a finite"),
        ({"fixed_landmarks": [["a", "b", "c"]]}, r"fixed_landmarks: expected a path or numbers of the shape \(N, 3\)"),
        ({"fixed_landmarks": np.zeros((4, 2))}, r"landmarks 'from memory' must be finite numbers of the shape"),
        ({"moving_modality": "pet"}, "moving_modality 'pet' is unknown"),
        ({"moving": 3}, "got a int"),
        ({"moving": MetaTensor(torch.zeros(2, 4, 4, 4))}, "one 3-D volume"),
        ({"fixed": "none.nii.gz"}, "does not exist"),
        ({"moving": MetaTensor(torch.rand(1, 4, 4, 4), affine=SHEAR)}, "moving: 'from memory' has sheared axes"),
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
    register_words = [str(ROOT / "scripts"), "register", pair["moving"]]
    options = ["--model", "none", "--device", "cpu", "--image_shape", "[24,24,24]", "--progress", "false"]
    levels = ["--field::levels", "{default: [[16, 8]]}"]
    carry = [str(tmp_path / "output" / "forward_transform.h5"), "--landmarks", pair["fixed_landmarks"]]
    commands = [
        [*register_words, pair["fixed"], *options, *levels],
        [str(ROOT / "scripts"), "apply", *carry, "--output_dir", "points"],
        [*register_words, "none.nii.gz"],
    ]
    printed = tmp_path / "printed"
    printed.mkdir()
    registered, applied, refused = run_modules(commands, printed, tmp_path)
    assert registered.returncode == 0, registered.stderr
    assert (tmp_path / "output" / "report.json").is_file()
    assert "verdict" in registered.stdout
    assert applied.returncode == 0, applied.stderr
    assert (tmp_path / "points" / "fixed_warped.csv").is_file()
    assert refused.returncode == 1
    assert refused.stderr.strip().splitlines()[-1].startswith("error: fixed: 'none.nii.gz' does not exist")
    assert "Traceback" not in refused.stderr


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
    assert (parsed.moving, parsed.fixed, parsed.inverse) == ("m.nii", "f.nii", False)
    assert vars(parsed)["network_optimization::steps"] == 7
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


def test_a_result_prints_in_one_line(tmp_path: Path) -> None:
    result = register(*(write_known_pair(tmp_path)[side] for side in ("moving", "fixed")), **QUICK)
    assert len(repr(result)) < 120
    assert result.verdict in repr(result)
