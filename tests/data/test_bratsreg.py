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
"""BraTS-Reg's files, made in its form: which is fixed, and where its landmarks are."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from scripts.data.bratsreg import bratsreg_entries
from scripts.data.cases import load_cases
from scripts.data.datalist_builders import main
from scripts.data.landmarks import read_landmarks
from scripts.utils.errors import InputError

AFFINE = np.array([[-1.0, 0, 0, 0], [0, -1.0, 0, 239], [0, 0, 1.0, 0], [0, 0, 0, 1]])  # of the challenge's images


def write_subject(folder: Path, subject: str, contrasts: tuple[str, ...] = ("t1ce", "t2")) -> None:
    (folder / subject).mkdir(parents=True)
    for visit in ("00_0000", "01_0106"):
        for contrast in contrasts:
            image = nib.Nifti1Image(np.zeros((8, 240, 6), np.int16), AFFINE)
            image.to_filename(folder / subject / f"{subject}_{visit}_{contrast}.nii.gz")
        (folder / subject / f"{subject}_{visit}_landmarks.csv").write_text("Landmark,X,Y,Z\n1,3,-139,5\n2,1,-9,0\n")


def test_pairs_and_landmarks_are_those_of_the_challenge(tmp_path: Path) -> None:
    write_subject(tmp_path / "in", "BraTSReg_001")
    write_subject(tmp_path / "in", "BraTSReg_140")
    main(["bratsreg", str(tmp_path / "in"), str(tmp_path / "list.json")])
    cases = load_cases(datalist=str(tmp_path / "list.json"), output_dir=str(tmp_path / "out"))
    assert [case["case"] for case in cases] == ["BraTSReg_001", "BraTSReg_140"]
    assert cases[0]["fixed"].endswith("BraTSReg_001_00_0000_t1ce.nii.gz")
    assert cases[0]["moving"].endswith("BraTSReg_001_01_0106_t1ce.nii.gz")
    marks = read_landmarks(cases[0]["fixed_landmarks"])
    voxels = (np.linalg.inv(AFFINE) @ np.c_[marks.points_ras_mm.numpy(), [1, 1]].T).T[:, :3]
    np.testing.assert_allclose(voxels, [[3, 100, 5], [1, 230, 0]])  # X, Y + 239, Z
    assert marks.extra[0] == {"Landmark": "1"}


def test_errors_say_what_was_expected(tmp_path: Path) -> None:
    write_subject(tmp_path / "in", "BraTSReg_001", ("t2",))
    assert len(bratsreg_entries(tmp_path / "in", "t2")) == 1
    with pytest.raises(InputError, match=r"holds no pair of BraTS-Reg; expected .*_t1ce.nii.gz"):
        bratsreg_entries(tmp_path / "in")
    with pytest.raises(InputError, match="contrast: expected one of t1ce"):
        bratsreg_entries(tmp_path / "in", "pd")
