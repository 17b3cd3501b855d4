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

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from monai.transforms import VoteEnsemble
from monailabel.datastore.local import LocalDatastore

from monailabel_app.answers import label_type
from monailabel_app.app_settings import read_settings
from monailabel_app.label_fusion import local_weights, vote
from monailabel_app.label_info import conflicts, names_of_values, read_names, unite
from monailabel_app.quality import doubts, warning
from monailabel_app.request_errors import RequestError, plain_errors
from monailabel_app.request_options import read_options
from monailabel_app.studies import Study
from monailabel_app.tests.server import APP, ROOT, free_port, running_server
from monailabel_app.tests.studies import Studies
from monailabel_app.train_task import split
from scripts.errors import InputError

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


def figures(before: float, after: float, folding: float = 0.0, inconsistency: float = 0.2) -> dict[str, float]:
    return {
        "similarity_before": before,
        "similarity_after": after,
        "folding_percent": folding,
        "inconsistency_mm": inconsistency,
    }


def test_doubtful_registrations_are_warned_of() -> None:
    assert doubts(figures(0.8, 0.55)) == []
    assert warning([]) is None
    assert "hardly more similar" in doubts(figures(0.6, 0.58))[0]
    assert "still differ much" in doubts(figures(0.95, 0.8))[0]
    assert doubts(figures(0.1, 0.1)) == []  # aligned already
    assert "less similar" in doubts(figures(0.1, 0.15))[0]
    assert "folds at 3.0 %" in doubts(figures(0.8, 0.5, folding=3))[0]
    assert "disagree by 5.0 mm" in doubts(figures(0.8, 0.5, inconsistency=5))[0]
    assert "check the result" in str(warning(doubts(figures(0.8, 0.5, inconsistency=5))))


def test_labelled_studies_are_held_out_where_there_are_enough() -> None:
    studies = [Study(f"s{n}", f"s{n}.nii.gz", "mr", label="l" if n < 5 else None) for n in range(8)]
    training, validation = split(studies, 0.2)
    assert [study.id for study in validation] == ["s3", "s4"]
    assert not {study.id for study in training} & {"s3", "s4"}
    assert len(training) == 6
    training, validation = split(studies[:3], 0.2)
    assert [study.id for study in validation] == ["s0", "s1", "s2"]
    assert len(training) == 3


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
        raise InputError("fixed: /srv/a.nii.gz is empty")
    assert (caught.value.status_code, caught.value.detail) == (400, "fixed: 'a' is empty")
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
