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
"""Cohorts: pairs that fail, runs that are killed, one table whatever the number of processes."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from monai.bundle import ConfigWorkflow

from scripts.cohort.cases import load_cohort
from scripts.cohort.run import CaseQueue
from scripts.cohort.table import find_cases, read_rows, write_table
from scripts.data.transform_files import flatten, read_transform
from scripts.transforms.outputs.files import result_patterns
from scripts.utils.atomic import sweep
from scripts.utils.errors import InputError
from tests.helpers.known_pair import ROOT, write_known_pair

CONFIGS = [str(ROOT / "configs" / name) for name in ("inference.yaml", "cohort.yaml")]
QUICK: dict[str, Any] = {
    "model": "none",
    "device": "cpu",
    "image_shape": [24, 24, 24],
    "field::levels": {"default": [[16, 8]]},
    "save::overview": False,  # drawing takes half of a small pair's time
    "progress": False,
}


def run(output_dir: Path, **options: Any) -> list[dict[str, str]]:
    """Run a cohort in this process and return the rows of its table."""
    workflow = ConfigWorkflow(
        config_file=CONFIGS,
        workflow_type="inference",
        bundle_root=str(ROOT),
        output_dir=str(output_dir),
        **{**QUICK, **options},
    )
    workflow.initialize()
    workflow.run()
    return table(output_dir)


def table(folder: Path) -> list[dict[str, str]]:
    with open(folder / "cohort.csv", newline="") as file:
        return list(csv.DictReader(file))


def write_list(folder: Path, count: int) -> tuple[Path, dict[str, str]]:
    """Write a list of pairs that differ: the moving image of each is shifted by some more voxels."""
    pair = write_known_pair(folder)
    image = nib.load(pair["moving"])
    rows = []
    for number in range(count):
        path = folder / f"moving_{number}.nii.gz"
        values = np.roll(np.asarray(image.dataobj), number % 5, axis=number % 3) + np.float32(number)
        nib.Nifti1Image(values, image.affine).to_filename(path)
        rows.append({"case": f"pair_{number}", "fixed": pair["fixed"], "moving": path.name})
    (folder / "pairs.json").write_text(json.dumps(rows))
    return folder / "pairs.json", pair


def results(folder: Path) -> dict[str, bytes]:
    """Return all results by name, the reports and the table without time and memory."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if not path.is_file() or path.name in ("cohort.json", "cohort.html"):  # the table again, with seconds
            continue
        content = path.read_bytes()
        name = str(path.relative_to(folder))
        if path.name == "report.json":
            report = json.loads(content)
            content = json.dumps({k: v for k, v in report.items() if k not in VARYING}).encode()
        elif path.suffix == ".h5":  # HDF5 notes the time of writing
            parts = flatten(read_transform(str(path)))
            content = b"".join(parameters(part) for part in parts)
        elif path.name == "cohort.csv":
            rows = [{k: v for k, v in row.items() if k not in (*VARYING, "folder")} for row in table(folder)]
            content = json.dumps(rows).encode()
        found[name] = content
    return found


def parameters(part: Any) -> bytes:
    """Return the numbers of one part of a transform."""
    return b"".join(np.array(numbers).tobytes() for numbers in (part.GetFixedParameters(), part.GetParameters()))


VARYING = ("seconds", "peak_memory_mib", "peak_gpu_memory_mib")


def test_pairs_that_fail_become_rows_and_the_others_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, pair = write_list(tmp_path / "data", 3)
    (tmp_path / "data" / "broken.nii.gz").write_bytes(b"no image")
    whole = Path(pair["moving"]).read_bytes()
    (tmp_path / "data" / "cut.nii.gz").write_bytes(whole[: len(whole) // 2])
    image = nib.load(pair["moving"])
    nib.Nifti1Image(np.zeros(image.shape, np.float32), image.affine).to_filename(tmp_path / "data" / "empty.nii.gz")
    rows = json.loads(path.read_text())
    for at, name in ((0, "empty"), (2, "broken"), (4, "missing"), (6, "cut")):
        rows.insert(at, {"case": name, "fixed": pair["fixed"], "moving": f"{name}.nii.gz"})
    rows.append({"case": "no_moving", "fixed": pair["fixed"]})
    path.write_text(json.dumps(rows))
    found = run(tmp_path / "out", datalist=str(path))
    assert [row["case"] for row in found] == [row["case"] for row in rows]
    status = {row["case"]: row["status"] for row in found}
    assert all(status[f"pair_{number}"] == "done" for number in range(3))
    words = {
        "empty": "constant",
        "broken": "not an image",
        "missing": "does not exist",
        "cut": "cut off",
        "no_moving": "moving is missing",
    }
    for row in found:
        if row["case"] in words:
            assert (row["status"], row["verdict"]) == ("failed", "failed")
            assert words[row["case"]] in row["error"]
            assert not (tmp_path / "out" / row["case"] / "report.json").exists()
    # a repaired file is done on resuming, and its error is gone; what was done is not done again
    shutil.copy(pair["moving"], tmp_path / "data" / "broken.nii.gz")
    before = (tmp_path / "out" / "pair_1" / "report.json").stat().st_mtime_ns
    again = {row["case"]: row for row in run(tmp_path / "out", datalist=str(path))}
    assert again["broken"]["status"] == "done"
    assert not (tmp_path / "out" / "broken" / "error.json").exists()
    assert (tmp_path / "out" / "pair_1" / "report.json").stat().st_mtime_ns == before
    assert again["cut"]["status"] == "failed"


def test_a_registration_that_fails_is_one_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from scripts.inferers import registration_inferer as inferers
    from scripts.transforms.outputs.world_transforms import SaveDisplacement

    path, _ = write_list(tmp_path / "data", 4)
    work, write = inferers.RegistrationInferer._register, SaveDisplacement.write
    calls: list[int] = []

    def fail(*args: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("CUDA out of memory. Tried to allocate 20 GiB")
        return work(*args)

    def fail_to_write(self: Any, data: Any, folder: Path) -> Any:
        if data["case"] == "pair_2":
            raise InputError("'displacement.nii.gz' can't be written (No space left on device)")
        return write(self, data, folder)

    monkeypatch.setattr(inferers.RegistrationInferer, "_register", fail)
    monkeypatch.setattr(SaveDisplacement, "write", fail_to_write)
    found = run(tmp_path / "out", datalist=str(path))
    assert [row["status"] for row in found] == ["done", "failed", "failed", "done"]
    assert "out of memory" in found[1]["error"]
    assert "No space left" in found[2]["error"]
    assert not (tmp_path / "out" / "pair_2" / "report.json").exists()


def test_a_cohort_without_a_good_pair_still_ends_in_its_table(tmp_path: Path) -> None:
    (tmp_path / "pairs.json").write_text(json.dumps([{"case": "a", "fixed": "x.nii", "moving": "y.nii"}]))
    assert [row["status"] for row in run(tmp_path / "out", datalist=str(tmp_path / "pairs.json"))] == ["failed"]


def test_killed_runs_resume_to_the_same_bytes(tmp_path: Path) -> None:
    path, _ = write_list(tmp_path / "data", 5)
    rows = json.loads(path.read_text())
    rows.insert(2, {"case": "missing", "fixed": rows[0]["fixed"], "moving": "none.nii.gz"})
    path.write_text(json.dumps(rows))
    run(tmp_path / "whole", datalist=str(path), overlap=True)
    command = [
        *(sys.executable, "-W", "ignore", "-m", "monai.bundle", "run", "cohort"),
        *("--config_file", str(CONFIGS), "--datalist", str(path), "--output_dir", str(tmp_path / "killed")),
        *("--model", "none", "--device", "cpu", "--image_shape", "[24,24,24]"),
        *("--field::levels", "{'default': [[16, 8]]}", "--progress", "False", "--save::overview", "False"),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    kills = 0
    for wanted in (1, 3):  # killed once that many cases are done, in the middle of the next
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        until = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < until:
            done = len(list((tmp_path / "killed").glob("*/report.json")))
            if done >= wanted:
                process.send_signal(signal.SIGKILL)
                kills += 1
            time.sleep(0.01)
        process.wait()
    assert kills >= 2
    assert not (tmp_path / "killed" / "cohort.csv").exists()
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
    whole, killed = results(tmp_path / "whole"), results(tmp_path / "killed")
    assert whole.keys() == killed.keys()
    assert [name for name in whole if whole[name] != killed[name]] == []
    assert len(whole) > 5 * 7


def test_two_processes_do_the_same_as_one(tmp_path: Path) -> None:
    path, _ = write_list(tmp_path / "data", 3)
    run(tmp_path / "one", datalist=str(path))
    command = [
        *(sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"),
        *("-m", "monai.bundle", "run", "cohort"),
        *("--config_file", str([*CONFIGS, str(ROOT / "configs" / "multi_gpu_cohort.yaml")])),
        *("--datalist", str(path), "--output_dir", str(tmp_path / "two")),
        *("--model", "none", "--device", "cpu", "--image_shape", "[24,24,24]"),
        *("--field::levels", "{'default': [[16, 8]]}", "--save::overview", "False"),
    ]
    subprocess.run(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True, capture_output=True)
    one, two = results(tmp_path / "one"), results(tmp_path / "two")
    assert one.keys() == two.keys()
    assert [name for name in one if one[name] != two[name]] == []


def test_one_image_to_a_folder_and_frames_of_a_series(tmp_path: Path) -> None:
    pair = write_list(tmp_path / "data", 2)[1]
    folder = tmp_path / "images"
    folder.mkdir()
    for name in ("b", "a"):
        shutil.copy(tmp_path / "data" / "moving_1.nii.gz", folder / f"{name}.nii.gz")
    shutil.copy(pair["fixed"], folder / "template.nii.gz")
    (folder / "notes.txt").write_text("no image")
    modality = {"fixed_modality": "mr", "moving_modality": "mr"}
    cases = load_cohort(
        template=str(folder / "template.nii.gz"), images=str(folder), output_dir=str(tmp_path / "o"), **modality
    )
    assert [case["case"] for case in cases] == ["a", "b"]
    assert {Path(case["fixed"]).name for case in cases} == {"template.nii.gz"}
    frames = np.stack([np.asarray(nib.load(pair["moving"]).dataobj) + n for n in range(3)], axis=-1)
    nib.Nifti1Image(frames, nib.load(pair["moving"]).affine).to_filename(tmp_path / "series.nii.gz")
    found = run(tmp_path / "series", series=str(tmp_path / "series.nii.gz"), series_reference=1)
    assert [row["case"] for row in found] == ["series_frame_000", "series_frame_002"]
    report = json.loads((tmp_path / "series" / "series_frame_002" / "report.json").read_text())
    assert (report["inputs"]["fixed_frame"], report["inputs"]["moving_frame"]) == (1, 2)
    warped = np.asarray(nib.load(tmp_path / "series" / "series_frame_002" / "warped_moving.nii.gz").dataobj)
    inside = (slice(6, -6),) * 3
    assert np.abs(warped - frames[..., 2])[inside].mean() < np.abs(warped - frames[..., 0])[inside].mean()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "no pairs"),
        ({"template": "a.nii.gz"}, "belong together"),
        ({"images": "."}, "belong together"),
        ({"template": "a.nii.gz", "series": "b.nii.gz"}, "exclude each other"),
        ({"datalist": "none.csv"}, "does not exist"),
        ({"series": "3d"}, "3-D; give a 4-D file"),
        ({"fixed": "a.nii.gz", "moving": "b.nii.gz"}, "for a single pair"),
        ({"datalist": "p.csv", "images": "."}, "--images belongs to --template"),
    ],
)
def test_wrong_options_are_refused(tmp_path: Path, options: dict[str, str], words: str) -> None:
    if options.get("series") == "3d":
        options = {"series": write_known_pair(tmp_path / "data")["fixed"]}
    with pytest.raises(InputError, match=words):
        load_cohort(output_dir=str(tmp_path / "out"), **options)


def test_the_queue_goes_on_where_it_was_left_and_keeps_the_order(tmp_path: Path) -> None:
    cases = [{"case": str(n), "case_dir": str(tmp_path / str(n))} for n in range(4)]
    for ahead in (True, False):
        queue = CaseQueue(cases, lambda case: case, ahead)
        for case in queue:
            if case["case"] == "1":
                break
        assert [case["case"] for case in queue] == ["2", "3"]


def test_half_written_files_are_swept_and_others_left(tmp_path: Path) -> None:
    for name in (".123.warped_moving.nii.gz", ".hidden", ".2019.scans", "report.json"):
        (tmp_path / name).write_text("x")
    sweep(tmp_path, result_patterns())
    assert sorted(path.name for path in tmp_path.iterdir()) == [".2019.scans", ".hidden", "report.json"]


def test_results_are_found_again_in_their_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no results"):
        find_cases(tmp_path)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "error.json").write_text(json.dumps({"case": "the b", "error": "it broke"}))
    rows = read_rows(find_cases(tmp_path))
    assert (rows[0]["case"], rows[0]["status"], rows[0]["error"]) == ("the b", "failed", "it broke")


def test_resuming_does_again_what_changed_and_nothing_else(tmp_path: Path) -> None:
    path, pair = write_list(tmp_path / "data", 3)
    out = tmp_path / "out"

    def done_again(**options: Any) -> set[str]:
        before = {p.parent.name: p.stat().st_mtime_ns for p in out.glob("*/report.json")}
        run(out, datalist=str(path), **{"save::page": False}, **options)
        return {p.parent.name for p in out.glob("*/report.json") if p.stat().st_mtime_ns != before.get(p.parent.name)}

    everything = {"pair_0", "pair_1", "pair_2"}
    assert done_again() == everything
    assert done_again() == set()
    shutil.copy(pair["moving"], tmp_path / "data" / "moving_1.nii.gz")  # other content under the same name
    assert done_again() == {"pair_1"}
    assert done_again(seed=5) == everything
    assert done_again(seed=5, **{"save::inconsistency": True}) == everything
    assert (out / "pair_0" / "inconsistency_mm.nii.gz").is_file()
    (out / "pair_2" / "confidence.nii.gz").unlink()
    assert done_again(seed=5, **{"save::inconsistency": True}) == {"pair_2"}
    # a file that was gone for a while leaves no old result and no old error
    gone = tmp_path / "data" / "moving_0.nii.gz"
    content = gone.read_bytes()
    gone.unlink()
    assert done_again(seed=5, **{"save::inconsistency": True}) == set()
    assert [row["status"] for row in table(out)] == ["failed", "done", "done"]
    assert not (out / "pair_0" / "warped_moving.nii.gz").exists()
    gone.write_bytes(content)
    assert done_again(seed=5, **{"save::inconsistency": True}) == {"pair_0"}
    assert [row["status"] for row in table(out)] == ["done"] * 3


def test_names_do_not_depend_on_which_files_are_there(tmp_path: Path) -> None:
    pair = write_known_pair(tmp_path / "data")
    rows = []
    for subject in ("a", "b"):
        (tmp_path / subject).mkdir()
        for name, source in (("fixed", "fixed"), ("bold", "moving")):
            shutil.copy(pair[source], tmp_path / subject / f"{name}.nii.gz")
        rows.append({"fixed": f"{subject}/fixed.nii.gz", "moving": f"{subject}/bold.nii.gz"})
    (tmp_path / "pairs.json").write_text(json.dumps(rows))
    modality = {"fixed_modality": "mr", "moving_modality": "mr", "output_dir": str(tmp_path / "out")}
    whole = [case["case"] for case in load_cohort(datalist=str(tmp_path / "pairs.json"), **modality)]
    (tmp_path / "a" / "bold.nii.gz").unlink()
    assert [case["case"] for case in load_cohort(datalist=str(tmp_path / "pairs.json"), **modality)] == whole
    assert len(set(whole)) == 2
    folder = tmp_path / "images"
    folder.mkdir()
    for name in ("a 12:30", "a_12_30"):
        shutil.copy(pair["moving"], folder / f"{name}.nii.gz")
    cases = load_cohort(template=pair["fixed"], images=str(folder), **modality)
    assert len({case["case"] for case in cases}) == 2
    assert all("error" not in case for case in cases)


def test_a_case_whose_folder_is_in_the_way_does_not_stop_the_others(tmp_path: Path) -> None:
    path, _ = write_list(tmp_path / "data", 2)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "pair_0").write_text("a file")
    found = run(tmp_path / "out", datalist=str(path), **{"save::page": False})
    assert [row["status"] for row in found] == ["failed", "done"]
    assert "is a file" in found[0]["error"]


def test_files_of_processes_at_work_are_not_swept(tmp_path: Path) -> None:
    mine = tmp_path / f".{os.getppid()}.report.json"
    mine.write_text("x")
    (tmp_path / ".123456789.warped_moving_dicom").mkdir()
    sweep(tmp_path, result_patterns())
    assert [path.name for path in tmp_path.iterdir()] == [mine.name]


def test_no_cell_of_the_table_is_a_formula(tmp_path: Path) -> None:
    name = '=HYPERLINK("http://x")'
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "error.json").write_text(json.dumps({"case": name, "error": "+1"}))
    write_table([{"case": name, "case_dir": str(tmp_path / "a")}], tmp_path)
    assert table(tmp_path)[0]["case"] == f"'{name}"
    assert table(tmp_path)[0]["error"] == "'+1"
