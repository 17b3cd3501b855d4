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
"""Training lists in all their forms, Learn2Reg's among them, and the errors they give."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from scripts.training.lists import load_records, require_records
from scripts.utils.errors import InputError


def touch(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def write(path: Path, content: Any) -> str:
    path.write_text(json.dumps(content))
    return str(path)


def test_a_list_of_images(tmp_path: Path) -> None:
    touch(tmp_path, "a.nii.gz", "b.nii.gz", "b_label.nii.gz", "b.csv", "m.nii.gz")
    entries = [
        {"image": "a.nii.gz", "modality": "CT", "mask": "m.nii.gz"},
        {"image": "b.nii.gz", "subject": "s2", "label": "b_label.nii.gz", "landmarks": "b.csv", "mask": None},
    ]
    first, second = load_records(write(tmp_path / "mine.json", entries), modality="mr")
    assert first == {
        "set": "mine",
        "subject": "a",
        "images": {"image": str(tmp_path / "a.nii.gz")},
        "modalities": {"image": "ct"},
        "mask": str(tmp_path / "m.nii.gz"),
    }
    assert second["subject"] == "s2"
    assert second["modalities"] == {"image": "mr"}
    assert second["label"] == str(tmp_path / "b_label.nii.gz")
    assert second["landmarks"] == str(tmp_path / "b.csv")
    assert "mask" not in second


def test_several_contrasts_of_a_subject(tmp_path: Path) -> None:
    touch(tmp_path, "t1.nii", "ct.nii")
    entry = {"subject": "s", "images": {"t1": "t1.nii", "ct": "ct.nii"}, "modality": {"ct": "ct"}}
    (record,) = load_records(write(tmp_path / "x.json", [entry]))
    assert list(record["images"]) == ["t1", "ct"]
    assert record["modalities"] == {"t1": "mr", "ct": "ct"}


@pytest.mark.parametrize("form", ["json", "csv"])
def test_a_list_of_pairs_is_that_of_inference(tmp_path: Path, form: str) -> None:
    touch(tmp_path, "f.nii", "m.nii", "l.nii")
    row = {"fixed": "f.nii", "moving": "m.nii", "fixed_modality": "ct", "moving_label": "l.nii"}
    path = tmp_path / f"pairs.{form}"
    if form == "json":
        write(path, [row])
    else:
        path.write_text(",".join(row) + "\n" + ",".join(row.values()) + "\n")
    (record,) = load_records(str(path))
    assert record["set"] == "pairs"
    assert record["fixed"]["modalities"] == {"image": "ct"}
    assert record["moving"] == {
        "subject": "m",
        "images": {"image": str(tmp_path / "m.nii")},
        "modalities": {"image": "mr"},
        "label": str(tmp_path / "l.nii"),
    }


def test_a_composite_of_sets(tmp_path: Path) -> None:
    touch(tmp_path, "sub/a.nii", "sub/b.nii", "c.nii", "d.nii")
    write(tmp_path / "sub" / "inner.json", [{"image": "a.nii"}, {"image": "b.nii"}])
    sets = [
        {"name": "one", "list": "sub/inner.json", "pairs_per_epoch": 7, "modality": "ct"},
        {"name": "two", "images": [{"image": "c.nii"}, {"image": "d.nii"}], "pairing": "intra_subject"},
        {"name": "three", "pairs": [{"fixed": "c.nii", "moving": "d.nii"}]},
        {"name": "four", "synthetic": {"kinds": ["ct"]}},
    ]
    records = load_records(write(tmp_path / "all.json", {"datasets": sets}))
    assert [record["set"] for record in records] == ["one", "one", "two", "two", "three", "four"]
    assert records[0]["pairs_per_epoch"] == 7
    assert records[0]["modalities"] == {"image": "ct"}
    assert records[0]["images"]["image"] == str(tmp_path / "sub" / "a.nii")
    assert records[2]["pairing"] == "intra_subject"
    assert records[5] == {"set": "four", "synthetic": {"kinds": ["ct"]}}


def test_several_lists_are_put_together(tmp_path: Path) -> None:
    touch(tmp_path, "a.nii", "b.nii")
    first = write(tmp_path / "first.json", [{"image": "a.nii"}])
    second = write(tmp_path / "second.json", [{"image": "b.nii"}])
    assert [record["set"] for record in load_records([first, second])] == ["first", "second"]
    with pytest.raises(InputError, match="names must differ"):
        load_records([first, first])


def nlst(folder: Path) -> str:
    """Write a data set in the form of Learn2Reg's NLST: fixed pairs, masks and keypoints."""
    cases = [f"NLST_{n:04d}" for n in range(1, 5)]
    for case in cases:
        for phase in ("0000", "0001"):
            touch(folder, f"imagesTr/{case}_{phase}.nii.gz", f"masksTr/{case}_{phase}.nii.gz")
            touch(folder, f"keypointsTr/{case}_{phase}.csv")
    pairs = [{"fixed": f"./imagesTr/{c}_0000.nii.gz", "moving": f"./imagesTr/{c}_0001.nii.gz"} for c in cases]
    content = {
        "name": "NLST",
        "pairings": "paired",
        "modality": {"0": "CT"},
        "training": [
            {
                "image": f"./imagesTr/{case}_{phase}.nii.gz",
                "mask": f"./masksTr/{case}_{phase}.nii.gz",
                "keypoints": f"./keypointsTr/{case}_{phase}.csv",
            }
            for case in cases
            for phase in ("0000", "0001")
        ],
        "training_paired_images": pairs,
        "registration_val": pairs[3:],
    }
    return write(folder / "NLST_dataset.json", content)


def test_learn2reg_with_pairs(tmp_path: Path) -> None:
    path = nlst(tmp_path)
    records = load_records(path)
    assert [record["fixed"]["subject"] for record in records] == [f"NLST_000{n}_0000" for n in (1, 2, 3)]
    fixed = records[0]["fixed"]
    assert fixed["modalities"] == {"image": "ct"}
    assert fixed["mask"] == str(tmp_path / "masksTr/NLST_0001_0000.nii.gz")
    assert fixed["landmarks"] == str(tmp_path / "keypointsTr/NLST_0001_0000.csv")
    assert fixed["landmark_space"] == "voxel"
    (held_out,) = load_records(path, "validation")
    assert held_out["moving"]["images"]["image"].endswith("NLST_0004_0001.nii.gz")
    assert held_out["moving"]["landmarks"].endswith("keypointsTr/NLST_0004_0001.csv")


def test_learn2reg_without_pairs(tmp_path: Path) -> None:
    cases = [f"OASIS_{n:04d}_0000" for n in range(1, 7)]
    touch(tmp_path, *(f"{kind}Tr/{case}.nii.gz" for kind in ("images", "labels") for case in cases))
    content = {
        "name": "OASIS",
        "modality": {"0": "MR"},
        "training": [
            {"image": f"./imagesTr/{case}.nii.gz", "label": f"./labelsTr/{case}.nii.gz"} for case in cases[:5]
        ],
        "registration_val": [
            {"fixed": f"./imagesTr/{cases[4]}.nii.gz", "moving": f"./imagesTr/{cases[5]}.nii.gz"},
        ],
    }
    path = write(tmp_path / "OASIS_dataset.json", content)
    records = load_records(path)
    assert [record["subject"] for record in records] == ["OASIS_0001", "OASIS_0002", "OASIS_0003", "OASIS_0004"]
    assert records[0]["label"] == str(tmp_path / f"labelsTr/{cases[0]}.nii.gz")
    assert records[0]["set"] == "OASIS_dataset"
    (pair,) = load_records(path, "validation")
    assert pair["moving"]["label"] == str(tmp_path / f"labelsTr/{cases[5]}.nii.gz")  # not named, found


def test_learn2reg_with_two_modalities(tmp_path: Path) -> None:
    touch(tmp_path, "imagesTr/AbdomenMRCT_0001_0000.nii.gz", "imagesTr/AbdomenMRCT_0001_0001.nii.gz")
    pair = {
        "fixed": "./imagesTr/AbdomenMRCT_0001_0000.nii.gz",
        "moving": "./imagesTr/AbdomenMRCT_0001_0001.nii.gz",
    }
    content = {"modality": {"0": "MR", "1": "CT"}, "training": [], "training_paired_images": [pair]}
    (record,) = load_records(write(tmp_path / "AbdomenMRCT_dataset.json", content))
    assert record["fixed"]["modalities"] == {"image": "mr"}
    assert record["moving"]["modalities"] == {"image": "ct"}


def test_learn2reg_holds_out_patients_and_needs_known_modalities(tmp_path: Path) -> None:
    names = [f"imagesTr/Thorax_{patient:04d}_{scan:04d}.nii.gz" for patient in (1, 2) for scan in (0, 1, 2)]
    touch(tmp_path, *names)
    content = {
        "modality": {"0": "CT", "1": "CBCT", "2": "CBCT"},
        "training": [{"image": name} for name in names],
        "registration_val": [{"fixed": names[4], "moving": names[3]}],
    }
    path = write(tmp_path / "Thorax_dataset.json", content)
    assert [record["subject"] for record in load_records(path)] == ["Thorax_0001"] * 3
    content["modality"] = {"0": "CT", "1": "MR"}
    with pytest.raises(InputError, match="no entry '2'"):
        load_records(write(tmp_path / "Thorax_dataset.json", content))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([], "not empty"),
        ({"sets": []}, "must hold a list"),
        ([{"image": "missing.nii"}], "does not exist"),
        ([{"image": "a.nii", "lable": "a.nii"}], "did you mean 'label'"),
        ([{"image": "a.nii", "images": {"t1": "a.nii"}}], "either image or images"),
        ([{"label": "a.nii"}], "either image or images"),
        ([{"image": "a.nii", "modality": "pet"}], "give ct or mr"),
        ([{"fixed": "a.nii"}], "'moving' is missing"),
        ({"datasets": [{"list": "x.json"}]}, "must have a name"),
        ({"datasets": [{"name": "a", "images": [], "pairs": []}]}, "one of list, images, pairs, synthetic"),
        ({"datasets": [{"name": "a", "synthetic": {}, "pairs_per_epoch": 0}]}, "above 0"),
        ({"datasets": [{"name": "a", "synthetic": {}, "pairing": "random"}]}, "pairing must be"),
        ({"datasets": [{"name": "a", "synthetic": {}}, {"name": "a", "synthetic": {}}]}, "names must differ"),
        ({"datasets": [{"name": "a", "synthetic": 3}]}, "object of options"),
        ({"training": [], "registration_val": [{"fixed": "a.nii"}]}, "must name fixed and moving"),
        ({"training": []}, "no training images"),
    ],
)
def test_errors_say_what_to_do(tmp_path: Path, content: Any, words: str) -> None:
    touch(tmp_path, "a.nii")
    path = write(tmp_path / "list.json", content)
    with pytest.raises(InputError, match=words) as error:
        load_records(path)
    assert "\n" not in str(error.value)


def test_no_list_is_refused_only_when_needed(tmp_path: Path) -> None:
    assert load_records(None, required=False) == []
    with pytest.raises(InputError, match="--train_datalist"):
        load_records(None)
    with pytest.raises(InputError, match="--train_datalist"):
        require_records([])
    (tmp_path / "broken.json").write_text("[{")
    with pytest.raises(InputError, match="can't be read as JSON"):
        load_records(str(tmp_path / "broken.json"))
