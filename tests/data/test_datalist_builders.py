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
"""Lists of data sets by their providers' layouts and of own folders, and how they are divided."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from scripts.data.datalist_builders import KINDS, build_list, main, split_list
from scripts.training.lists import load_records
from scripts.utils.errors import InputError


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def test_an_own_folder_with_what_lies_beside(tmp_path: Path) -> None:
    touch(tmp_path, "images/a__1.nii.gz", "images/a__2.nii.gz", "images/b.nrrd", "images/notes.txt")
    touch(tmp_path, "labels/a__1.nii.gz", "masks/b.nrrd", "landmarks/b.csv")
    first, second, third = build_list("folder", tmp_path, "ct")
    assert first == {
        "subject": "a",
        "image": str(tmp_path / "images/a__1.nii.gz"),
        "modality": "ct",
        "label": str(tmp_path / "labels/a__1.nii.gz"),
    }
    assert second["subject"] == "a"
    assert third["mask"] == str(tmp_path / "masks/b.nrrd")
    assert third["landmarks"] == str(tmp_path / "landmarks/b.csv")


@pytest.mark.parametrize("suffix", [".csv", ".fcsv", ".mrk.json", ".vtk"])
def test_landmarks_beside_an_image_may_have_any_form_that_is_read(tmp_path: Path, suffix: str) -> None:
    touch(tmp_path, "images/a.nii.gz", f"landmarks/a{suffix}")
    (entry,) = build_list("folder", tmp_path)
    assert entry["landmarks"] == str(tmp_path / f"landmarks/a{suffix}")
    touch(tmp_path, "landmarks/a.csv", "landmarks/a.vtk")
    with pytest.raises(InputError, match="landmarks of the same image; keep one"):
        build_list("folder", tmp_path)


def test_images_may_lie_in_the_folder_itself(tmp_path: Path) -> None:
    touch(tmp_path, "x.nii", "y.mha")
    assert [(e["subject"], e["modality"]) for e in build_list("folder", tmp_path)] == [("x", "mr"), ("y", "mr")]


def test_a_link_is_known_by_its_own_name(tmp_path: Path) -> None:
    """Data sets are often folders of links into a store whose names mean nothing."""
    touch(tmp_path, "store/MD5E-1.nii.gz", "store/MD5E-2.nii.gz", "mine/landmarks/s1.csv")
    for link, target in (("mine/images/s1", 1), ("oai/9000798_image", 1), ("oai/9000798_label", 2)):
        path = tmp_path / f"{link}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(tmp_path / f"store/MD5E-{target}.nii.gz")
    (mine,) = build_list("folder", tmp_path / "mine")
    assert (mine["subject"], mine["landmarks"]) == ("s1", str(tmp_path / "mine/landmarks/s1.csv"))
    (knee,) = build_list("oai", tmp_path / "oai")
    assert knee["image"].endswith("9000798_image.nii.gz")


def test_copdgene_gives_pairs_of_a_patient_with_masks(tmp_path: Path) -> None:
    for part in ("INSP", "EXP"):
        touch(tmp_path, f"p1/12042G_{part}_STD_TEM_COPD.nii.gz", f"p1/12042G_{part}_STD_TEM_COPD_mask.nii.gz")
    touch(tmp_path, "p2/13333X_INSP_STD.nii.gz")
    (entry,) = build_list("copdgene", tmp_path)
    assert entry["fixed"].endswith("12042G_EXP_STD_TEM_COPD.nii.gz")
    assert entry["moving"].endswith("12042G_INSP_STD_TEM_COPD.nii.gz")
    assert entry["moving_mask"].endswith("12042G_INSP_STD_TEM_COPD_mask.nii.gz")
    assert (entry["fixed_modality"], entry["moving_modality"]) == ("ct", "ct")


def test_what_is_missing_is_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    touch(tmp_path, "a_EXP.nii.gz", "a_INSP.nii.gz", "a_INSP_mask.nii.gz", "b_INSP.nii.gz", "c_EXP.nii.gz")
    with caplog.at_level(logging.WARNING):
        (entry,) = build_list("copdgene", tmp_path)
    assert (entry["subject"], "fixed_mask" in entry, "moving_mask" in entry) == ("a", False, True)
    assert "2 of 3 subjects lack an image" in caplog.text
    assert "1 of 1 pairs lack a mask" in caplog.text


def test_a_folder_without_a_whole_pair_says_what_was_expected(tmp_path: Path) -> None:
    touch(tmp_path, "a_INSP.nii.gz", "b_EXP.nii.gz")
    with pytest.raises(InputError, match=r"holds no pair of copdgene; expected SUBJECT_INSP"):
        build_list("copdgene", tmp_path)


def test_contrasts_of_one_subject_stand_together(tmp_path: Path) -> None:
    touch(
        tmp_path, "IXI-T1/IXI012-HH-1211-T1.nii.gz", "IXI-T2/IXI012-HH-1211-T2.nii.gz", "IXI-T1/IXI013-HH-1-T1.nii.gz"
    )
    first, second = build_list("ixi", tmp_path)
    assert list(first["images"]) == ["t1", "t2"]
    assert second["images"] == {"t1": str(tmp_path / "IXI-T1/IXI013-HH-1-T1.nii.gz")}
    hcp = tmp_path / "hcp"
    touch(hcp, *(f"100307/T1w/{part}_acpc_dc_restore_brain.nii.gz" for part in ("T1w", "T2w")))
    (entry,) = build_list("hcp", hcp)
    assert entry["subject"] == "100307"
    assert list(entry["images"]) == ["t1w", "t2w"]


def test_held_out_subjects_are_compared_on_the_first_contrast_that_both_have(tmp_path: Path) -> None:
    touch(tmp_path, *(f"IXI{n:03d}-Guys-0828-{part}.nii.gz" for n in range(4) for part in ("PD", "T1", "T2")))
    (tmp_path / "IXI001-Guys-0828-T1.nii.gz").unlink()
    entries = build_list("ixi", tmp_path)
    assert [list(entry["images"]) for entry in entries[:2]] == [["t1", "t2", "pd"], ["t2", "pd"]]
    seen = set()
    for seed in range(20):
        ((fixed, moving),) = [
            (Path(p["fixed"]).name, Path(p["moving"]).name) for p in split_list(entries, 0.5, seed)[1]
        ]
        part = "T2" if "IXI001" in fixed + moving else "T1"
        seen.add(part)
        assert fixed.endswith(f"-{part}.nii.gz")
        assert moving.endswith(f"-{part}.nii.gz")
    assert seen == {"T1", "T2"}


def test_oai_gives_single_images(tmp_path: Path) -> None:
    touch(tmp_path, "9000099/9000099_SAG_3D_DESS_LEFT.nii.gz", "9000798_image.nii.gz", "9000798_label.nii.gz")
    assert [entry["subject"] for entry in build_list("oai", tmp_path)] == ["9000099", "9000798"]


def test_no_subject_is_on_both_sides(tmp_path: Path) -> None:
    touch(tmp_path, *(f"s{n:02d}__{session}.nii" for n in range(20) for session in (1, 2)))
    entries = build_list("folder", tmp_path)
    training, validation = split_list(entries, 0.2, seed=3)
    trained = {entry["image"] for entry in training}
    held_out = {pair[side] for pair in validation for side in ("fixed", "moving")}
    assert len(training) == 32
    assert len(validation) == 3
    assert len({Path(p).name.split("__")[0] for p in held_out}) == len(held_out) == 4  # never a subject with itself
    assert not {Path(p).name.split("__")[0] for p in trained} & {Path(p).name.split("__")[0] for p in held_out}
    assert (training, validation) == split_list(entries, 0.2, seed=3)
    assert training != split_list(entries, 0.2, seed=4)[0]


def test_the_command_writes_lists_that_training_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    touch(tmp_path, *(f"data/images/s{n}.nii" for n in range(8)), *(f"data/labels/s{n}.nii" for n in range(8)))
    out = tmp_path / "lists" / "mine.json"
    main(["folder", str(tmp_path / "data"), str(out), "--val_fraction", "0.25", "--modality", "ct"])
    assert "6 images" in capsys.readouterr().out
    assert not Path(json.loads(out.read_text())[0]["image"]).is_absolute()
    records, held_out = load_records(str(out)), load_records(str(tmp_path / "lists" / "mine_val.json"), "validation")
    assert len(records) == 6
    assert records[0]["modalities"] == {"image": "ct"}
    assert held_out[0]["fixed"]["label"].endswith(".nii")


def test_pairs_are_divided_as_pairs(tmp_path: Path) -> None:
    touch(tmp_path, *(f"s{n}_{part}.nii.gz" for n in range(6) for part in ("INSP", "EXP")))
    training, validation = split_list(build_list("copdgene", tmp_path), 0.3)
    assert (len(training), len(validation)) == (4, 2)
    assert all("fixed" in entry for entry in training + validation)


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_without_images_says_what_was_expected(tmp_path: Path, kind: str) -> None:
    with pytest.raises(InputError, match="expected"):
        build_list(kind, tmp_path)


def test_wrong_arguments(tmp_path: Path) -> None:
    touch(tmp_path, "a.nii", "b.nii")
    with pytest.raises(InputError, match="kind: expected"):
        build_list("acdc", tmp_path)
    with pytest.raises(InputError, match="expected ct or mr"):
        build_list("folder", tmp_path, "pet")
    with pytest.raises(InputError, match="not a folder"):
        build_list("folder", tmp_path / "nowhere")
    with pytest.raises(InputError, match="too few"):
        split_list(build_list("folder", tmp_path), 0.5)
    with pytest.raises(InputError, match="too few"):
        split_list([], 0.5)
    with pytest.raises(SystemExit, match="error: kind"):
        main(["acdc", str(tmp_path), str(tmp_path / "out.json")])
