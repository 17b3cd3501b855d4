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
"""Every command of the documentation is run as it is written, or it is said which test runs it, or why none does.

The commands run one after the other in one folder that has the files they name, in this process. Options are only added
to them, for less work: fewer steps, smaller grids.
"""

from __future__ import annotations

import json
import logging
import runpy
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import itk
import nibabel as nib
import numpy as np
import pytest
import torch

from scripts.data.example_pair import write_example
from scripts.metrics.quality import VERDICTS
from scripts.workflow import run_workflow
from tests.helpers.chain import write
from tests.helpers.docs_pages import PAGES, ROOT, Command, blocks_of, commands_of
from tests.helpers.known_pair import anatomy, grid_points, write_known_pair, write_learn2reg
from tests.helpers.networks import published_state, random_network

INFERENCE = "python -m monai.bundle run inference --config_file configs/inference.yaml"
TRAINING = "python -m monai.bundle run training --config_file"
EVALUATE = "python -m monai.bundle run evaluate --config_file"
PHASES = ("0000", "0001")  # as Learn2Reg names the images of a subject
QUIET = ("--device", "cpu", "--progress", "False")
SMALL = (*QUIET, "--image_shape", "[48,48,48]", "--save::overview", "False")
QUICK = (
    *SMALL,
    "--field::levels",
    "{'default': [[16, 3]], 'fast': [[16, 3]]}",
)  # few steps in the place of each preset's
PASS = (*SMALL, "--optimization", "off")  # one pass of the default network
SHORT = (*QUIET, "--max_epochs", "1", "--pairs_per_epoch", "2", "--num_workers", "0", "--hd95", "False")
TINY = (
    "--network_shape",
    "[17,17,17]",
    "--down_channels",
    "[2,4,6,8]",
    "--up_channels",
    "[3,4,6]",
    "--batch_size",
    "1",
)
REGISTRATION = (
    "forward_transform.h5",
    "inverse_transform.h5",
    "displacement.nii.gz",
    "warped_moving.nii.gz",
    "report.json",
)
COHORT = ("cohort.csv", "cohort.json", "cohort.html", "p1/report.json", "p2/report.html")


class Run(NamedTuple):
    """How a command is run here."""

    extra: tuple[str, ...]
    """Options added to it."""
    makes: tuple[str, ...]
    """Files it promises; they are removed before it runs."""


def _in(folder: str, names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(f"{folder}/{name}" for name in names)


RUN = {
    f"{INFERENCE} --fixed fixed.nii.gz --moving moving.nii.gz --output_dir results": Run(
        (*QUICK, "--save::overview", "True"), _in("results", (*REGISTRATION, "overview.png", "confidence.nii.gz"))
    ),
    "python -m scripts cohort --datalist pairs.csv --output_dir output/cohort": Run(PASS, _in("output/cohort", COHORT)),
    "python -m scripts apply results/forward_transform.h5 --fixed fixed.nii.gz --image other.nii.gz": Run(
        (), ("output/apply/other_warped.nii.gz",)
    ),
    "python -m scripts register moving.nii.gz fixed.nii.gz --preset fast": Run(QUICK, _in("output", REGISTRATION)),
    f"{INFERENCE} --model unigradicon --optimization off --fixed fixed.nii.gz --moving moving.nii.gz": Run(
        SMALL, _in("output", REGISTRATION)
    ),
    "python -m scripts datalist folder mine mine.json --modality ct --val_fraction 0.1": Run(
        (), ("mine.json", "mine_val.json")
    ),
    f"{TRAINING} ['configs/train.yaml','configs/finetune.yaml'] --train_datalist mine.json"
    " --val_datalist mine_val.json": Run(SHORT, _in("output/finetune", ("best.pt", "last.pt"))),
    f"{EVALUATE} ['configs/inference.yaml','configs/evaluate.yaml'] --datalist pairs.csv"
    " --output_dir output/evaluation": Run(
        (*PASS, "--save::learn2reg", "True"),
        _in("output/evaluation", ("summary.json", "pairs.csv", "labels.csv", "table.md", "table.tex", "box_plots.png")),
    ),
    f"{INFERENCE} --fixed a.nii.gz --moving b.nii.gz": Run(PASS, _in("output", REGISTRATION)),
    f"{INFERENCE} --datalist pairs.csv --output_dir results": Run(
        PASS, (*_in("results/p1", REGISTRATION), *_in("results/p2", REGISTRATION))
    ),
    f"{TRAINING} configs/train.yaml --train_datalist all.json --val_datalist val.json": Run(
        (*SHORT, *TINY), _in("output/train", ("best.pt", "last.pt"))
    ),
    "python -m monai.bundle run cohort --config_file ['configs/inference.yaml','configs/cohort.yaml']"
    " --datalist pairs.csv --output_dir output/cohort": Run(PASS, _in("output/cohort", COHORT)),
    "python -m scripts datalist folder data/hippocampus_mr data/hippocampus.json --modality mr": Run(
        (), ("data/hippocampus.json",)
    ),
    "python -m scripts submission output/evaluation submission.zip": Run((), ("submission.zip",)),
    "python -m scripts apply results/forward_transform.h5 --fixed fixed.nii.gz --moving moving.nii.gz"
    " --convert ['fsl','numpy'] --output_dir output/converted": Run(
        (), _in("output/converted", ("displacement_fsl.nii.gz", "displacement.npz"))
    ),
    "python -m scripts apply ['1Warp.nii.gz','0GenericAffine.mat'] --fixed fixed.nii.gz --image moving.nii.gz"
    " --output_dir output/from_ants": Run((), ("output/from_ants/moving_warped.nii.gz",)),
    "python -m scripts register moving.nii.gz fixed.nii.gz --output_dir results": Run(
        PASS, _in("results", REGISTRATION)
    ),
    "python -m scripts register moving.nii.gz fixed.nii.gz --moving_label moving_label.nii.gz"
    " --moving_landmarks moving_landmarks.csv --output_dir results_labels": Run(
        PASS, _in("results_labels", (*REGISTRATION, "warped_label.nii.gz", "warped_landmarks.csv"))
    ),
    "python -m scripts register moving.nii.gz fixed.nii.gz --ckpt_path output/finetune/best.pt"
    " --output_dir results_own": Run(PASS, _in("results_own", REGISTRATION)),
    "mkdir -p models_mine": Run((), ("models_mine",)),
    "python -m tools.default_weights output/finetune/best.pt models_mine/mine.pt": Run(
        (), ("models_mine/mine.pt", "models_mine/SHA256SUMS")
    ),
    "python -m scripts example_pair output/example/pair": Run(
        (), _in("output/example/pair", ("fixed.nii.gz", "moving.nii.gz", "ground_truth.json"))
    ),
    "python -m scripts register output/example/pair/moving.nii.gz output/example/pair/fixed.nii.gz"
    " --fixed_modality ct --moving_modality ct --preset fast"
    " --output_dir output/example/by_hand": Run(QUICK, _in("output/example/by_hand", REGISTRATION)),
    "python -m scripts export models/model.onnx": Run((), ("models/model.onnx",)),
    "python -m scripts export models/model.ts": Run((), ("models/model.ts",)),
    "python -m scripts export models/unigradicon.ts --model unigradicon": Run(
        ("--network_shape", "48", "48", "48"), ("models/unigradicon.ts",)
    ),
    "python -m scripts export model.onnx": Run((), ("model.onnx",)),
    "python -m monai.bundle run inference --config_file ['configs/inference.yaml','configs/inference_exported.yaml']"
    " --fixed a.nii.gz --moving b.nii.gz": Run(PASS, _in("output", REGISTRATION)),
    "python -m monai.bundle run inference --config_file ['configs/inference.yaml','configs/inference_exported.yaml']"
    " --exported models/model.onnx --fixed a.nii.gz --moving b.nii.gz": Run(PASS, _in("output", REGISTRATION)),
    "python -m monai.bundle run inference --config_file ['configs/inference.yaml','configs/inference_trt.yaml']"
    " --fixed a.nii.gz --moving b.nii.gz": Run(PASS, _in("output", REGISTRATION)),
    f"{INFERENCE} --ckpt_path output/finetune/best.pt --fixed a.nii.gz --moving b.nii.gz": Run(
        PASS, _in("output", REGISTRATION)
    ),
}

CI = "CI runs it: .ci/run"
INSTALLS = "installs packages, or makes an environment"
SERVER = "a server that runs until it is stopped; make test-monailabel starts it"
HOURS = "a benchmark or a campaign: minutes to hours"
PROGRAM = "a program that the bundle does not install"
SHELL = "a shell's own state"
# command -> a test that runs what it does (FILE::NAME), or why no test can
ELSEWHERE = {
    "make demo": CI,
    "make test": CI,
    "source .venv/bin/activate": SHELL,
    "python -m scripts download unigradicon": "tests/networks/test_download.py"
    "::test_the_command_downloads_into_a_bundle_and_ends_errors_with_one_line",
    "make monailabel STUDIES=/data/studies": SERVER,
    "python -m scripts apply TRANSFORM OPTIONS": "tests/whole/test_docs_commands.py"
    "::test_the_forms_of_apply_take_the_options_of_its_table",
    "python -m monai.bundle run apply --config_file configs/apply.yaml OPTIONS": "tests/whole/test_docs_commands.py"
    "::test_the_forms_of_apply_take_the_options_of_its_table",
    "torchrun --nproc_per_node=4 -m monai.bundle run cohort --config_file"
    " ['configs/inference.yaml','configs/cohort.yaml','configs/multi_gpu_cohort.yaml'] --datalist pairs.csv": (
        "tests/cohort/test_run.py::test_two_processes_do_the_same_as_one"
    ),
    "python -m tools.benchmarks.exports --weights default --repeats 7": HOURS,
    "python -m tools.benchmarks.exports --weights published --shape 96 --repeats 5": HOURS,
    "python -m tools.benchmarks.exports --weights published --repeats 3": HOURS,
    "make zoo-check": CI,
    "make bundle": "tests/tools/test_release.py::test_the_zip_file_holds_the_released_files_and_is_the_same_again",
    "make huggingface": "tests/tools/test_release.py::test_the_hub_s_folder_has_its_card_whose_links_lead_somewhere",
    "make tag": "tests/tools/test_release.py::test_a_tag_carries_the_line_of_the_changelog",
    "make matrix": HOURS,
    ".venv/bin/nox --noxfile tools/noxfile.py --session tests-3.12(oldest)": HOURS,
    ".venv/bin/nox --noxfile tools/noxfile.py --session resolve": HOURS,
    "antsApplyTransforms -d 3 -i moving.nii.gz -r fixed.nii.gz -t displacement.nii.gz -o warped.nii.gz": PROGRAM,
    "antsApplyTransforms -d 3 -i label.nii.gz -r fixed.nii.gz -t displacement.nii.gz -n NearestNeighbor"
    " -o warped_label.nii.gz": PROGRAM,
    "antsApplyTransforms -d 3 -i moving.nii.gz -r fixed.nii.gz -t forward_transform.h5 -o warped.nii.gz": PROGRAM,
    "applywarp --rel -i moving.nii.gz -r fixed.nii.gz -w output/converted/displacement_fsl.nii.gz"
    " -o warped_fsl.nii.gz": PROGRAM,
    "torchrun --standalone --nproc_per_node=4 -m monai.bundle run evaluate --config_file"
    " ['configs/inference.yaml','configs/evaluate.yaml','configs/multi_gpu_evaluate.yaml'] --datalist pairs.csv": (
        "tests/evaluation/test_run.py::test_two_processes_share_the_pairs_and_write_one_table"
    ),
    f"{EVALUATE} ['configs/inference.yaml','configs/evaluate.yaml','configs/datasets.yaml']"
    " --benchmark l2r_oasis --model unigradicon --optimization network": "tests/evaluation/test_run.py"
    "::test_a_data_set_runs_with_its_own_list_and_prints_the_papers_figures",
    "python -m tools.benchmarks.methods --data DIR": HOURS,
    "python3.11 -m venv .venv-monailabel && source .venv-monailabel/bin/activate": INSTALLS,
    "python -m pip install torch==2.13.0 && python -m pip install --require-hashes --no-deps"
    " -r monailabel_app/requirements.lock": INSTALLS,
    "grep -A 2 ^setuptools== requirements.lock | python -m pip install --require-hashes --no-deps"
    " -r /dev/stdin": INSTALLS,
    "python -m pip install --require-hashes --no-deps --no-build-isolation -r requirements.lock": INSTALLS,
    "python monailabel_app/serve.py --studies /data/studies --port 8000": SERVER,
    "monailabel start_server --app monailabel_app --studies /data/studies --host 127.0.0.1 --conf device cuda": (
        "monailabel_app/tests/test_parts.py::test_monai_labels_own_command_starts_the_app"
    ),
    "S=http://127.0.0.1:8000": SHELL,
    "curl -X PUT $S/datastore/image?image=atlas -F file=@atlas.nii.gz": (
        "monailabel_app/tests/test_refusals.py::test_uploads_must_be_volumes"
    ),
    "curl -X PUT $S/datastore/label?image=atlas&tag=final -F label=@atlas_label.nii.gz"
    ' -F params={"label_info": [{"name": "liver", "idx": 1}]}': (
        "monailabel_app/tests/test_refusals.py::test_labels_must_fit_their_image"
    ),
    "curl -X PUT $S/datastore/image?image=case3 -F file=@case3.nii.gz": (
        "monailabel_app/tests/test_refusals.py::test_uploads_must_be_volumes"
    ),
    'curl -X POST $S/infer/unigradicon?image=case3&output=image -F params={"moving": "atlas", "preset": "fast"}'
    " -o case3_label.nii.gz": "monailabel_app/tests/test_server.py::test_label_comes_back_on_the_fixed_grid_for_slicer",
    'curl -X POST $S/infer/unigradicon?image=case3&output=json -F params={"moving": "auto"}': (
        "monailabel_app/tests/test_server.py::test_auto_takes_the_most_similar_study_and_fuse_votes"
    ),
    'curl -X PUT $S/datastore/image/info?image=case3 -F info={"modality": "ct"}': "MONAI Label's own route",
    "curl -X POST $S/batch/infer/unigradicon -H Content-Type: application/json"
    ' -d {"moving": "phase0", "images": ["phase1", "phase2"]}': (
        "monailabel_app/tests/test_server.py::test_a_batch_carries_one_label_through_a_series"
    ),
    "curl $S/batch/infer": "monailabel_app/tests/test_server.py::test_the_batch_also_runs_in_the_background",
    "curl -X POST $S/train/unigradicon -H Content-Type: application/json"
    ' -d {"name": "ours", "max_epochs": 20, "pairs_per_epoch": 50}': (
        "monailabel_app/tests/test_server.py::test_training_publishes_a_model_that_can_be_chosen"
    ),
    "curl $S/train/": "monailabel_app/tests/test_server.py::test_training_can_be_stopped_and_resumed",
    "make mutants": HOURS,
    ".venv/bin/mutmut run scripts.losses.gradicon.x_*": HOURS,
    ".venv/bin/mutmut results": "reads the folder that make mutants makes",
    "make bench": HOURS,
    "python -m tools.benchmarks.performance --tasks forward register io_step training_step lncc --shapes 96 175"
    " --repeats 5": HOURS,
    "run=torchrun --standalone --nproc_per_node=4 -m monai.bundle run training --config_file"
    " ['configs/train.yaml','configs/multi_gpu_train.yaml']": SHELL,
    "$run --train_datalist all.json --ckpt_dir output/stage1": "tests/training/test_training_resume.py"
    "::test_two_processes_do_what_one_does_with_the_same_global_batch",
    "$run --train_datalist all.json --ckpt_dir output/stage2 --stage 2 --init_ckpt output/stage1/last.pt": (
        "tests/training/test_training_run.py::test_stage_2_starts_from_stage_1"
    ),
}


def documented() -> list[Command]:
    """Return all commands of all pages, each once, in order."""
    found: dict[str, Command] = {}
    for page in PAGES:
        for command in commands_of(page):
            found.setdefault(command.text, command)
    return list(found.values())


def test_every_command_is_run_or_said_why_not() -> None:
    commands = {command.text: command.page for command in documented()}
    unknown = {text: page for text, page in commands.items() if text not in RUN and text not in ELSEWHERE}
    assert not unknown, "add them to RUN, or to ELSEWHERE with the test that runs them or the reason why none can"
    assert not (set(RUN) | set(ELSEWHERE)) - set(commands), "no page has these commands any more"
    assert not set(RUN) & set(ELSEWHERE)


@pytest.mark.skipif(not (ROOT / ".ci").exists(), reason="no .ci, which a release leaves out")
def test_ci_runs_what_it_is_said_to_run() -> None:
    lines = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    assert {text for text, value in ELSEWHERE.items() if value == CI} <= {line.split(" #")[0] for line in lines}


@pytest.mark.parametrize("test", sorted({value for value in ELSEWHERE.values() if "::" in value}))
def test_the_tests_that_run_the_others_exist(test: str) -> None:
    path, name = test.split("::")
    assert f"\ndef {name}(" in (ROOT / path).read_text(encoding="utf-8")


def _write_files(folder: Path) -> None:
    """Write the files that the commands name, small ones."""
    pair = write_known_pair(folder / "pair")
    names = {
        "fixed": ("fixed.nii.gz", "a.nii.gz"),
        "moving": ("moving.nii.gz", "b.nii.gz", "other.nii.gz"),
        "moving_label": ("moving_label.nii.gz",),
        "moving_landmarks": ("moving_landmarks.csv",),
    }
    for key, targets in names.items():
        for target in targets:
            shutil.copy(pair[key], folder / target)
    write_learn2reg(folder / "Made", subjects=2)
    rows = ["case,fixed,moving,fixed_label,moving_label\n"]
    for number in (1, 2):
        names = [f"Made/{kind}Tr/Made_{number:04d}_{phase}.nii.gz" for kind in ("images", "labels") for phase in PHASES]
        rows.append(",".join([f"p{number}", *names]) + "\n")
    (folder / "pairs.csv").write_text("".join(rows))
    grid = {"spacing": (5.0, 5.0, 5.0), "origin": (-51.0, 12.5, 140.0), "direction": np.eye(3)}
    for name, count in (("mine", 5), ("data/hippocampus_mr", 2)):
        (folder / name / "images").mkdir(parents=True)
        for number in range(count):
            image, _ = anatomy(grid_points(grid, (20, 20, 18)) + number)
            write(folder / name / "images" / f"p{number}.nii.gz", image.astype(np.int16), **grid)
    lists = [{"image": f"mine/images/p{number}.nii.gz"} for number in range(4)]
    (folder / "all.json").write_text(json.dumps(lists[:2]))
    (folder / "val.json").write_text(json.dumps(lists[2:]))
    # an ANTs result: an affine of ITK, and a field that moves nothing
    shift = itk.AffineTransform[itk.D, 3].New()
    shift.Translate([5.0, -4.0, 6.0])
    itk.transformwrite([shift], str(folder / "0GenericAffine.mat"))
    fixed = nib.load(folder / "fixed.nii.gz")
    field = nib.Nifti1Image(np.zeros((*fixed.shape, 1, 3), dtype=np.float32), fixed.affine)
    field.header.set_intent("vector")
    field.to_filename(folder / "1Warp.nii.gz")
    # a bundle: its configs and weights, and some of the published form, small and random
    (folder / "configs").symlink_to(ROOT / "configs")
    (folder / "models").mkdir()
    for name in ("model.pt", "SHA256SUMS"):
        (folder / "models" / name).symlink_to(ROOT / "models" / name)
    torch.save(published_state(random_network(stage=2)), folder / "models" / "unigradicon.pt")


@contextmanager
def _as_program(arguments: list[str]) -> Iterator[None]:
    """Let code find its arguments, and undo what a program may change of this process."""
    saved, path, hook, handlers = sys.argv, list(sys.path), sys.excepthook, list(logging.root.handlers)
    level = logging.root.level
    sys.argv = arguments
    try:
        yield
    finally:
        sys.argv, sys.excepthook = saved, hook
        sys.path[:] = path
        logging.root.handlers[:] = handlers
        logging.root.setLevel(level)


def run(words: tuple[str, ...], extra: tuple[str, ...] = ()) -> None:
    """Run ``python -m MODULE ...`` in this process, anything else as it is."""
    if words[:2] != ("python", "-m"):
        subprocess.run([*words, *extra], check=True)
        return
    with _as_program([words[2], *words[3:], *extra]):
        status = None
        try:
            runpy.run_module(words[2], run_name="__main__", alter_sys=True)
        except SystemExit as end:
            status = end.code
        assert not status, f"{' '.join(words)}: exit status {status}"


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of runpy: the modules are imported already
def test_the_commands_do_what_they_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    _write_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    for command in documented():
        if command.text not in RUN:
            continue
        extra, makes = RUN[command.text]
        for name in makes:
            _remove(tmp_path / name)
        run(command.words, extra)
        said = capfd.readouterr()
        missing = [name for name in makes if not (tmp_path / name).exists()]
        assert not missing, f"{command.page}: {command.text}: did not make {missing}\n{said.out}\n{said.err}"
    assert json.loads((tmp_path / "results_own" / "report.json").read_text())["weights"]["name"] == "best.pt"


@pytest.mark.parametrize("page", ["start.md", "own_pair.md"])
def test_the_examples_in_python_run(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _write_files(tmp_path)
    write_example(tmp_path / "output" / "example" / "pair")
    monkeypatch.chdir(tmp_path)
    quick = {"optimization": "off", "image_shape": [48, 48, 48], "device": "cpu"}
    monkeypatch.setattr("scripts.api.run_workflow", lambda configs, given: run_workflow(configs, {**quick, **given}))
    example, *in_memory = blocks_of(ROOT / "docs" / page, "python")
    found: dict[str, Any] = {}
    exec(example, found)
    first = found["result"]
    assert first.verdict in VERDICTS
    assert first.report["settings"]["preset"] == "fast"
    assert (first.warped_label is not None) is (page == "own_pair.md")
    for name in ("moving", "fixed"):
        image = nib.nifti1.load(f"{name}.nii.gz")
        found |= {f"{name}_array": np.asarray(image.dataobj), f"{name}_affine": image.affine}
    found["fixed_points"] = np.array([[0.0, 10.0, 20.0]])
    for code in in_memory:
        exec(code, found)
        gap = (found["result"].displacement_mm - first.displacement_mm).abs().max()
        assert float(gap) < 1e-3  # affines of the files are float32
        by_itk = found["transform"].TransformPoint([0.0, -10.0, 20.0])  # the same point, LPS
        np.testing.assert_allclose(np.array(by_itk) * [-1, -1, 1], found["moving_points"][0], atol=1e-4)


def test_itk_and_simpleitk_load_what_the_conventions_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    simpleitk = pytest.importorskip("SimpleITK")
    _write_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    run(("python", "-m", "scripts", "register", "moving.nii.gz", "fixed.nii.gz", "--output_dir", "."), PASS)
    with_itk, with_simpleitk, _ = blocks_of(ROOT / "docs" / "conventions.md", "python")
    first: dict[str, Any] = {}
    exec(with_itk, first)
    second: dict[str, Any] = {
        name: simpleitk.ReadImage(f"{name}.nii.gz", simpleitk.sitkFloat32) for name in ("fixed", "moving")
    }
    exec(with_simpleitk, second)
    written = itk.array_from_image(itk.imread("warped_moving.nii.gz"))
    assert written.std() > 100
    assert np.abs(itk.array_from_image(first["warped"]) - written).max() < 1
    assert np.abs(simpleitk.GetArrayFromImage(second["warped"]) - written)[2:-2, 2:-2, 2:-2].max() < 5
    assert len(first["moving_point"]) == 3


def test_the_forms_of_apply_take_the_options_of_its_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """docs/apply.md has one table of options for both forms of the command."""
    _write_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    options = ("--fixed", "fixed.nii.gz", "--image", "other.nii.gz", "--save_transform", "True")
    run(("python", "-m", "scripts", "apply", "0GenericAffine.mat", *options, "--output_dir", "one"))
    start = ("python", "-m", "monai.bundle", "run", "apply", "--config_file", "configs/apply.yaml")
    run((*start, "--transform", "0GenericAffine.mat", *options, "--output_dir", "two"))
    first, second = (itk.imread(str(tmp_path / name / "other_warped.nii.gz")) for name in ("one", "two"))
    np.testing.assert_array_equal(itk.array_view_from_image(first), itk.array_view_from_image(second))
    # the shift that the pair was made with
    fixed = itk.array_view_from_image(itk.imread(str(tmp_path / "fixed.nii.gz")))
    assert np.abs(itk.array_view_from_image(first) - fixed)[8:-8, 8:-8, 8:-8].mean() < 20
