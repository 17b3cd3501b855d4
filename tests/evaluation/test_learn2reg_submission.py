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
"""Learn2Reg's form: a data set goes through training, evaluation and export; its own formulas give our figures."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates

from scripts.data.cases import load_cases
from scripts.data.learn2reg_fields import field_name, voxel_displacement
from scripts.evaluation.learn2reg_submission import main, write_submission
from scripts.utils.errors import InputError
from tests.helpers.known_pair import evaluate, write_learn2reg
from tests.helpers.training_run import train


def test_a_data_set_goes_through_training_evaluation_and_export(tmp_path: Path) -> None:
    path = write_learn2reg(tmp_path / "Made")
    train(tmp_path / "train", train_datalist=str(path), val_datalist=str(path), pairs_per_epoch=2, max_epochs=1)
    weights = str(tmp_path / "train" / "best.pt")
    summary = evaluate(tmp_path / "out", datalist=str(path), ckpt_path=weights, **{"save::learn2reg": True})
    assert [pair["case"] for pair in summary["pairs"]] == [f"Made_{n:04d}_0001_to_Made_{n:04d}_0000" for n in (3, 4)]
    main([str(tmp_path / "out"), str(tmp_path / "submission.zip")])
    with zipfile.ZipFile(tmp_path / "submission.zip") as archive:
        assert archive.namelist() == ["disp_0003_0003.nii.gz", "disp_0004_0004.nii.gz"]
        archive.extractall(tmp_path / "unpacked")
    for pair, number in zip(summary["pairs"], (3, 4), strict=True):
        field = nib.load(tmp_path / "unpacked" / f"disp_{number:04d}_{number:04d}.nii.gz")
        values = field.get_fdata()
        assert values.shape == (24, 26, 22, 3)
        # the challenge's own formulas
        fixed_label, moving_label = (
            nib.load(tmp_path / "Made" / "labelsTr" / f"Made_{number:04d}_{phase}.nii.gz").get_fdata()
            for phase in ("0000", "0001")
        )
        identity = np.stack(np.meshgrid(*(np.arange(n) for n in (24, 26, 22)), indexing="ij"))
        warped = map_coordinates(moving_label, identity + values.transpose(3, 0, 1, 2), order=0)
        dice = [
            2 * ((warped == v) & (fixed_label == v)).sum() / ((warped == v).sum() + (fixed_label == v).sum())
            for v in (1, 2)
        ]
        assert np.mean(dice) == pytest.approx(pair["dice_after"], abs=0.02)  # halves round another way
        fixed, moving = (
            np.loadtxt(tmp_path / "Made" / "keypointsTr" / f"Made_{number:04d}_{phase}.csv", delimiter=",")
            for phase in ("0000", "0001")
        )
        moved = np.stack([map_coordinates(values[..., axis], fixed.T, order=1) for axis in range(3)], axis=1)
        error = np.linalg.norm((fixed + moved - moving) * [3.0, 3.0, 3.2], axis=1)
        assert error.mean() == pytest.approx(pair["tre_mm_after"], abs=0.05)
        assert pair["tre_mm_before"] == pytest.approx(np.hypot(2 * 3.0, 3.2), abs=1e-4)
        assert pair["tre_mm_after"] < 1.0


def test_the_field_is_in_voxels_of_the_moving_image() -> None:
    fixed, moving = torch.diag(torch.tensor([2.0, -3.0, 4.0, 1.0])), torch.diag(torch.tensor([-4.0, 3.0, 1.0, 1.0]))
    fixed[:3, 3], moving[:3, 3] = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([-5.0, 0.0, 7.0])
    shift = torch.tensor([8.0, -6.0, 5.0])
    field = voxel_displacement(shift.view(3, 1, 1, 1).expand(3, 3, 4, 5), fixed, moving)
    index = torch.tensor([2.0, 1.0, 4.0])
    world = fixed[:3, :3] @ index + fixed[:3, 3] + shift
    expected = torch.linalg.inv(moving[:3, :3]) @ (world - moving[:3, 3]) - index
    torch.testing.assert_close(field[:, 2, 1, 4], expected)


@pytest.mark.parametrize(
    ("fixed", "moving", "name"),
    [
        ("OASIS_0395_0000.nii.gz", "OASIS_0396_0000.nii.gz", "disp_0395_0396.nii.gz"),
        ("NLST_0101_0000.nii.gz", "NLST_0101_0001.nii.gz", "disp_0101_0101.nii.gz"),
        ("AbdomenMRCT_0001_0001.nii.gz", "AbdomenMRCT_0001_0000.nii.gz", "disp_0001_0001_0001_0000.nii.gz"),
        ("img_0007.nii.gz", "img_0008.nii.gz", "disp_0007_0008.nii.gz"),
    ],
)
def test_names_are_those_the_challenge_looks_for(fixed: str, moving: str, name: str) -> None:
    assert field_name(fixed, moving) == name


def test_errors_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"'brain.nii.gz' is not named as Learn2Reg's images"):
        field_name("brain.nii.gz", "OASIS_0396_0000.nii.gz")
    with pytest.raises(InputError, match=r"--save::learn2reg True"):
        write_submission(tmp_path, tmp_path / "out.zip")
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "disp_0001_0002.nii.gz").write_bytes(b"")
        (tmp_path / folder / "report.json").write_text(json.dumps({"outputs": ["disp_0001_0002.nii.gz"]}))
    with pytest.raises(InputError, match="more than once"):
        write_submission(tmp_path, tmp_path / "out.zip")
    assert not (tmp_path / "out.zip").exists()
    with pytest.raises(SystemExit, match="error: "):
        main([str(tmp_path), str(tmp_path / "out.zip")])
    path = write_learn2reg(tmp_path / "Made")
    content = json.loads(path.read_text())
    del content["registration_val"]
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match="has no registration_val pairs"):
        load_cases(datalist=str(path), output_dir=str(tmp_path / "out"))
