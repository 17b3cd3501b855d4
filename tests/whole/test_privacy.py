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
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest

from tests.data.test_dicom import write_series
from tests.helpers.known_pair import (
    FIXED,
    FIXED_SHAPE,
    MOVING,
    MOVING_SHAPE,
    ROOT,
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


def command(series: dict[str, str], folder: Path, run_id: str, configs: list[str], **options: Any) -> str:
    """Run a command and return all that it printed."""
    words = [sys.executable, "-m", "monai.bundle", "run", run_id]
    words += ["--config_file", str([f"configs/{name}.yaml" for name in configs]), "--output_dir", str(folder)]
    quick = {"image_shape": [24, 24, 24], "field::levels": {"default": [[16, 8]]}, "model": "none", "device": "cpu"}
    for name, value in {**quick, **options}.items():
        words += [f"--{name}", str(value)]
    done = subprocess.run(
        words, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False
    )
    return done.stdout + done.stderr


def telling(folder: Path, printed: str) -> list[str]:
    """Return where a secret is found: in what was printed, or in files, their names and packed contents."""
    found = [word for word in WORDS if word in printed.lower()]
    for path in folder.rglob("*"):
        content = path.read_bytes() if path.is_file() else b""
        content = gzip.decompress(content) if path.name.endswith(".gz") else content
        text = (str(path.relative_to(folder)).encode() + content).lower()
        found += [f"{path.name}: {word}" for word in WORDS if word.encode() in text]
    return found


def test_a_registration_tells_nothing_of_the_patient(tmp_path: Path, series: dict[str, str]) -> None:
    printed = command(series, tmp_path / "out", "inference", ["inference"], **{"save::page": True}, **series)
    assert (tmp_path / "out" / "report.html").is_file(), printed
    assert telling(tmp_path / "out", printed) == []


def test_only_a_series_that_is_asked_for_has_the_patient(tmp_path: Path, series: dict[str, str]) -> None:
    printed = command(series, tmp_path / "out", "inference", ["inference"], **{"save::dicom": True}, **series)
    found = telling(tmp_path / "out", printed)
    assert found, printed  # as DICOM must: it is the patient's
    assert all(".dcm: " in where for where in found)


def test_failures_and_the_cohorts_table_tell_nothing(tmp_path: Path, series: dict[str, str]) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for path in Path(series["moving"]).iterdir():
        dataset = pydicom.dcmread(path)
        dataset.ImagePositionPatient = ["0", "0"]
        dataset.save_as(broken / path.name)
    lines = ["case,fixed,moving", f"good,{series['fixed']},{series['moving']}", f"bad,{series['fixed']},{broken}"]
    (tmp_path / "pairs.csv").write_text("\n".join(lines) + "\n")
    printed = command(series, tmp_path / "out", "cohort", ["inference", "cohort"], datalist=tmp_path / "pairs.csv")
    assert "1 failed" in printed
    assert (tmp_path / "out" / "cohort.html").is_file()
    assert telling(tmp_path / "out", printed) == []


def test_a_page_names_files_without_their_folders(tmp_path: Path, series: dict[str, str]) -> None:
    private = tmp_path / "Secret Person"
    private.mkdir()
    copies = {}
    for side, folder in series.items():
        copies[side] = str(private / side)
        os.symlink(folder, copies[side])
    printed = command(series, tmp_path / "out", "inference", ["inference"], **{"save::page": True}, **copies)
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Secret Person" not in page, printed
    assert '"moving"' in page
