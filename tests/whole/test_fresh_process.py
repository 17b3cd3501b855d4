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
"""Commands as a user types them: new processes, a new folder, relative paths.

ITK loads its modules when they are first used, and changes the working directory meanwhile. In a process of other tests
they are loaded already, so only a new process shows what that does to relative paths.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from tests.helpers.training_run import ROOT

SMALL = ("--device", "cpu", "--progress", "False")
TINY = (*SMALL, "--max_epochs", "1", "--pairs_per_epoch", "2", "--num_workers", "1", "--hd95", "False")
PASS = (*SMALL, "--optimization", "off", "--image_shape", "[48,48,48]", "--save::overview", "False")


def run(folder: Path, *words: str, status: int = 0) -> subprocess.CompletedProcess[str]:
    """Run ``python`` with words in a folder, and return what it said."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == status, f"{words}: exit status {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def write_folder(folder: Path, count: int = 6, labelled: int = 6) -> None:
    """Write ``mine/images`` and ``mine/labels``: smooth noise, and where it is bright."""
    for kind in ("images", "labels"):
        (folder / "mine" / kind).mkdir(parents=True, exist_ok=True)
    for number in range(count):
        noise = ndimage.gaussian_filter(np.random.default_rng(number).normal(size=(20, 22, 18)), 2)
        values = ((noise - noise.min()) / np.ptp(noise) * 1000).astype(np.float32)
        affine = np.diag([2.0, 2.0, 2.0, 1.0])
        nib.save(nib.Nifti1Image(values, affine), folder / "mine" / "images" / f"p{number}.nii.gz")
        if number < labelled:
            label = nib.Nifti1Image((values > 500).astype(np.uint8), affine)
            nib.save(label, folder / "mine" / "labels" / f"p{number}.nii.gz")


def write_large(folder: Path) -> None:
    """Write a list of four images that take a while to read; the label of the first one has another shape."""
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    for number in range(4):
        values = np.random.default_rng(number).normal(size=(120, 120, 110)).astype(np.float32)
        nib.save(nib.Nifti1Image(values[:20, :20, :20] if number == 0 else values, affine), folder / f"{number}.nii.gz")
    nib.save(nib.Nifti1Image(np.ones((9, 9, 9), np.uint8), affine), folder / "label.nii.gz")
    entries = [
        {"image": f"{number}.nii.gz", **({"label": "label.nii.gz"} if number == 0 else {})} for number in range(4)
    ]
    (folder / "mine.json").write_text(json.dumps(entries))


def training(*extra: str) -> tuple[str, ...]:
    """Return the words of README's command for fine-tuning."""
    configs = f"['{ROOT}/configs/train.yaml','{ROOT}/configs/finetune.yaml']"
    return ("-m", "monai.bundle", "run", "training", "--config_file", configs, "--train_datalist", "mine.json", *extra)


def test_fine_tuning_as_the_readme_says_it(tmp_path: Path) -> None:
    write_folder(tmp_path)
    listing = ("-m", "scripts", "datalist", "folder", "mine", "mine.json", "--modality", "mr")
    run(tmp_path, *listing, "--val_fraction", "0.3")
    done = run(tmp_path, *training("--val_datalist", "mine_val.json", "--ckpt_dir", "tuned", *TINY))
    assert {"last.pt", "best.pt"} <= {path.name for path in (tmp_path / "tuned").iterdir()}
    assert "can't be used" not in done.stdout + done.stderr


@pytest.mark.parametrize("command", ["register", "cohort"])
def test_registration_with_relative_paths(command: str, tmp_path: Path) -> None:
    write_folder(tmp_path, count=3)
    images = [f"mine/images/p{number}.nii.gz" for number in range(3)]
    if command == "register":
        run(tmp_path, "-m", "scripts", "register", images[1], images[0], "--output_dir", "results", *PASS)
        reports = [tmp_path / "results" / "report.json"]
        apply = ("-m", "scripts", "apply", "results/forward_transform.h5", "--fixed", images[0], "--image", images[1])
        run(tmp_path, *apply, "--output_dir", "applied")
        assert (tmp_path / "applied" / "p1_warped.nii.gz").is_file()
    else:
        rows = "".join(f"{name},{images[0]},{moving}\n" for name, moving in zip("ab", images[1:], strict=True))
        (tmp_path / "pairs.csv").write_text("case,fixed,moving\n" + rows)
        run(tmp_path, "-m", "scripts", "cohort", "--datalist", "pairs.csv", "--output_dir", "results", *PASS)
        reports = [tmp_path / "results" / name / "report.json" for name in "ab"]
    for report in reports:
        inputs = json.loads(report.read_text())["inputs"]
        assert inputs["fixed"] == str(tmp_path / images[0])


def test_no_thread_loads_modules_of_itk(tmp_path: Path) -> None:
    """A thread that loads one changes the working directory of all others meanwhile."""
    write_folder(tmp_path, count=2)
    program = """
import threading
import itk.support.base as base
setup = base.LibraryLoader.setup
def watched(self):
    assert threading.current_thread() is threading.main_thread(), "a thread loads a module of ITK"
    setup(self)
base.LibraryLoader.setup = watched
from scripts.cohort.run import CaseQueue
from scripts.training.list_check import check_files
from scripts.utils.pipelining import ReadAhead
from scripts.transforms.load import LoadVolumesd
names = [f"mine/images/p{number}.nii.gz" for number in range(2)]
check_files([{"image": name} for name in names], progress=False)
load = LoadVolumesd("image")
assert len(list(CaseQueue([{"image": name} for name in names], load))) == 2
"""
    run(tmp_path, "-c", program)


def test_a_label_of_another_shape_ends_training_with_one_line(tmp_path: Path) -> None:
    """Threads that still read other images must have ended before the process does."""
    write_large(tmp_path)
    done = run(tmp_path, *training("--ckpt_dir", "run", *TINY, "--num_workers", "3"), status=1)
    lines = done.stderr.strip().splitlines()
    assert "have the same affine but different shapes" in lines[-1]
    assert sum(line.startswith("error: ") for line in lines) == 1
    assert "terminate called" not in done.stderr
    assert "Traceback" not in done.stderr + done.stdout


def test_tracking_without_its_package_is_one_line(tmp_path: Path) -> None:
    if importlib.util.find_spec("mlflow") is not None:
        pytest.skip("mlflow is installed")
    write_folder(tmp_path, count=2)
    (tmp_path / "mine.json").write_text(json.dumps([{"image": f"mine/images/p{n}.nii.gz"} for n in range(2)]))
    done = run(tmp_path, *training("--ckpt_dir", "run", *TINY, "--tracking", "mlflow"), status=1)
    assert done.stderr.strip().splitlines()[-1].startswith("error: tracking mlflow needs the package mlflow")
    assert "Traceback" not in done.stderr
    assert "checking files" not in done.stderr
