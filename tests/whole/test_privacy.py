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
"""What DICOM headers say of a patient stays in them: reports, pages, tables, logs and messages do not have it."""

from __future__ import annotations

import gzip
import os
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest

from tests.data.test_dicom import write_series
from tests.helpers.commands import run_modules
from tests.helpers.known_pair import (
    FIXED,
    FIXED_SHAPE,
    MOVING,
    MOVING_SHAPE,
    SHIFT_LPS_MM,
    anatomy,
    grid_points,
)

SECRET = {
    "PatientName": "Secretfamily^Given",
    "PatientID": "SECRETID4711",
    "OtherPatientIDs": "SECRETID4712",
    "PatientBirthDate": "19120623",
    "PatientAddress": "Secretstreet 5",
    "PatientComments": "Secretcomment",
    "AccessionNumber": "SECRETACC",
    "ReferringPhysicianName": "Secretdoctor^A",
    "InstitutionName": "Secrethospital",
    "PatientSex": "SECRET SEX",  # no value of this type, which makes pydicom warn
    "StudyID": "SECRETSTUDY",
}
WORDS = ("secret", "19120623")  # in images packed as text, shorter ones come by chance


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("dicom")
    found = {}
    for side, grid, shape, shift in (
        ("fixed", FIXED, FIXED_SHAPE, 0.0),
        ("moving", MOVING, MOVING_SHAPE, SHIFT_LPS_MM),
    ):
        values = np.rint(anatomy(grid_points(grid, shape) - shift)[0]).astype(np.int16)
        found[side] = write_series(folder / side, values, uid=f"1.2.3.{len(side)}", grid=grid)
        for path in Path(found[side]).iterdir():
            dataset = pydicom.dcmread(path)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(pydicom.config.settings, "writing_validation_mode", pydicom.config.IGNORE)
                for tag, value in SECRET.items():
                    setattr(dataset, tag, value)
                dataset.save_as(path)
    return found


def words_of(run_id: str, configs: list[str], folder: Path, **options: Any) -> list[str]:
    """Return the words of a quick command."""
    words = ["monai.bundle", "run", run_id, "--config_file", str([f"configs/{name}.yaml" for name in configs])]
    quick = {"image_shape": [24, 24, 24], "field::levels": {"default": [[16, 8]]}, "model": "none", "device": "cpu"}
    for name, value in {"output_dir": folder, **quick, **options}.items():
        words += [f"--{name}", str(value)]
    return words


@pytest.fixture(scope="module")
def runs(series: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, str]]:
    """Run the commands of all tests; return for each its folder and all that it printed."""
    folder = tmp_path_factory.mktemp("runs")
    broken, private = folder / "broken", folder / "Secret Person"
    broken.mkdir()
    private.mkdir()
    for path in Path(series["moving"]).iterdir():
        dataset = pydicom.dcmread(path)
        dataset.ImagePositionPatient = ["0", "0"]
        dataset.save_as(broken / path.name)
    lines = ["case,fixed,moving", f"good,{series['fixed']},{series['moving']}", f"bad,{series['fixed']},{broken}"]
    (folder / "pairs.csv").write_text("\n".join(lines) + "\n")
    copies = {side: str(private / side) for side in series}
    for side, path in copies.items():
        os.symlink(series[side], path)
    commands = {
        "page": words_of("inference", ["inference"], folder / "page", **{"save::page": True}, **series),
        "dicom": words_of("inference", ["inference"], folder / "dicom", **{"save::dicom": True}, **series),
        "cohort": words_of("cohort", ["inference", "cohort"], folder / "cohort", datalist=folder / "pairs.csv"),
        "private": words_of("inference", ["inference"], folder / "private", **{"save::page": True}, **copies),
    }
    printed = tmp_path_factory.mktemp("printed")
    ended = run_modules(list(commands.values()), printed)
    return {name: (folder / name, one.stdout + one.stderr) for name, one in zip(commands, ended, strict=True)}


def telling(folder: Path, printed: str) -> list[str]:
    """Return where a secret is found: in what was printed, or in files, their names and packed contents."""
    found = [word for word in WORDS if word in printed.lower()]
    for path in folder.rglob("*"):
        content = path.read_bytes() if path.is_file() else b""
        content = gzip.decompress(content) if path.name.endswith(".gz") else content
        text = (str(path.relative_to(folder)).encode() + content).lower()
        found += [f"{path.name}: {word}" for word in WORDS if word.encode() in text]
    return found


def test_a_registration_tells_nothing_of_the_patient(runs: dict[str, tuple[Path, str]]) -> None:
    folder, printed = runs["page"]
    assert (folder / "report.html").is_file(), printed
    assert telling(folder, printed) == []


def test_only_a_series_that_is_asked_for_has_the_patient(runs: dict[str, tuple[Path, str]]) -> None:
    folder, printed = runs["dicom"]
    found = telling(folder, printed)
    assert found, printed  # as DICOM must: it is the patient's
    assert all(".dcm: " in where for where in found)


def test_failures_and_the_cohorts_table_tell_nothing(runs: dict[str, tuple[Path, str]]) -> None:
    folder, printed = runs["cohort"]
    assert "1 failed" in printed
    assert (folder / "cohort.html").is_file()
    assert telling(folder, printed) == []


def test_a_page_names_files_without_their_folders(runs: dict[str, tuple[Path, str]]) -> None:
    folder, printed = runs["private"]
    page = (folder / "report.html").read_text()
    assert "Secret Person" not in page, printed
    assert '"moving"' in page
