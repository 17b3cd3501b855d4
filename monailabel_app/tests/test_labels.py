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
"""Numbers and names of labels: those that 3D Slicer sends, those in a folder, and both together."""

from __future__ import annotations

import json
from pathlib import Path

import itk
import nibabel as nib
import numpy as np
import pytest

from monailabel_app import train_task
from monailabel_app.app_settings import read_settings
from monailabel_app.checked_datastore import CheckedDatastore
from monailabel_app.label_info import conflicts, read_names, unite
from monailabel_app.request_errors import RequestError
from monailabel_app.studies import all_names, find_study, label_values

SHAPE = (6, 5, 4)
AFFINE = np.array([[-1.5, 0, 0, 10], [0, 0, 2, -3], [0, -1, 0, 7], [0, 0, 0, 1]], float)
RANDOM = np.random.default_rng(0)


def image(path: Path, values: np.ndarray) -> Path:
    """Write an image on an oblique grid with nibabel, apart from the code under test."""
    nib.save(nib.Nifti1Image(values, AFFINE), path)
    return path


def label_of(values: tuple[int, ...], kind: type = np.uint8) -> np.ndarray:
    """Return a label in which all values occur."""
    return RANDOM.permutation(np.resize(np.array(values, kind), SHAPE).ravel()).reshape(SHAPE)


def info(**names: int) -> dict:
    """Return names as 3D Slicer sends them."""
    return {"label_info": [{"name": name, "idx": value} for name, value in names.items()]}


@pytest.fixture
def store(tmp_path: Path) -> CheckedDatastore:
    """Return a datastore with four images."""
    store = CheckedDatastore(str(tmp_path / "studies"))
    for name in "abcd":
        path = image(tmp_path / f"{name}.nii.gz", RANDOM.random(SHAPE).astype(np.float32))
        store.add_image(name, str(path), {})
    return store


@pytest.mark.parametrize(
    ("names", "before", "after"),
    [
        ({"label_4": 1}, (0, 1), (0, 4)),
        ({"label_4": 1, "label_1": 4}, (0, 1, 4), (0, 4, 1)),
        ({"label_2": 1, "label_3": 2, "label_1": 3}, (0, 1, 2, 3), (0, 2, 3, 1)),
        ({"Segment_4": 1}, (0, 1), (0, 4)),
        ({"LABEL 4": 1, "liver": 2}, (0, 1, 2), (0, 4, 2)),
        ({"label_300": 1}, (0, 1, 7), (0, 300, 7)),
        ({"label_4": 4, "liver": 1}, (0, 1, 4), (0, 1, 4)),
    ],
)
@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".mha"])
def test_a_saved_label_has_the_number_of_its_name(
    store: CheckedDatastore, tmp_path: Path, names: dict, before: tuple, after: tuple, suffix: str
) -> None:
    given = label_of(before)
    path = image(tmp_path / "sent.nii.gz", given)
    if suffix != ".nii.gz":
        itk.imwrite(itk.imread(str(path)), str(path.with_name(f"sent{suffix}")))
        path = path.with_name(f"sent{suffix}")
    content = path.read_bytes()
    store.save_label("a", str(path), "final", info(**names))
    expected = np.choose(np.searchsorted(before, given), after)
    saved = itk.imread(store.get_label_uri("a", "final"))
    np.testing.assert_array_equal(itk.array_from_image(saved).T, expected)
    reference = itk.imread(store.get_image_uri("a"))
    assert itk.size(saved) == itk.size(reference)
    for corner in ((0, 0, 0), (5, 4, 3)):
        points = [list(i.TransformIndexToPhysicalPoint(list(corner))) for i in (saved, reference)]
        np.testing.assert_allclose(*points, atol=1e-4)
    numbers = dict(zip(before, after, strict=True))
    entries = store.get_label_info("a", "final")["label_info"]
    assert {entry["name"]: entry["idx"] for entry in entries} == {name: numbers[v] for name, v in names.items()}
    assert path.read_bytes() == content  # the client's file


@pytest.mark.parametrize(
    ("sent", "words"),
    [
        ([("label_4", 1), ("spleen", 4)], "value 1 is named 'label_4', and value 4 is named 'spleen'"),
        ([("label_4", 1)], "value 4 is without a name"),
        ([("label_4", 1), ("Segment_4", 2)], "both would be number 4"),
        ([("label_4", 1), ("label_4", 2)], "two values have the name 'label_4'"),
        ([("label_0", 1)], "is no number from 1"),
        ([("liver", 1), ("spleen", 1)], "value 1 has two names"),
        ([("liver", True)], "label_info: expected entries"),
    ],
)
def test_a_label_that_gives_one_number_twice_is_not_saved(
    store: CheckedDatastore, tmp_path: Path, sent: list, words: str
) -> None:
    path = image(tmp_path / "sent.nii.gz", label_of((0, 1, 2, 4)))
    with pytest.raises(RequestError, match=words) as caught:
        store.save_label("a", str(path), "final", {"label_info": [{"name": n, "idx": v} for n, v in sent]})
    assert caught.value.status_code == 400
    assert not store.get_label_uri("a", "final")


@pytest.mark.parametrize(
    ("second", "names", "expected"),
    [
        ((0, 1), {1: "label_4"}, (0, 4)),  # as 3D Slicer saved it before this was put right
        ((0, 4), {}, (0, 4)),
        ((0, 4), {4: "label_4"}, (0, 4)),
        ((0, 4), {4: "Segment_4"}, (0, 4)),
        ((0, 1, 4), {1: "label_4", 4: "label_1"}, (0, 4, 1)),
    ],
)
def test_label_n_is_number_n_when_labels_are_united(second: tuple, names: dict, expected: tuple) -> None:
    first = np.array([0, 1, 2, 4], np.uint8)
    labels, common = unite([(first, {}), (np.array(second, np.uint8), names)])
    np.testing.assert_array_equal(labels[0], first)
    np.testing.assert_array_equal(labels[1], expected)
    assert common == {}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (
            [((4,), {4: "spleen"}), ((1,), {1: "label_4"})],
            "number 4 is 'label_4' in 'label 2' and 'spleen' in 'label 1'",
        ),
        (
            [((1,), {1: "label_4"}), ((4,), {4: "spleen"})],
            "number 4 is 'label_4' in 'label 1' and 'spleen' in 'label 2'",
        ),
        ([((1, 4), {1: "label_4"})], "both would be number 4"),
        ([((1, 2), {1: "liver", 2: "spleen"}), ((1, 2), {1: "spleen"})], "number 2 is without a name in 'label 2'"),
        ([((1, 2), {1: "spleen"}), ((1, 2), {1: "liver", 2: "spleen"})], "number 2 is without a name in 'label 1'"),
        ([((1,), {1: "liver"}), ((1,), {1: "spleen"}), ((1,), {})], "'liver' in 'label 1' and 'spleen' in 'label 2'"),
        ([((1,), {1: "liver"}), ((2,), {2: "liver"}), ((2,), {})], "'liver' has the numbers 1 and 2"),
        ([((1, 2), {1: "liver", 2: "Liver "})], "are both named"),
        ([((1,), {1: "label_99999999999"[:16]})], "is no number from 1"),
    ],
)
def test_structures_that_can_not_be_told_apart_are_refused(given: list, words: str) -> None:
    with pytest.raises(RequestError) as caught:
        unite([(np.array([0, *values], np.uint8), names) for values, names in given])
    assert words in caught.value.detail
    assert "\n" not in caught.value.detail


def test_names_that_differ_in_case_and_blanks_are_one_structure() -> None:
    first, second = np.array([0, 1, 2], np.uint8), np.array([0, 1, 2], np.uint8)
    labels, names = unite([(first, {1: "Left kidney", 2: "liver"}), (second, {1: "LIVER ", 2: "left_kidney"})])
    np.testing.assert_array_equal(labels[1], [0, 2, 1])
    assert names == {1: "Left kidney", 2: "liver"}
    assert conflicts({"a": {1: "Liver"}, "b": {1: "liver "}}) is None
    assert conflicts({"a": {4: "liver"}, "b": {1: "label_4"}}) == "label 4 is 'liver' in 'a' and 'label_4' in 'b'"
    assert read_names(info(**{"liver": 1, "Liver": 2, " ": 3})) == {1: "liver", 2: "Liver_2"}


def test_united_labels_of_slicer_and_of_the_folder_agree(store: CheckedDatastore, tmp_path: Path) -> None:
    """The same anatomy, once in labels/final without names, once as 3D Slicer saves it: numbered from 1."""
    truth = label_of((0, 2, 4, 7))
    image(Path(store._datastore_path) / "labels" / "final" / "a.nii.gz", truth)
    store.refresh()
    slicer = np.searchsorted((0, 2, 4, 7), truth).astype(np.uint8)
    path = image(tmp_path / "sent.nii.gz", slicer)
    store.save_label("b", str(path), "final", info(label_2=1, label_4=2, label_7=3))
    studies = [find_study(store, name, "image", "mr") for name in "ab"]
    labels, _ = unite([(itk.array_from_image(itk.imread(study.label)), study.label_names()) for study in studies])
    np.testing.assert_array_equal(labels[0].T, truth)
    np.testing.assert_array_equal(labels[1].T, truth)


def test_numbers_without_names_are_listed_for_viewers(store: CheckedDatastore, tmp_path: Path) -> None:
    folder = Path(store._datastore_path) / "labels" / "final"
    image(folder / "a.nii.gz", label_of((0, 2, 4)))
    image(folder / "b.nii.gz", label_of((0, 4, 9)))
    store.refresh()
    assert all_names(store, "mr") == {"label_2": 2, "label_4": 4, "label_9": 9}
    store.save_label("c", str(image(tmp_path / "c.nii.gz", label_of((0, 1, 3)))), "final", info(liver=3))
    assert all_names(store, "mr") == {"liver": 3, "label_1": 1, "label_2": 2, "label_4": 4, "label_9": 9}
    # a file that changes is read anew; one that can't be read is left out
    image(folder / "a.nii.gz", label_of((0, 5, 6)))
    assert label_values(find_study(store, "a", "image", "mr")) == {5, 6}
    (folder / "b.nii.gz").write_bytes(b"no image")
    assert all_names(store, "mr") == {"liver": 3, "label_1": 1, "label_5": 5, "label_6": 6}


def lists_of(monkeypatch: pytest.MonkeyPatch, store: CheckedDatastore, tmp_path: Path, **body: object) -> list[dict]:
    """Return the entries of the training list that a request leads to."""
    given: dict = {}
    monkeypatch.setattr(train_task, "_train", lambda options: given.update(options) or {})
    monkeypatch.setattr(train_task, "publish", lambda *_: None)
    train_task.FineTune(read_settings({}, str(tmp_path / "studies")))({"name": "n", "val_split": 0, **body}, store)
    return list(json.loads(Path(given["train_datalist"]).read_text()))


def test_training_labels_share_their_numbers(
    monkeypatch: pytest.MonkeyPatch, store: CheckedDatastore, tmp_path: Path
) -> None:
    truth = label_of((0, 2, 4))
    slicer = np.searchsorted((0, 2, 4), truth).astype(np.uint8)
    folder = Path(store._datastore_path) / "labels" / "final"
    for name, values in (("a", truth), ("b", slicer), ("c", truth)):
        image(folder / f"{name}.nii.gz", values)
    store.refresh()
    # of an older version, which stored it as it was sent
    store.update_label_info("b", "final", info(label_2=1, label_4=2))
    entries = {entry["subject"]: entry for entry in lists_of(monkeypatch, store, tmp_path)}
    assert "label" not in entries["d"]
    for name in "abc":
        np.testing.assert_array_equal(itk.array_from_image(itk.imread(entries[name]["label"])).T, truth)
    np.testing.assert_array_equal(itk.array_from_image(itk.imread(str(folder / "b.nii.gz"))).T, slicer)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (({2: "liver"}, {1: "label_2"}), "'liver' in 'a' and 'label_2' in 'b'"),
        (({1: "liver", 2: "spleen"}, {1: "spleen", 2: "liver"}), "label 1 is 'liver' in 'a' and 'spleen' in 'b'"),
        (({1: "liver", 2: "liver"}, {}), "two structures named 'liver'"),
        (({1: "label_2"}, {}), "both would be number 2"),
    ],
)
def test_training_refuses_labels_that_mean_different_things(
    monkeypatch: pytest.MonkeyPatch, store: CheckedDatastore, tmp_path: Path, names: tuple, words: str
) -> None:
    for name, own in zip("ab", names, strict=True):
        image(Path(store._datastore_path) / "labels" / "final" / f"{name}.nii.gz", label_of((0, 1, 2)))
        store.refresh()
        entries = [{"name": text, "idx": value} for value, text in own.items()]
        store.update_label_info(name, "final", {"label_info": entries})
    with pytest.raises(RequestError, match=r"^400: labels can't be trained on together") as caught:
        lists_of(monkeypatch, store, tmp_path)
    assert words in caught.value.detail


def test_training_on_the_same_name_with_two_numbers_brings_them_together(
    monkeypatch: pytest.MonkeyPatch, store: CheckedDatastore, tmp_path: Path
) -> None:
    for name, values, own in (("a", (0, 1), {"liver": 1}), ("b", (0, 3), {"Liver": 3})):
        path = image(tmp_path / f"label_{name}.nii.gz", label_of(values))
        store.save_label(name, str(path), "final", info(**own))
    entries = {entry["subject"]: entry for entry in lists_of(monkeypatch, store, tmp_path)}
    for name in "ab":
        values = np.unique(itk.array_from_image(itk.imread(entries[name]["label"])))
        np.testing.assert_array_equal(values, [0, 1])
