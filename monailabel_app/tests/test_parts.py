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
"""The parts of the app, without a server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import itk
import numpy as np
import pytest
from monai.transforms import VoteEnsemble
from monailabel.datastore.local import LocalDatastore

from monailabel_app import registration, train_task
from monailabel_app.answers import label_type
from monailabel_app.app_settings import read_settings
from monailabel_app.atlases import rank
from monailabel_app.checked_datastore import CheckedDatastore
from monailabel_app.label_fusion import local_weights, vote
from monailabel_app.label_info import conflicts, names_of_values, read_names, unite
from monailabel_app.quality import doubts, quality, warning
from monailabel_app.request_errors import RequestError, plain_errors
from monailabel_app.request_options import read_options
from monailabel_app.studies import Study, labelled_studies
from monailabel_app.tests.server import APP, ROOT, free_port, running_server
from monailabel_app.tests.studies import Studies
from monailabel_app.train_request import split
from monailabel_app.uploads import refuse_foreign_data, sweep
from scripts.metrics.quality import LIMITS, Limit, verdict
from scripts.utils.errors import InputError

WEIGHTS = ["default", "none"]


def test_defaults_and_what_panels_send() -> None:
    options = read_options({}, WEIGHTS)
    assert (options.moving, options.result, options.weights, options.steps) == ("auto", "label", "default", 50)
    sent = {"moving": ["a", "b"], "steps": "50.0", "atlases": "4", "result": ["warped", "label"], "device": ["cpu"]}
    options = read_options(sent, WEIGHTS)
    assert (options.moving, options.result, options.steps, options.atlases) == ("a", "warped", 50, 4)
    assert read_options({"result_compress": "false"}, WEIGHTS).result_compress is False


def test_names_are_read_and_told_apart() -> None:
    info = {"label_info": [{"name": "a", "idx": 1}, {"name": "a", "idx": 2}, {"name": "empty"}, "x", {"idx": 3}]}
    assert read_names(info) == {1: "a", 2: "a_2"}
    assert read_names({}) == {}
    assert names_of_values(np.array([0, 7, 2]), {7: "liver"}) == {"label_2": 2, "liver": 7}


def test_names_get_one_value_in_all_studies() -> None:
    first, second = np.array([0, 1, 2], np.uint8), np.array([0, 1, 2], np.uint8)
    labels, names = unite([(first, {1: "liver", 2: "spleen"}), (second, {1: "spleen", 2: "kidney"})])
    np.testing.assert_array_equal(labels[0], [0, 1, 2])
    np.testing.assert_array_equal(labels[1], [0, 2, 3])
    assert names == {1: "liver", 2: "spleen", 3: "kidney"}
    # names that agree, and values without names, stay
    labels, names = unite([(first, {1: "liver"}), (second, {})])
    np.testing.assert_array_equal(labels[1], second)
    assert names == {1: "liver"}


def test_a_structure_without_a_name_is_not_mixed_with_a_named_one() -> None:
    first, second = np.array([0, 1, 2], np.uint8), np.array([0, 1, 2], np.uint8)
    with pytest.raises(RequestError, match="number 2 is without a name in 'label 2' and 'spleen' in 'label 1'"):
        unite([(first, {1: "liver", 2: "spleen"}), (second, {1: "spleen"})])
    # a new number is one that no study uses, not even a later one
    third = np.array([0, 3, 4], np.uint8)
    labels, names = unite([(first, {1: "a", 2: "b"}), (second, {1: "b", 2: "c"}), (third, {3: "d", 4: "e"})])
    assert names == {1: "a", 2: "b", 5: "c", 3: "d", 4: "e"}
    np.testing.assert_array_equal(labels[1], [0, 2, 5])


def test_conflicting_names_are_named() -> None:
    assert conflicts({"a": {1: "liver"}, "b": {1: "liver", 2: "spleen"}}) is None
    assert conflicts({"a": {1: "liver"}, "b": {1: "spleen"}}) == "label 1 is 'liver' in 'a' and 'spleen' in 'b'"


def test_majority_is_that_of_monai_and_ties_go_to_the_first() -> None:
    labels = np.random.default_rng(0).integers(0, 3, (5, 4, 5, 6)).astype(np.uint8)
    expected = VoteEnsemble(num_classes=3)([label[None] for label in labels])
    counts = np.stack([(labels == value).sum(axis=0) for value in range(3)])
    clear = np.sort(counts, axis=0)[-1] > np.sort(counts, axis=0)[-2]
    found = vote(list(labels))
    np.testing.assert_array_equal(found[clear], np.asarray(expected)[0][clear])
    assert clear.mean() > 0.3
    np.testing.assert_array_equal(vote([labels[0], labels[1]]), labels[0])


@pytest.mark.parametrize(
    ("votes", "winner"), [([2, 1, 1, 2], 2), ([2, 1, 1, 1, 2, 2], 2), ([1, 2, 2, 2, 1, 1], 1), ([3, 1, 2, 2, 1], 1)]
)
def test_the_earlier_of_equals_wins(votes: list[int], winner: int) -> None:
    assert vote([np.full((1, 1, 1), value) for value in votes]).item() == winner


def test_the_heavier_label_wins() -> None:
    labels = [np.array([[[1, 1]]]), np.array([[[2, 2]]]), np.array([[[2, 3]]])]
    weights = [np.array([[[0.9, 0.5]]]), np.array([[[0.3, 0.2]]]), np.array([[[0.4, 0.3]]])]
    np.testing.assert_array_equal(vote(labels, weights), [[[1, 1]]])
    weights[0][:] = 0.6
    np.testing.assert_array_equal(vote(labels, weights), [[[2, 1]]])


def test_local_weights_are_the_squared_correlation_around_a_voxel() -> None:
    random = np.random.default_rng(0)
    image = random.normal(size=(24, 24, 24))
    assert local_weights(image, 3 * image - 7, (1, 1, 1)) == pytest.approx(1, abs=1e-3)
    assert local_weights(image, -image, (1, 1, 1)).max() == 0
    half = image.copy()
    half[:12] = random.normal(size=(12, 24, 24))
    weights = local_weights(image, half, (2, 2, 2))
    assert weights[20].mean() > 0.95
    assert weights[3].mean() < 0.2
    # the window is as wide in mm along each axis
    point = np.zeros((24, 24, 24))
    point[12, 12, 12] = 1
    noise = 1e-4 * random.normal(size=point.shape)
    seen = local_weights(point + noise, point - noise, (1, 1, 3))
    assert seen[12 + 6, 12, 12] > 0.5
    assert seen[12, 12, 12 + 6] < 0.5
    # against the definition, in the middle
    window = np.exp(-0.5 * ((np.arange(24) - 12) / 3.0) ** 2)
    window /= window.sum()
    kernel = window[:, None, None] * window[:, None] * window
    a, b = image, image + random.normal(size=image.shape)
    means = (kernel * a).sum(), (kernel * b).sum()
    covariance = (kernel * (a - means[0]) * (b - means[1])).sum()
    spread = np.sqrt((kernel * (a - means[0]) ** 2).sum() * (kernel * (b - means[1]) ** 2).sum())
    assert local_weights(a, b, (1, 1, 1))[12, 12, 12] == pytest.approx((covariance / spread) ** 2, abs=0.02)


def test_a_label_type_holds_all_values() -> None:
    assert label_type(np.array([0, 255]), "uint8", np.uint8) == np.uint8
    assert label_type(np.array([0, 256]), "uint8", np.uint8) == np.int16
    assert label_type(np.array([0, 40_000]), None, np.float32) == np.uint16
    assert label_type(np.array([0, 3]), None, np.int16) == np.int16


def figures(before: float | None, after: float | None, **judged: float) -> dict[str, Any]:
    """Figures of a report whose verdict is the bundle's own."""
    gain = None if before is None or after is None else before - after
    found = {"similarity": {"before": before, "after": after}, "folding_percent": 0.0, "inconsistency_mm": 0.2}
    return quality({**found, "quality": verdict({"similarity_gain": gain, **judged})}, 0.5)


def test_doubtful_registrations_are_warned_of() -> None:
    assert doubts(figures(0.8, 0.55)) == []
    assert warning([]) is None
    assert "hardly more similar" in doubts(figures(0.6, 0.58))[0]
    assert "hardly more similar" in doubts(figures(0.6, 0.545))[0]
    assert doubts(figures(0.6, 0.535)) == []
    assert doubts(figures(0.1, 0.1)) == []  # aligned already
    assert "less similar" in doubts(figures(0.1, 0.15))[0]
    assert doubts(figures(None, None)) == ["the similarity could not be computed"]


@pytest.mark.parametrize("one", LIMITS)
def test_what_the_bundle_doubts_is_what_an_annotator_is_warned_of(one: Limit) -> None:
    assert doubts(figures(0.8, 0.5, **{one.figure: 0.9 * one.limit})) == []
    found = doubts(figures(0.8, 0.5, **{one.figure: 1.1 * one.limit}))
    assert found == [one.text.format(1.1 * one.limit)]
    assert "check the result" in str(warning(found))


def test_labelled_studies_are_held_out_where_there_are_enough() -> None:
    studies = [Study(f"s{n}", f"s{n}.nii.gz", "mr", label="l" if n < 5 else None) for n in range(8)]
    training, validation = split(studies, 0.2)
    assert [study.id for study in validation] == ["s3", "s4"]
    assert not {study.id for study in training} & {"s3", "s4"}
    assert len(training) == 6
    assert [study.id for study in split(studies, 0.0)[1]] == ["s0", "s1", "s2", "s3"]
    assert [study.id for study in split(studies, 0.9)[1]] == ["s2", "s3", "s4"]  # two stay to be trained on
    training, validation = split(studies[:3], 0.2)
    assert [study.id for study in validation] == ["s0", "s1", "s2"]
    assert len(training) == 3


def options_of(monkeypatch: pytest.MonkeyPatch, folder: Path, **request: object) -> dict:
    """Return what the bundle's config gets for a request."""
    given: dict = {}

    def run(options: dict) -> None:
        given.update(options)
        (folder / "report.json").write_text("{}")

    monkeypatch.setattr(registration, "_run", run)
    fixed, moving = Study("f", "f.nii.gz", "ct"), Study("m", "m.nii.gz", "mr", label="l.nii.gz")
    registration.register(fixed, moving, read_options(request, WEIGHTS), {"ckpt_path": "w.pt"}, "cuda:1", folder)
    return given


def test_all_options_reach_the_bundle(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = {"optimization": "network", "steps": 7, "similarity": "mind", "preset": "fast"}
    given = options_of(monkeypatch, tmp_path, **asked)
    names = {**dict(zip(asked, asked, strict=True)), "steps": "network_optimization::steps"}
    assert {name: given[names[name]] for name in asked} == asked
    assert (given["ckpt_path"], given["device"], given["moving_label"]) == ("w.pt", "cuda:1", "l.nii.gz")
    assert (given["fixed_modality"], given["moving_modality"]) == ("ct", "mr")
    assert given["save::warped"] is True
    assert given["save::transforms"] is False
    given = options_of(monkeypatch, tmp_path, result="transform")
    assert given["save::transforms"] is True
    assert "moving_label" not in {name for name, value in given.items() if value is None}


def test_all_options_reach_the_training(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, studies: Studies) -> None:
    settings = read_settings({}, str(tmp_path / "studies"))
    store = LocalDatastore(str(tmp_path / "studies"))
    for name in ("atlas_a", "atlas_b", "open"):
        store.add_image(name, str(studies.images[name]), {"Modality": "CT"} if name == "open" else {})
    for name in ("atlas_a", "atlas_b"):
        store.save_label(name, str(studies.labels[name]), "final", {"label_info": studies.label_info})
    given: dict = {}
    monkeypatch.setattr(train_task, "_train", lambda options: given.update(options) or {"val_dice": 0.5})
    published: list = []
    monkeypatch.setattr(train_task, "publish", lambda *what: published.append(what))
    body = {"name": "n", "learning_rate": "1e-4", "dice_weight": 2, "max_epochs": 3, "pairs_per_epoch": 4}
    facts = train_task.FineTune(settings)(body, store)
    assert (given["learning_rate"], given["dice_weight"], given["resume"]) == (1e-4, 2, False)
    assert (given["max_epochs"], given["pairs_per_epoch"], given["model"]) == (3, 4, "default")
    entries = {entry["subject"]: entry for entry in json.loads(Path(given["train_datalist"]).read_text())}
    assert "label" in entries["atlas_a"]
    assert "label" not in entries["open"]
    assert (entries["open"]["modality"], entries["atlas_a"]["modality"]) == ("ct", "mr")
    assert facts["last_validation"] == {"val_dice": 0.5}
    train_task.FineTune(settings)({**body, "resume": True}, store)
    assert given["resume"] is True
    # labels that mean different things are not mixed
    store.update_label_info(
        "atlas_b", "final", {"label_info": [{"name": "other", "idx": studies.label_info[0]["idx"]}]}
    )
    with pytest.raises(RequestError, match="can't be trained on together"):
        train_task.FineTune(settings)({**body, "name": "m"}, store)


def test_facts_of_models_are_strict_json(tmp_path: Path) -> None:
    """A Dice without a common label is NaN, which would make every /info fail."""
    settings = read_settings({}, str(tmp_path / "studies"))
    settings.models_dir.mkdir(parents=True, exist_ok=True)
    (settings.models_dir / "ours.json").write_text('{"last_validation": {"val_dice": NaN, "val_similarity": 0.2}}')
    stats = train_task.FineTune(settings).stats()
    assert stats == {"ours": {"last_validation": {"val_dice": None, "val_similarity": 0.2}}}
    json.dumps(stats, allow_nan=False)


def test_the_open_study_does_not_choose_itself_and_unusable_ones_are_left_out(tmp_path: Path, studies: Studies) -> None:
    store = CheckedDatastore(str(tmp_path / "studies"))
    for name in ("atlas_a", "atlas_b"):
        store.add_image(name, str(studies.images[name]), {})
        store.save_label(name, str(studies.labels[name]), "final", {})
    (tmp_path / "studies" / "._mac.nii.gz").write_bytes(b"x")
    store.refresh()
    assert store.list_images() == ["atlas_a", "atlas_b"]
    found = labelled_studies(store, "mr", without="atlas_a")
    assert [study.id for study in found] == ["atlas_b"]

    def similarity(fixed: Study, moving: Study) -> float:
        if moving.id == "bad":
            raise InputError(f"moving: {moving.image} is constant")
        return 0.5

    bad = Study("bad", "/srv/bad.nii.gz", "mr", label="l")
    assert [study.id for study, _ in rank(found[0], [bad, *found], similarity)] == ["atlas_b"]
    with pytest.raises(RequestError, match="bad is constant"):
        rank(found[0], [bad], similarity)


def test_an_older_label_does_not_come_back(tmp_path: Path, studies: Studies) -> None:
    store = CheckedDatastore(str(tmp_path / "studies"))
    store.add_image("a", str(studies.images["atlas_a"]), {})
    store.save_label("a", str(studies.labels["atlas_a"]), "final", {})
    corrected = tmp_path / "corrected.nrrd"
    itk.imwrite(itk.imread(str(studies.labels["atlas_a"])), str(corrected))
    store.save_label("a", str(corrected), "final", {})
    assert [path.name for path in (tmp_path / "studies" / "labels" / "final").iterdir()] == ["a.nrrd"]


def test_headers_that_name_other_files_are_refused(tmp_path: Path) -> None:
    secret = tmp_path / "secret.raw"
    secret.write_bytes(bytes(range(64)) * 8)
    image = itk.image_from_array(np.random.default_rng(0).random((8, 8, 8)).astype(np.float32))
    for name, change in (
        ("a.mha", (b"ElementDataFile = LOCAL", b"ElementDataFile = " + str(secret).encode())),
        (
            "hidden.mha",
            (b"ElementDataFile = LOCAL", b"Comment = ElementDataFile = LOCAL\nElementDataFile = secret.raw"),
        ),
        ("colon.mha", (b"ElementDataFile = LOCAL", b"Comment = ElementDataFile = LOCAL\nElementDataFile: secret.raw")),
        ("b.nrrd", (b"\n\n", b"\ndata file: " + str(secret).encode() + b"\n\n")),
        ("c.nrrd", (b"\n\n", b"\ndatafile: " + str(secret).encode() + b"\n\n")),
    ):
        path = tmp_path / name
        itk.imwrite(image, str(path))
        refuse_foreign_data("image", str(path))  # as it was written
        path.write_bytes(path.read_bytes().replace(*change, 1))
        with pytest.raises(RequestError, match="names another file"):
            refuse_foreign_data("image", str(path))
    disguised = tmp_path / "d.nii.gz"
    disguised.write_bytes((tmp_path / "b.nrrd").read_bytes())
    with pytest.raises(RequestError, match=r"is no .nii.gz file"):
        refuse_foreign_data("image", str(disguised))


def test_constant_and_infinite_images_are_not_stored(tmp_path: Path) -> None:
    for value, words in ((0.0, "constant"), (np.inf, "NaN or infinite")):
        values = np.zeros((8, 8, 8), np.float32)
        values[2, 2, 2] = value
        itk.imwrite(itk.image_from_array(values), str(tmp_path / "x.nrrd"))
        with pytest.raises(RequestError, match=words):
            CheckedDatastore(str(tmp_path / "studies")).add_image("x", str(tmp_path / "x.nrrd"), {})


def test_what_killed_requests_left_is_swept(tmp_path: Path) -> None:
    for name, age in (("old", 7 * 3600), ("new", 60)):
        (tmp_path / f"request-{name}").mkdir()
        (tmp_path / f"answer-{name}.nii.gz").write_bytes(b"x")
        for path in (tmp_path / f"request-{name}", tmp_path / f"answer-{name}.nii.gz"):
            os.utime(path, (time.time() - age,) * 2)
    sweep(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"request-new", "answer-new.nii.gz"}


def test_settings_are_checked(tmp_path: Path) -> None:
    studies = str(tmp_path / "studies")
    assert read_settings({}, studies).work_dir == tmp_path / "studies-work"
    for conf, words in (
        ({"work_dri": "x"}, "did you mean 'work_dir'"),
        ({"modality": "pet"}, "modality: expected ct or mr"),
        ({"device": "abacus"}, "device: 'abacus'"),
        ({"weights": "lost"}, "weights: 'lost' is not there"),
        ({"work_dir": str(APP / "x")}, "lies in the app itself"),
        ({"work_dir": "/proc/x"}, "can't be written"),
    ):
        with pytest.raises(InputError, match=r"^--conf ") as caught:
            read_settings(conf, studies)
        assert words in str(caught.value)


def test_paths_do_not_reach_clients() -> None:
    with pytest.raises(RequestError) as caught, plain_errors({"/srv/a.nii.gz": "'a'"}):
        raise InputError("fixed: /srv/a.nii.gz is empty: /srv/a.nii.gz")
    assert (caught.value.status_code, caught.value.detail) == (400, "fixed: 'a' is empty: 'a'")
    with pytest.raises(RequestError) as caught, plain_errors({}):
        raise KeyError("/srv/secret")
    assert caught.value.status_code == 500
    assert "/srv" not in caught.value.detail


def test_a_wrong_setting_ends_the_start_with_one_line(tmp_path: Path) -> None:
    words = [sys.executable, str(APP / "serve.py"), "--studies", str(tmp_path), "--conf", "modality", "pet"]
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode != 0
    assert done.stderr.strip() == "error: --conf modality: expected ct or mr, got 'pet'"


def test_monai_labels_own_command_starts_the_app(tmp_path: Path, studies: Studies) -> None:
    # in a copy: MONAI Label makes bin, lib, logs and model beside main.py
    for name in ("configs", "scripts", "models"):
        (tmp_path / name).symlink_to(ROOT / name)
    app = tmp_path / "monailabel_app"
    app.mkdir()
    for path in APP.glob("*.py"):
        (app / path.name).write_bytes(path.read_bytes())
    port = free_port()
    datastore = LocalDatastore(str(tmp_path / "studies"))
    datastore.add_image("one", str(studies.images["open"]), {})
    command = [str(Path(sys.executable).with_name("monailabel")), "start_server", "--app", str(app)]
    command += ["--studies", str(tmp_path / "studies"), "--host", "127.0.0.1", "--port", str(port)]
    with running_server(command, tmp_path, tmp_path / "studies-work", port) as server:
        assert server.info()["name"] == "uniGradICON"
        assert server.info()["datastore"]["total"] == 1
        assert (tmp_path / "studies-work" / "models").is_dir()
