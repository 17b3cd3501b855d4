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
"""The command as users type it: from another folder, with wrong options, without weights."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import itk
import numpy as np
import pytest
import torch

from scripts import cli
from scripts.geometry.smoothing import gaussian_blur
from scripts.utils.errors import find_input_error
from tests.helpers.commands import run_modules
from tests.helpers.inference import ROOT, run_inference

QUICK = {"field::levels": {"default": [[16, 10]]}, "image_shape": [48, 48, 48]}
FILES = {
    *("forward_transform.h5", "inverse_transform.h5", "displacement.nii.gz", "warped_moving.nii.gz"),
    *("jacobian_determinant.nii.gz", "confidence.nii.gz", "overview.png", "report.json"),
}


@pytest.fixture
def pair(tmp_path: Path) -> dict[str, str]:
    """Write two smooth images on different grids and return their options."""
    options = {}
    for number, (name, size) in enumerate({"fixed": (20, 26, 24), "moving": (22, 24, 28)}.items()):
        noise = torch.randn(1, 1, *size, generator=torch.Generator().manual_seed(number))
        image = itk.image_from_array((500 * gaussian_blur(noise, 2)[0, 0]).numpy().astype(np.int16))
        image.SetSpacing([2.0, 1.5, 2.5])
        itk.imwrite(image, str(tmp_path / f"{name}.nii.gz"))
        options[name] = str(tmp_path / f"{name}.nii.gz")
    return options


def command(bundle_root: Path, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run the inference command in another folder."""
    config = str(bundle_root / "configs" / "inference.yaml")
    start = [sys.executable, "-m", "monai.bundle", "run", "inference", "--bundle_root", str(bundle_root)]
    return subprocess.run(
        [*start, "--config_file", config, *words],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_command_registers_from_another_folder(bundle_root: Path, tmp_path: Path, pair: dict[str, str]) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    before = {name: Path(path).read_bytes() for name, path in pair.items()}
    words = [word for name, value in {**pair, **QUICK}.items() for word in (f"--{name}", str(value))]
    done = command(bundle_root, elsewhere, *words, "--output_dir", "out")
    assert done.returncode == 0, done.stderr
    assert {path.name for path in (elsewhere / "out").iterdir()} == FILES
    report = json.loads((elsewhere / "out" / "report.json").read_text())
    listed = (bundle_root / "models" / "SHA256SUMS").read_text().split()[0]
    assert report["weights"] == {
        "name": "default",
        "path": str(bundle_root / "models" / "model.pt"),
        "sha256": listed,
    }
    assert report["similarity"]["after"] < report["similarity"]["before"]
    assert f"weights default from {bundle_root / 'models' / 'model.pt'}, SHA-256 {listed}" in done.stdout
    assert {name: Path(path).read_bytes() for name, path in pair.items()} == before


WRONG = (
    (["--fixd", "a.nii.gz"], "error: unknown option --fixd, did you mean 'fixed'?"),
    (["--model", "unigradicon"], "scripts download unigradicon"),
    (["--image_shape", "[40000,40000,40000]"], "error: out of memory ("),
    (["--preset", "quick"], "error: preset: expected one of fast, default, accurate, got 'quick'"),
    (["--field::sigma", "-1"], "error: LNCC: sigma must be positive (voxels) and stride at least 1, got -1 and 1"),
)


def test_a_wrong_command_ends_with_one_line_and_writes_nothing(
    bundle_root: Path, tmp_path: Path, pair: dict[str, str]
) -> None:
    config = str(bundle_root / "configs" / "inference.yaml")
    start = ["monai.bundle", "run", "inference", "--bundle_root", str(bundle_root), "--config_file", config]
    given = [word for name, value in pair.items() for word in (f"--{name}", value)]
    out, printed = tmp_path / "out", tmp_path / "printed"
    printed.mkdir()
    commands = [[*start, *given, *words, "--output_dir", str(out)] for words, _ in WRONG]
    for done, (_, message) in zip(run_modules(commands, printed, tmp_path), WRONG, strict=True):
        assert done.returncode != 0
        last = done.stderr.strip().splitlines()[-1]
        assert message in last
        assert last.startswith("error: ")
        assert "Traceback" not in done.stderr
    assert not out.exists()


def test_a_misspelled_member_is_answered_with_its_new_name(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(["register", "m", "f", "--save::pgae", "true"])
    assert "did you mean --save::page?" in capsys.readouterr().err


BAD_OPTIONS: list[tuple[dict[str, Any], str]] = [
    ({"fixed": "nowhere.nii.gz"}, "nowhere.nii.gz"),
    ({"fixed_modality": "pet"}, "fixed_modality 'pet' is unknown"),
    ({"optimization": "off"}, "needs a network"),
    ({"optimization": "off", "prealign": "rigid", "fixed": "not_looked_at.nii.gz"}, "needs a network"),
    ({"optimization": "newton"}, "optimization: expected one of off, field, network"),
    ({"similarity": "ssd"}, "similarity: expected one of"),
    ({"model": "voxelmorph", "image_shape": [72, 72, 72]}, "model: expected one of none"),
    (
        {"ckpt_path": "nowhere.pt", "image_shape": [72, 72, 72]},
        "ckpt_path: 'nowhere.pt' does not exist; give an existing file",
    ),
    ({"landmark_space": "XYZ"}, "landmark_space"),
    ({"mask_use": "both"}, "mask_use"),
    ({"fixd": "a.nii.gz"}, "unknown option --fixd"),
]


@pytest.mark.parametrize(("options", "message"), BAD_OPTIONS)
def test_bad_options_are_refused_before_anything_is_written(
    tmp_path: Path, pair: dict[str, str], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(Exception) as caught:  # noqa: PT011 - MONAI wraps it; the cause is checked below
        run_inference(tmp_path / "out", **{**pair, **QUICK, **options})
    found = find_input_error(caught.value)
    assert found is not None, caught.value
    assert message in str(found)
    assert not (tmp_path / "out").exists()


def test_broken_voxels_are_refused_before_anything_is_written(tmp_path: Path, pair: dict[str, str]) -> None:
    image = itk.imread(pair["moving"], itk.F)
    values = itk.array_from_image(image)
    values[0, 0, :3] = np.nan
    broken = itk.image_from_array(values)
    broken.CopyInformation(image)
    itk.imwrite(broken, str(tmp_path / "nan.mha"))
    with pytest.raises(Exception) as caught:  # noqa: PT011
        run_inference(tmp_path / "out", **{**pair, **QUICK, "moving": str(tmp_path / "nan.mha")})
    found = find_input_error(caught.value)
    assert "3" in str(found)
    assert "NaN" in str(found)
    assert not (tmp_path / "out").exists()


def test_a_datalist_gives_a_folder_a_case(tmp_path: Path, pair: dict[str, str]) -> None:
    rows = [{**pair, "case": "first"}, {"fixed": pair["moving"], "moving": pair["fixed"]}]
    (tmp_path / "pairs.json").write_text(json.dumps(rows))
    run_inference(tmp_path / "out", datalist=str(tmp_path / "pairs.json"), **QUICK)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"first", "fixed_to_moving"}
    for folder in (tmp_path / "out").iterdir():
        assert {path.name for path in folder.iterdir()} == FILES


def test_the_same_seed_gives_the_same_transform(tmp_path: Path, pair: dict[str, str]) -> None:
    for name in ("a", "b"):
        run_inference(tmp_path / name, **pair, **QUICK, **{"save::overview": False})
    displacements = [(tmp_path / name / "displacement.nii.gz").read_bytes() for name in ("a", "b")]
    assert displacements[0][10:] == displacements[1][10:]  # past gzip's header with the file's name


def test_switches_leave_files_out(tmp_path: Path, pair: dict[str, str]) -> None:
    switches = dict.fromkeys(
        (
            *("save::transforms", "save::displacement", "save::warped", "save::jacobian", "save::overview"),
            "save::confidence",
        ),
        False,
    )
    run_inference(tmp_path / "out", **pair, **QUICK, **switches)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["report.json"]


def test_results_of_an_earlier_run_do_not_stay_beside_new_ones(tmp_path: Path, pair: dict[str, str]) -> None:
    out = tmp_path / "out"
    out.mkdir()
    for name in ("warped_label.nii.gz", "report.json", "notes.txt"):
        (out / name).write_text("old")
    run_inference(out, **pair, **QUICK, **{"save::overview": False})
    assert {path.name for path in out.iterdir()} == (FILES - {"overview.png"}) | {"notes.txt"}
    assert json.loads((out / "report.json").read_text())["outputs"]


@pytest.mark.parametrize(("given", "expected"), [(None, "1000"), ("7", "7")])
def test_waiting_threads_sleep_soon_unless_told_otherwise(
    monkeypatch: pytest.MonkeyPatch, given: str | None, expected: str
) -> None:
    """Set before PyTorch is loaded, whose threads read it then."""
    monkeypatch.setenv("GOMP_SPINCOUNT", given or "")  # what was there comes back after the test
    if given is None:
        del os.environ["GOMP_SPINCOUNT"]
    seen: list[str | None] = []
    monkeypatch.setattr("scripts.cli.main", lambda: seen.append(os.environ.get("GOMP_SPINCOUNT")))
    with pytest.raises(SystemExit):
        runpy.run_module("scripts", run_name="__main__")
    assert seen == [expected]
    code = "import sys, scripts, scripts.cli; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "False"


def test_a_config_of_the_same_name_where_the_command_runs_declares_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "inference.yaml").write_text("mine: 1\n")
    monkeypatch.chdir(tmp_path)
    assert vars(cli.build_parser().parse_args(["register", "m", "f", "--seed", "3"]))["seed"] == 3


@pytest.mark.parametrize("name", list(cli.PROGRAMS))
def test_programs_with_a_command_line_of_their_own_are_commands(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        cli.main([name, "--help"])
    assert f"usage: python -m scripts {name}" in capsys.readouterr().out
