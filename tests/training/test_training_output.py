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
"""What a training run says and writes beside its weights: metrics.csv, summary, warnings about labels and modality."""

from __future__ import annotations

import csv
import json
import shlex
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from monai.bundle import ConfigWorkflow

from scripts.networks.registration_network import RegistrationNetwork
from scripts.training.checks import check_training
from scripts.training.pair_dataset import PairDataset
from scripts.training.summary import summarize_training
from scripts.utils.errors import InputError, find_input_error
from scripts.utils.tracking import check_tracking
from tests.helpers.chain import noise, write
from tests.helpers.inference import run_inference
from tests.helpers.training_run import SMALL, load, synthetic_list, train, training_workflow


def labelled_list(folder: Path, labelled: int = 3, count: int = 4, name: str = "list") -> str:
    """Write a list of images, the first of which have labels."""
    entries: list[dict[str, str]] = []
    for number in range(count):
        values = noise(seed=number)
        entry = {"image": write(folder / f"{number}.nii.gz", values)}
        if number < labelled:
            entry["label"] = write(folder / f"{number}_label.nii.gz", (values > 200).astype(np.uint8))
        entries.append(entry)
    (folder / f"{name}.json").write_text(json.dumps(entries))
    return str(folder / f"{name}.json")


def table_of(run: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((run / "metrics.csv").read_text().splitlines()))


def test_the_run_ends_with_its_figures_and_a_command_that_works(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = labelled_list(tmp_path)
    run = tmp_path / "run"
    train(run, train_datalist=path, val_datalist=path, dice_weight=1.0, pairs_per_epoch=2)
    said = capsys.readouterr().out
    rows = table_of(run)
    assert [row["epoch"] for row in rows] == ["0", "1", "2"]
    scores = [float(row["val_dice"]) for row in rows]
    lines = said.strip().splitlines()
    best = scores.index(max(scores))
    expected = f"val_dice: {scores[0]:.4g} at the start -> {max(scores):.4g} at epoch {best} (Dice, higher is better)"
    assert expected in lines
    assert f"weights: {run / 'best.pt'}" in lines
    assert load(run / "best.pt")["key_metric"] == {"name": "dice"}
    for row in rows[1:]:
        assert float(row["epoch_loss"]) > float(row["epoch_similarity"])
        assert "epoch_dice" not in row
    assert "epoch_loss best value" not in said
    assert "best metric of epoch_loss" not in said
    words = shlex.split(lines[-1])
    assert words[1:5] == ["-m", "monai.bundle", "run", "inference"]
    options = dict(zip([word.removeprefix("--") for word in words[5::2]], words[6::2], strict=True))
    assert Path(options.pop("config_file")).is_file()
    options.pop("output_dir")
    report = run_inference(tmp_path / "out", optimization="off", **options)
    assert report["weights"]["path"] == str(run / "best.pt")
    assert report["inputs"]["fixed_modality"] == "mr"


def test_a_resumed_run_continues_the_table(tmp_path: Path) -> None:
    path = synthetic_list(tmp_path, pairs=2)
    lists = {"train_datalist": path, "val_datalist": path}
    train(tmp_path / "run", max_epochs=1, **lists)
    before = table_of(tmp_path / "run")
    with (tmp_path / "run" / "metrics.csv").open("a") as file:  # of a run that was killed before it could save
        file.write("7" + "," * (len(before[0]) - 1) + "\n")
    train(tmp_path / "run", max_epochs=3, resume=True, **lists)
    train(tmp_path / "whole", max_epochs=3, **lists)
    rows, whole = table_of(tmp_path / "run"), table_of(tmp_path / "whole")
    assert [float(row["epoch"]) for row in rows] == [0, 1, 2, 3]
    for row, other in zip(rows, whole, strict=True):
        for name in ("epoch_loss", "val_tre_mm", "val_similarity"):
            assert row[name] == other[name]


def test_an_epoch_without_labels_has_no_dice_loss(tmp_path: Path) -> None:
    """Not 0, which would be a perfect overlap."""
    path = labelled_list(tmp_path, labelled=2)
    entries = json.loads(Path(path).read_text())
    other = write(tmp_path / "other_label.nii.gz", (noise(seed=1) > 200).astype(np.uint8) * 2)
    entries[1]["label"] = other  # nothing in common
    Path(path).write_text(json.dumps(entries))
    run = tmp_path / "run"
    train(run, train_datalist=path, val_datalist=path, dice_weight=1.0, pairs_per_epoch=2, max_epochs=1)
    assert "epoch_dice_loss" not in table_of(run)[0] or not any(row["epoch_dice_loss"] for row in table_of(run))


def test_a_run_that_did_not_get_better_says_so(tmp_path: Path) -> None:
    (tmp_path / "best.pt").touch()
    rows = [{"epoch": 0.0, "val_tre_mm": 3.0}, {"epoch": 1.0, "val_tre_mm": 4.0}]
    network = RegistrationNetwork(SMALL["network_shape"], SMALL["down_channels"], SMALL["up_channels"])
    lines = summarize_training(rows, str(tmp_path), "tre_mm", [], network)
    assert "val_tre_mm: 3 at the start -> 3 at epoch 0 (landmark error, mm, lower is better)" in lines
    assert any("no epoch was better than the start" in line for line in lines)
    assert "--fixed FIXED" in lines[-1]
    assert len(summarize_training([], str(tmp_path), "similarity")) == 2


def record(number: int, **entries: Any) -> dict[str, Any]:
    path = f"/data/{number}.nii.gz"
    return {"set": "s", "subject": str(number), "images": {"image": path}, "modalities": {"image": "mr"}, **entries}


def test_labels_that_nothing_uses_and_a_dice_loss_without_pairs(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checks = {"check_data": False, "ckpt_dir": str(tmp_path / "run")}
    records = [record(n, **({"label": "/data/l.nii.gz"} if n < 3 else {})) for n in range(5)]
    check_training(records, records, **checks)
    assert "names 3 labels, but dice_weight is 0" in caplog.text
    caplog.clear()
    check_training(records, records, dice_weight=1.0, **checks)
    assert "dice_weight" not in caplog.text
    with pytest.raises(InputError, match="no pair of train_datalist can have labels in both images"):
        check_training(records[2:], records, dice_weight=1.0, **checks)


@pytest.mark.parametrize(("cache", "num_workers"), [("memory", 0), ("disk", 0), ("none", 0), ("none", 1)])
def test_what_is_wrong_while_data_is_loaded_is_one_line_and_no_thread_is_left(
    tmp_path: Path, cache: str, num_workers: int
) -> None:
    path = labelled_list(tmp_path, count=5, labelled=5)
    write(tmp_path / "4_label.nii.gz", np.ones((5, 6, 7), np.uint8))
    before = set(threading.enumerate())
    options = {"cache": cache, "num_workers": num_workers, "dice_weight": 1.0, "pairs_per_epoch": 30}
    with pytest.raises(Exception, match=r".") as error:
        training_workflow(tmp_path / "run", train_datalist=path, **options).run()
    known = find_input_error(error.value)
    assert known is not None
    assert "different shapes" in str(known)
    assert "Traceback" not in str(known)
    assert not [thread for thread in set(threading.enumerate()) - before if "Pool" in thread.name]


def test_the_cache_s_threads_end_before_its_error() -> None:
    running = []

    def load(item: dict[str, Any]) -> dict[str, Any]:
        if item["image"] == "/data/0.nii.gz":
            raise InputError("no image")
        running.append(item)
        time.sleep(0.5)
        running.remove(item)
        return {"image": 0}

    records = [record(number) for number in range(4)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("scripts.training.pair_dataset._modified", lambda record: "")
        with pytest.raises(Exception, match=r".") as error:
            PairDataset(records, load, (8, 8, 8), num_workers=3, progress=False)
    assert str(find_input_error(error.value)) == "no image"
    assert not running


@pytest.mark.parametrize(
    ("modality", "low", "words"),
    [
        ("ct", 0, "is said to be CT"),
        ("ct", -1024, None),
        ("mr", -1024, "has the values of CT in HU"),
        ("mr", 0, None),
    ],
)
@pytest.mark.parametrize("cache", ["memory", "disk", "none"])
def test_a_list_of_the_wrong_modality_is_said_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], modality: str, low: int, words: str | None, cache: str
) -> None:
    entries = []
    for number in range(3):
        values = noise(seed=number)
        values = (np.where(values > np.median(values), 1060, 20) + values % 7 + low).astype(np.int16)  # tissue, air
        entries.append({"image": write(tmp_path / f"{number}.nii.gz", values), "modality": modality})
    (tmp_path / "list.json").write_text(json.dumps(entries))
    workflow: ConfigWorkflow = training_workflow(
        tmp_path / "run", train_datalist=str(tmp_path / "list.json"), cache=cache, pairs_per_epoch=2
    )
    workflow.parser.get_parsed_content("train::dataset")
    found = [line for line in capsys.readouterr().out.splitlines() if "do not look like" in line]
    assert len(found) == (0 if words is None else 1)
    if words:
        assert "data set 'list': 3 of 3 images" in found[0]
        assert words in found[0]
        assert entries[0]["image"] in found[0]


def test_tracking_needs_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    config = {"train": {"handlers": [{"_target_": "monai.handlers.MLFlowHandler"}]}}
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install mlflow"):
        check_tracking(config)
    check_tracking({"handlers": [{"_target_": "StatsHandler"}]})
