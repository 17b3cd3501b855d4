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
"""The preprocessing that weights were made for is stored with them and followed: training, inference, export."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigWorkflow

from scripts.networks.checkpoint_files import read_checkpoint
from scripts.networks.exported_network import load_exported
from scripts.networks.exports import export
from scripts.networks.weights_preprocessing import Preprocessing, choose_preprocessing, recorded_preprocessing
from scripts.training.lists import load_records
from scripts.utils.errors import InputError
from tests.helpers.chain import noise, write
from tests.helpers.inference import run_inference
from tests.helpers.networks import published_state, random_network
from tests.helpers.training_run import ROOT, SMALL, load, synthetic_list, train
from tools.default_weights import write_default_weights

WIDTHS = {"down_channels": SMALL["down_channels"], "up_channels": SMALL["up_channels"]}
DEFAULT_SIZE = {"down_channels": [2, 16, 32, 64], "up_channels": [16, 16, 32]}
FINETUNE = ("train.yaml", "finetune.yaml")
TURNED = {"match_orientation": True, "ct_window": [-1000.0, 1000.0], "mr_percentiles": [0.0, 99.0]}


def mixed_pair(folder: Path) -> dict[str, str]:
    """Write a pair of which the moving image is stored mirrored along two axes."""
    moving = nib.load(write(folder / "stored.nii.gz", noise(seed=1)))
    turned = moving.as_reoriented(np.array([[0, -1], [1, -1], [2, 1]]))
    nib.save(turned, folder / "moving.nii.gz")
    return {"fixed": write(folder / "fixed.nii.gz", noise()), "moving": str(folder / "moving.nii.gz")}


def displacement(folder: Path) -> np.ndarray:
    return np.asarray(nib.load(folder / "displacement.nii.gz").dataobj)


def save(path: Path, network: Any, **facts: Any) -> str:
    torch.save({"model": network.state_dict(), "network": {"spatial_shape": [20, 20, 20], **facts}}, path)
    return str(path)


def test_the_default_weights_do_the_same_under_their_name_and_as_a_file(tmp_path: Path) -> None:
    pair = mixed_pair(tmp_path)
    copy = tmp_path / "mine.pt"
    copy.write_bytes((ROOT / "models" / "model.pt").read_bytes())
    runs = {
        "name": {"model": "default"},
        "file": {"ckpt_path": str(ROOT / "models" / "model.pt")},
        "copy": {"ckpt_path": str(copy), "model": "default"},
    }
    reports = {name: run_inference(tmp_path / name, optimization="off", **pair, **run) for name, run in runs.items()}
    for name in runs:
        assert reports[name]["settings"]["match_orientation"] is True
        np.testing.assert_array_equal(displacement(tmp_path / name), displacement(tmp_path / "name"))
        assert reports[name]["similarity"] == reports["name"]["similarity"]


@pytest.mark.parametrize(
    ("start", "options", "expected"),
    [
        ("nothing", {}, TURNED),
        ("nothing", {"match_orientation": False}, {**TURNED, "match_orientation": False}),
        ("default", {}, TURNED),
        ("published", {}, {**TURNED, "match_orientation": False}),
        ("published", {"match_orientation": True}, TURNED),
        ("own", {}, {"match_orientation": True, "ct_window": [-200.0, 300.0], "mr_percentiles": [1.0, 98.0]}),
    ],
)
def test_training_follows_its_start_and_records_it(
    tmp_path: Path, start: str, options: dict[str, Any], expected: dict[str, Any]
) -> None:
    path = synthetic_list(tmp_path, pairs=1)
    given: dict[str, Any] = {"train_datalist": path, "val_datalist": path, "max_epochs": 1, **options}
    configs: tuple[str, ...] = FINETUNE
    network = random_network(**WIDTHS)
    if start == "nothing":
        configs = ("train.yaml",)
    elif start == "default":
        given |= {"model": "default", "down_channels": None, "up_channels": None, "network_shape": [24, 24, 24]}
    elif start == "published":
        torch.save(published_state(network), tmp_path / "Step_2_final.trch")
        given |= {"init_ckpt": str(tmp_path / "Step_2_final.trch"), "stage": None}
    else:
        facts = {"match_orientation": True, "ct_window": [-200, 300], "mr_percentiles": [1, 98]}
        given |= {"init_ckpt": save(tmp_path / "own.pt", network, **facts), "stage": None}
    train(tmp_path / "run", configs, **given)
    for name in ("last.pt", "best.pt"):
        facts = dict(load(tmp_path / "run" / name)["network"])
        facts.pop("spatial_shape")
        assert facts == expected
        assert recorded_preprocessing("none", str(tmp_path / "run" / name)) == expected


def test_a_resumed_run_goes_on_as_it_began(tmp_path: Path) -> None:
    path = synthetic_list(tmp_path, pairs=1)
    lists = {"train_datalist": path, "val_datalist": path}
    train(tmp_path / "run", max_epochs=1, match_orientation=False, **lists)
    last = train(tmp_path / "run", max_epochs=2, resume=True, **lists)
    assert last["network"]["match_orientation"] is False


def test_training_and_validation_turn_images_of_any_orientation_alike(tmp_path: Path) -> None:
    """The same images, stored in other orientations, are the same pairs."""
    orders = ([[0, 1], [1, 1], [2, 1]], [[2, 1], [0, -1], [1, 1]], [[1, -1], [2, -1], [0, 1]])
    seen = {}
    for name, order in (("stored", [orders[0]] * 3), ("turned", orders)):
        folder = tmp_path / name
        folder.mkdir()
        entries = []
        for number in range(3):
            image = nib.load(write(folder / "plain.nii.gz", noise(seed=number)))
            label = nib.Nifti1Image((image.get_fdata() > 200).astype(np.uint8), image.affine)
            for kind, volume in (("image", image), ("label", label)):
                nib.save(volume.as_reoriented(np.array(order[number])), folder / f"{kind}{number}.nii.gz")
            entries.append({"image": f"image{number}.nii.gz", "label": f"label{number}.nii.gz"})
        (folder / "list.json").write_text(json.dumps(entries))
        workflow = ConfigWorkflow(
            config_file=str(ROOT / "configs" / "train.yaml"),
            workflow_type="train",
            bundle_root=str(ROOT),
            train_datalist=str(folder / "list.json"),
            val_datalist=str(folder / "list.json"),
            ckpt_dir=str(folder / "run"),
            **{**SMALL, "dice_weight": 1.0, "pairs_per_epoch": 3, "cache_dtype": "float32"},
        )
        workflow.initialize()
        sets = [workflow.parser.get_parsed_content(f"{part}::dataset") for part in ("train", "validate")]
        seen[name] = [sets[0][1], sets[1][0]]
    for first, second in zip(seen["stored"], seen["turned"], strict=True):
        for side in ("fixed", "moving"):
            torch.testing.assert_close(first[f"{side}_image"], second[f"{side}_image"], atol=1e-5, rtol=0)
            assert torch.equal(first[f"{side}_label"], second[f"{side}_label"])
            torch.testing.assert_close(first[f"{side}_affine"], second[f"{side}_affine"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("route", ["checkpoint", "state dict", ".ts"])
def test_inference_follows_what_the_file_records(tmp_path: Path, route: str) -> None:
    network = random_network(spatial_shape=[20, 20, 20], **WIDTHS)
    facts = {"match_orientation": True, "ct_window": [-200, 300], "mr_percentiles": [1, 98]}
    path = save(tmp_path / "own.pt", network, **facts)
    pair = mixed_pair(tmp_path)
    run_inference(tmp_path / "as_options", ckpt_path=path, optimization="off", **pair, **facts)
    options: dict[str, Any] = {"ckpt_path": path}
    if route == "state dict":
        write_default_weights(Path(path), tmp_path / "plain" / "plain.pt")
        options = {"ckpt_path": str(tmp_path / "plain" / "plain.pt")}
    elif route == ".ts":
        assert load_exported(export(tmp_path / "own.ts", ckpt_path=path).path).preprocessing == facts
        options = {"exported": str(tmp_path / "own.ts")}
    configs = ["inference.yaml", *(["inference_exported.yaml"] if route == ".ts" else [])]
    workflow = ConfigWorkflow(
        config_file=[str(ROOT / "configs" / name) for name in configs],
        workflow_type="inference",
        **{"bundle_root": str(ROOT), "output_dir": str(tmp_path / "out"), "progress": False, "device": "cpu"},
        **{"optimization": "off", **pair, **options},
    )
    workflow.initialize()
    workflow.run()
    settings = json.loads((tmp_path / "out" / "report.json").read_text())["settings"]
    assert {name: settings[name] for name in facts} == facts
    tolerance = 0 if route == "checkpoint" else 0.05  # mm, of half precision
    np.testing.assert_allclose(displacement(tmp_path / "out"), displacement(tmp_path / "as_options"), atol=tolerance)


@pytest.mark.parametrize(("widths", "expected"), [(DEFAULT_SIZE, True), (WIDTHS, False)])
def test_a_checkpoint_that_does_not_record_it_is_read_safely_and_said(
    tmp_path: Path, widths: dict[str, Any], expected: bool, caplog: pytest.LogCaptureFixture
) -> None:
    path = save(tmp_path / "old.pt", random_network(**widths))
    with caplog.at_level(logging.INFO, logger="scripts"):
        assert recorded_preprocessing("default", path) == {"match_orientation": expected}
    assert "do not record whether images are to be turned" in caplog.text
    assert f"--match_orientation {not expected} does the opposite" in caplog.text


@pytest.mark.parametrize(
    ("option", "value", "warned"),
    [
        ("match_orientation", False, True),
        ("match_orientation", True, False),
        ("match_orientation", "auto", False),
        ("ct_window", [-100, 100], True),
        ("ct_window", [-200.0, 300.0], False),
        ("mr_percentiles", [0, 99], True),
    ],
)
def test_an_option_wins_with_a_warning_where_it_contradicts_the_weights(
    tmp_path: Path, option: str, value: Any, warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    facts = {"match_orientation": True, "ct_window": [-200, 300], "mr_percentiles": [1, 98]}
    path = save(tmp_path / "own.pt", random_network(**WIDTHS), **facts)
    found = choose_preprocessing("none", path, **{option: value})
    assert found == Preprocessing(**{**facts, **({option: value} if value != "auto" else {})})
    assert ("differs from" in caplog.text) is warned
    assert not warned or option in caplog.text


def test_models_by_name() -> None:
    assert choose_preprocessing("none", ct_window=(-1, 1)).ct_window == [-1, 1]  # as a report holds it
    assert choose_preprocessing("none") == choose_preprocessing("default", bundle_root=ROOT) == Preprocessing()
    assert choose_preprocessing("unigradicon", bundle_root=ROOT) == Preprocessing(match_orientation=False)
    assert read_checkpoint(ROOT / "models" / "model.pt").preprocessing == {"match_orientation": True}
    with pytest.raises(InputError, match="match_orientation: expected True, False or null, got 'yes'"):
        choose_preprocessing("none", match_orientation="yes")


@pytest.mark.parametrize("facts", [{"match_orientation": 1}, {"ct_window": [0]}, {"mr_percentiles": "wide"}])
def test_facts_of_another_form_are_refused(tmp_path: Path, facts: dict[str, Any]) -> None:
    path = save(tmp_path / "own.pt", random_network(**WIDTHS), **facts)
    with pytest.raises(InputError, match=f"must record {next(iter(facts))}"):
        read_checkpoint(Path(path))


def test_lists_have_absolute_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a.nii.gz", noise())
    (tmp_path / "list.json").write_text(json.dumps([{"image": "a.nii.gz", "label": "a.nii.gz"}]))
    monkeypatch.chdir(tmp_path)
    (record,) = load_records("list.json")
    assert record["images"] == {"image": str(tmp_path / "a.nii.gz")}
    assert record["label"] == str(tmp_path / "a.nii.gz")
