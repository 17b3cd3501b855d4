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
"""End to end with a real server: every result, both clients' forms, batch, training, active learning."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import itk
import nrrd
import numpy as np
import pytest
import requests
import torch

from monailabel_app.tests.conftest import files_of_the_bundle
from monailabel_app.tests.server import MODEL, Server, free_port, running_server, serve_command
from monailabel_app.tests.studies import (
    Studies,
    assert_same_grid,
    field_of_view_start,
    mean_dice,
    smaller,
    voxels,
)

MARGIN = 0.15  # of the propagated label's mean Dice over that of no registration,
SHARE = 1 / 3  # or this share of what is missing to 1, where little is (made studies start at a high Dice)


def least(before: float) -> float:
    """Return the Dice that a propagated label must exceed."""
    return before + min(MARGIN, SHARE * (1 - before))


def test_info_lists_model_options_labels_and_strategies(server: Server, studies: Studies) -> None:
    info = server.info()
    model = info["models"][MODEL]
    assert model["type"] == "segmentation"
    assert model["labels"] == {name: value for value, name in studies.names.items()}
    options = model["config"]
    assert options["moving"] == ["auto", "fuse", *studies.labelled]
    assert options["result"] == ["label", "warped", "displacement", "transform"]
    assert options["weights"][:2] == ["default", "none"]
    assert options["steps"] == 50
    assert {"steps", "similarity", "weights", "preset"} <= set(options)
    assert MODEL in info["trainers"]
    assert "worst_registered" in info["strategies"]


def test_label_comes_back_on_the_fixed_grid_for_slicer(server: Server, studies: Studies, tmp_path: Path) -> None:
    config = server.info()["models"][MODEL]["config"]
    # what Slicer's panel sends: the first of a menu, numbers as they are
    params = {name: value[0] if isinstance(value, list) else value for name, value in config.items()}
    file, answer = server.client(tmp_path).infer(MODEL, studies.open, {**params, "moving": "atlas_a", "preset": "fast"})
    assert_same_grid(Path(file), studies.images[studies.open])
    found, moving = voxels(Path(file)), voxels(studies.labels["atlas_a"])
    assert found.dtype == moving.dtype
    present = {int(value) for value in np.unique(found) if value}
    assert present <= {int(value) for value in np.unique(moving)}
    assert answer["label_names"] == {studies.names[value]: value for value in sorted(present)}
    assert list(answer["label_names"].values()) == sorted(present)
    truth = voxels(studies.labels[studies.open])
    before, after = mean_dice(truth, field_of_view_start(moving, truth.shape)), mean_dice(truth, found)
    print(f"mean Dice {before:.3f} before, {after:.3f} after")
    assert after > least(before)
    quality = answer["quality"]
    assert quality["similarity_after"] < quality["similarity_before"]
    assert quality["folding_percent"] < 0.5
    assert 0 < quality["inconsistency_mm"] < 2
    assert answer["warning"] is None
    assert answer["warnings"] == []
    assert answer["moving"] == "atlas_a"
    assert answer["start"] in ("network", "field_of_view", "world", "center")


def test_ohif_gets_raw_nrrd_in_uint8(server: Server, studies: Studies, tmp_path: Path) -> None:
    form = {"result_extension": ".nrrd", "result_dtype": "uint8", "result_compress": False}
    answer = server.infer(studies.open, output="all", moving="atlas_a", preset="fast", **form)
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("multipart/form-data")
    path = server.result(studies.open, tmp_path / "label.nrrd", moving="atlas_a", preset="fast", **form)
    _, header = nrrd.read(str(path))
    assert header["type"] in ("uint8", "unsigned char")
    assert header["encoding"] == "raw"
    assert_same_grid(path, studies.images[studies.open])
    assert voxels(path).any()


def test_warped_displacement_and_transform_agree(server: Server, studies: Studies, tmp_path: Path) -> None:
    same = {"moving": "atlas_b", "preset": "fast"}
    fixed_path = studies.images[studies.open]
    warped = server.result(studies.open, tmp_path / "w.nii.gz", result="warped", **same)
    assert_same_grid(warped, fixed_path)
    fixed, moving = itk.imread(str(fixed_path), itk.F), itk.imread(str(studies.images["atlas_b"]), itk.F)
    assert voxels(warped).dtype == voxels(studies.images["atlas_b"]).dtype
    displacement = server.result(studies.open, tmp_path / "d.nii.gz", result="displacement", **same)
    vectors = itk.imread(str(displacement))
    assert itk.size(vectors) == itk.size(fixed)
    transform_path = server.result(studies.open, tmp_path / "t.h5", result="transform", **same)
    transform = itk.transformread(str(transform_path))[0]
    # the label of another request's file: ITK resamples the moving image with the transform
    resampled = itk.resample_image_filter(moving, transform=transform, use_reference_image=True, reference_image=fixed)
    inside = (slice(20, -20),) * 3
    difference = itk.array_from_image(resampled)[inside] - voxels(warped)[inside].astype(np.float32)
    spread = float(voxels(warped)[inside].std())
    assert float(np.abs(difference).mean()) < 0.02 * spread
    array = itk.array_from_image(vectors)
    shape = array.shape[:3]
    for index in np.random.default_rng(0).integers(20, np.array(shape[::-1]) - 20, (20, 3)):
        point = list(fixed.TransformIndexToPhysicalPoint([int(i) for i in index]))
        carried = np.array(list(transform.TransformPoint(point)))
        np.testing.assert_allclose(np.array(point) + array[tuple(index[::-1])], carried, atol=0.01)


def test_auto_takes_the_most_similar_study_and_fuse_votes(server: Server, studies: Studies, tmp_path: Path) -> None:
    truth = voxels(studies.labels[studies.open])
    answer = server.params(studies.open, moving="auto", preset="fast")
    ranked = answer["candidates"]
    assert {item["id"] for item in ranked} == set(studies.labelled)
    assert ranked[0]["similarity"] <= ranked[1]["similarity"]
    assert answer["moving"] == ranked[0]["id"]
    scores = {}
    for kind, params in (
        ("best", {"moving": ranked[0]["id"]}),
        ("worst", {"moving": ranked[1]["id"]}),
        ("local", {"moving": "fuse", "vote": "local", "atlases": 2}),
    ):
        path = server.result(studies.open, tmp_path / f"{kind}.nii.gz", preset="fast", **params)
        assert_same_grid(path, studies.images[studies.open])
        scores[kind] = mean_dice(truth, voxels(path))
    print(f"mean Dice {scores}")
    assert scores["local"] > scores["best"]
    # of two, the more similar study decides every disagreement
    path = server.result(
        studies.open, tmp_path / "majority.nii.gz", preset="fast", moving="fuse", vote="majority", atlases=2
    )
    np.testing.assert_array_equal(voxels(path), voxels(tmp_path / "best.nii.gz"))


def test_a_batch_carries_one_label_through_a_series(server: Server, studies: Studies, tmp_path: Path) -> None:
    images = [*studies.others, "atlas_a"]  # the last one is the moving study itself and is left out
    body = {"moving": "atlas_a", "images": images, "preset": "fast"}
    answer = requests.post(f"{server.url}/batch/infer/{MODEL}?run_sync=true", json=body, timeout=600)
    assert answer.status_code == 200, answer.text
    assert set(answer.json()) == set(studies.others)
    for name in studies.others:
        path = tmp_path / f"{name}.nii.gz"
        saved = requests.get(f"{server.url}/datastore/label", params={"label": name, "tag": "original"}, timeout=60)
        path.write_bytes(saved.content)
        assert_same_grid(path, studies.images[name])
        truth, moving = voxels(studies.labels[name]), voxels(studies.labels["atlas_a"])
        before = mean_dice(truth, field_of_view_start(moving, truth.shape))
        assert mean_dice(truth, voxels(path)) > least(before)
        where = {"label": name, "tag": "original"}
        info = requests.get(f"{server.url}/datastore/label/info", params=where, timeout=60).json()
        assert {item["name"] for item in info["label_info"]} <= set(studies.names.values())
        assert info["params"]["moving"] == "atlas_a"
    # not final: a person has yet to look at them
    assert server.info()["datastore"]["completed"] == len(studies.labelled)


def test_the_batch_also_runs_in_the_background(server: Server, studies: Studies) -> None:
    body = {"moving": "atlas_a", "images": [studies.others[0]], "preset": "fast"}
    started = requests.post(f"{server.url}/batch/infer/{MODEL}", json=body, timeout=60)
    assert started.status_code == 200
    assert _wait(f"{server.url}/batch/infer")["status"] == "DONE"


def test_next_study_is_the_one_registered_worst(server: Server, studies: Studies) -> None:
    unlabelled = {studies.open, *studies.others}
    for name in unlabelled:  # forget what other tests were handed out
        forgotten = {"info": json.dumps({"strategy": {}})}
        requests.put(f"{server.url}/datastore/image/info", params={"image": name}, data=forgotten, timeout=60)
    asked = requests.post(f"{server.url}/activelearning/worst_registered", json={"client_id": "a"}, timeout=600).json()
    assert asked["id"] in unlabelled
    best = {}
    for name in unlabelled:  # the same figures as auto's
        best[name] = server.params(name, moving="auto", preset="fast", result="transform")["candidates"][0][
            "similarity"
        ]
    assert asked["id"] == max(best, key=lambda name: best[name])
    assert asked["weight"] == pytest.approx(best[asked["id"]], abs=1e-3)
    again = requests.post(f"{server.url}/activelearning/worst_registered", json={"client_id": "b"}, timeout=600).json()
    assert again["id"] != asked["id"]  # another annotator is at that one


def test_training_publishes_a_model_that_can_be_chosen(server: Server, studies: Studies, tmp_path: Path) -> None:
    body = {"name": "ours", "max_epochs": 1, "pairs_per_epoch": 2, "val_split": 0.2}
    started = requests.post(f"{server.url}/train/{MODEL}", json=body, timeout=60)
    assert started.status_code == 200, started.text
    status = _wait(f"{server.url}/train/")
    assert status["status"] == "DONE", status["details"]
    facts = server.info()["train_stats"][MODEL]["ours"]
    assert facts["epochs"] == 1
    assert set(facts["labelled"]) == set(studies.labelled)
    assert set(facts["images"]) == set(studies.images)
    assert facts["dice_weight"] == 1
    assert any(name.startswith("val_") for name in facts["last_validation"])
    assert set(facts["published_validation"]) == set(facts["last_validation"])
    assert facts["published_epoch"] in (0, 1)
    progress = server.info()["train_stats"][MODEL]  # what 3D Slicer's bars read
    assert (progress["epoch"], progress["total_epochs"], progress["training"]) == (1, 1, "ours")
    assert 0 <= progress["best_metric"] <= 1
    assert progress["best_metric"] == facts["published_validation"]["val_dice"]
    assert "ours" in server.info()["models"][MODEL]["config"]["weights"]
    answer = server.params(studies.open, moving="atlas_a", preset="fast", weights="ours")
    assert answer["weights"] == "ours"
    assert answer["quality"]["similarity_after"] < answer["quality"]["similarity_before"]
    again = requests.post(f"{server.url}/train/{MODEL}?run_sync=true", json=body, timeout=60)
    assert again.status_code == 409
    # the models differ in what they give, not in name alone
    found = {}
    for weights in ("default", "ours"):
        asked = {"moving": "atlas_a", "weights": weights, "optimization": "off", "result": "displacement"}
        found[weights] = voxels(server.result(studies.open, tmp_path / f"{weights}.nii.gz", **asked))
    assert np.abs(found["default"] - found["ours"]).max() > 1e-4


def test_training_can_be_stopped_and_resumed(server: Server, studies: Studies) -> None:
    body = {"name": "long", "max_epochs": 500, "pairs_per_epoch": 1}
    requests.post(f"{server.url}/train/{MODEL}", json=body, timeout=60)
    last = server.work_dir / "training" / "long" / "run" / "last.pt"
    for _ in range(300):
        if last.is_file():
            break
        time.sleep(1)
    assert last.is_file()
    progress = requests.get(f"{server.url}/train/", timeout=60).json()
    assert progress["status"] == "RUNNING"
    assert any("poch" in line for line in progress["details"])
    stopped = requests.delete(f"{server.url}/train/", timeout=60)
    assert stopped.status_code == 200
    assert requests.get(f"{server.url}/train/", timeout=60).json()["status"] in ("STOPPED", "ERROR")
    assert "long" not in server.info()["models"][MODEL]["config"]["weights"]
    refused = requests.post(f"{server.url}/train/{MODEL}?run_sync=true", json=body, timeout=60)
    assert refused.status_code == 409  # the stopped training is not overwritten
    assert "resume" in refused.json()["detail"]
    epochs = torch.load(last, map_location="cpu", weights_only=True)["trainer"]["iteration"]
    body = {**body, "resume": True, "max_epochs": epochs + 1}
    resumed = requests.post(f"{server.url}/train/{MODEL}?run_sync=true", json=body, timeout=600)
    assert resumed.status_code == 200, resumed.text
    assert resumed.json()["epochs"] == epochs + 1
    assert "long" in server.info()["models"][MODEL]["config"]["weights"]


def test_labels_of_slicer_and_of_the_folder_are_fused(tmp_path: Path, studies: Studies) -> None:
    """3D Slicer numbers from 1 on what it names ``label_N``; a label put into labels/final has its numbers alone."""
    folder = tmp_path / "studies"
    (folder / "labels" / "final").mkdir(parents=True)
    for name in (studies.open, *studies.labelled):
        shutil.copy(studies.images[name], folder / f"{name}.nii.gz")
    by_hand, sent = studies.labelled
    shutil.copy(studies.labels[by_hand], folder / "labels" / "final" / f"{by_hand}.nii.gz")
    label = itk.imread(str(studies.labels[sent]))
    values, index = np.unique(itk.array_from_image(label), return_inverse=True)
    # without the first structure, as if it had been removed: all others move down
    index = np.where(index > 1, index - 1, 0).reshape(voxels(studies.labels[sent]).shape)
    image = itk.image_from_array(index.astype(np.uint8))
    image.CopyInformation(label)
    itk.imwrite(image, str(tmp_path / "sent.nii.gz"))
    names = [{"name": f"label_{value}", "idx": number} for number, value in enumerate(values[2:].tolist(), start=1)]
    port = free_port()
    command = serve_command(folder, tmp_path / "work", port, "--conf", "modality", studies.modality)
    with running_server(command, tmp_path, tmp_path / "work", port) as server:
        server.client(tmp_path).save_label(sent, str(tmp_path / "sent.nii.gz"), "final", {"label_info": names})
        expected = voxels(studies.labels[sent])
        expected = np.where(expected == values[1], 0, expected)
        np.testing.assert_array_equal(voxels(folder / "labels" / "final" / f"{sent}.nii.gz"), expected)
        every = {int(value) for value in np.unique(voxels(studies.labels[by_hand])) if value} | set(values[2:].tolist())
        assert server.info()["models"][MODEL]["labels"] == {f"label_{value}": value for value in sorted(every)}
        path = server.result(studies.open, tmp_path / "f.nii.gz", moving="fuse", preset="fast", atlases=2)
    truth = voxels(studies.labels[studies.open])
    before = mean_dice(truth, field_of_view_start(voxels(studies.labels[by_hand]), truth.shape))
    after = mean_dice(truth, voxels(path))
    print(f"mean Dice {before:.3f} before, {after:.3f} after")
    assert after > least(before)


def test_many_requests_two_at_a_time_leave_memory_flat(server: Server, studies: Studies, tmp_path: Path) -> None:
    count = int(os.environ.get("SOAK_REQUESTS", "50"))  # make soak: 200
    client = server.client(tmp_path)
    for name, source in (("small_open", studies.open), ("small_atlas", "atlas_a")):
        client.upload_image(str(smaller(studies.images[source], tmp_path / f"{name}.nii.gz", (48, 52, 44))), name)
    label = smaller(studies.labels["atlas_a"], tmp_path / "label.nii.gz", (48, 52, 44), is_label=True)
    client.save_label("small_atlas", str(label), "final", {"label_info": studies.label_info})
    memory: list[float] = []
    files: list[int] = []

    def ask(number: int) -> str:
        answer = server.infer("small_open", output="image", moving="small_atlas", optimization="off")
        memory.append(server.memory_mib())
        files.append(server.open_files())
        return hashlib.sha256(answer.content).hexdigest() if answer.status_code == 200 else answer.text

    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(ask, range(count)))
    part = count // 5
    early, late = max(memory[part // 2 : part * 3 // 2]), max(memory[-part:])
    print(f"resident memory: {early:.0f} MiB in the first fifth or so of {count} requests, {late:.0f} MiB in the last")
    print(f"open files: at most {max(files[:part])}, then {max(files[-part:])}")
    assert max(files[-part:]) <= max(files[:part]) + 5  # of requests at work
    assert len(set(answers)) == 1, set(answers)  # all were served, and alike
    assert late < early * 1.05 + 20
    ours = ("answer-", "request-", "quick-")  # PyTorch has folders of its own there
    for _ in range(50):  # the last answer is removed after it was sent
        names = [path.name for path in (server.work_dir / "tmp").iterdir()]
        left = [name for name in names if name.startswith(ours) or name.endswith(".gz")]
        if not left:
            break
        time.sleep(0.1)
    assert left == []


def test_nothing_was_written_into_the_bundle(server: Server, checkout: dict[str, str]) -> None:
    assert files_of_the_bundle() == checkout


def _wait(url: str) -> dict:
    for _ in range(600):
        status = requests.get(url, timeout=60).json()
        if status["status"] not in ("SUBMITTED", "RUNNING"):
            return dict(status)
        time.sleep(1)
    raise AssertionError(json.dumps(status))
