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
"""Training by its configs: what comes out, what is logged, and what stops it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from monai.bundle import ConfigWorkflow

from scripts.losses.gradicon import GradICONLoss
from scripts.networks.checkpoints import load_weights
from scripts.networks.registration_network import RegistrationNetwork
from scripts.utils.errors import find_input_error
from tests.helpers.chain import noise, write
from tests.helpers.inference import run_inference
from tests.helpers.networks import published_state, random_network
from tests.helpers.training_run import (
    ROOT,
    SHAPE,
    SMALL,
    assert_same_state,
    events,
    load,
    scalars,
    synthetic_list,
    train,
    training_workflow,
)

NETWORK = {key: SMALL[key] for key in ("network_shape", "down_channels", "up_channels")}
OPTIONS = [
    *("train_datalist", "val_datalist", "network_shape", "stage", "init_ckpt", "ckpt_dir", "max_epochs"),
    *("pairs_per_epoch", "val_interval", "batch_size", "accumulation_steps", "learning_rate", "lambda_gradicon"),
    *("similarity", "dice_weight", "amp", "activation_checkpointing", "cache", "resume", "seed", "num_workers"),
]


def refused(error: Any) -> str:
    """Return the one line that the command line would show."""
    cause = find_input_error(error.value)
    assert cause is not None, repr(error.value)
    assert "\n" not in str(cause)
    return str(cause)


def test_all_properties_of_a_training_bundle_are_there(tmp_path: Path) -> None:
    assert not training_workflow(tmp_path / "run").check_properties()


def test_options_have_the_names_that_users_know(bundle_root: Path) -> None:
    config = yaml.safe_load((bundle_root / "configs" / "train.yaml").read_text())
    assert set(OPTIONS) <= set(config)
    assert {"training", "run", "begin"} <= set(config)


def test_the_published_recipe_is_the_default(bundle_root: Path, tmp_path: Path) -> None:
    config = yaml.safe_load((bundle_root / "configs" / "train.yaml").read_text())
    for stage, epochs in ((1, 800), (2, 200)):
        workflow = training_workflow(tmp_path / "run", stage=stage, max_epochs=config["max_epochs"])
        assert workflow.parser.get_parsed_content("max_epochs") == epochs
        assert len(workflow.parser.get_parsed_content("network_def").unets) == 2 + stage
    assert (config["learning_rate"], config["lambda_gradicon"], config["batch_size"]) == (5e-5, 1.5, 4)


def test_a_run_learns_and_leaves_weights_and_logs(tmp_path: Path) -> None:
    run = tmp_path / "run"
    options = {"deformation": [0.05, 0.06], "affine": 0.1, "same_contrast": 1.0, "corruption": 0.0, "kinds": ["mr"]}
    path = synthetic_list(tmp_path, pairs=30, **options)
    lists = {"train_datalist": path, "val_datalist": path}
    last = train(run, max_epochs=3, stage=1, augment=False, learning_rate=5e-3, **lists)

    assert last["trainer"]["iteration"] == 90
    similarity = scalars(run, "val_similarity")
    assert len(similarity) == 4  # before the first epoch, and after each
    assert min(similarity) < 0.9 * similarity[0]
    assert len(scalars(run, "val_tre_mm")) == 4
    terms = ["loss", "similarity", "regularity", "folding", "transform_magnitude"]
    logged = events(run)
    tags = {*terms, *(f"epoch_{term}" for term in terms), "learning_rate", "pairs_per_second", "memory_mib"}
    tags |= {f"val_{figure}" for figure in ("similarity", "regularity", "dice", "tre_mm", "folding_percent")}
    assert tags <= set(logged.Tags()["scalars"])
    assert not {"dice", "dice_loss", "epoch_dice", "epoch_dice_loss"} & set(
        logged.Tags()["scalars"]
    )  # none was asked for
    assert len(scalars(run, "loss")) == 90
    assert scalars(run, "learning_rate") == pytest.approx([5e-3] * 3)
    assert logged.Tags()["images"] == ["pair_1", "pair_2"]
    assert len(logged.Images("pair_1")) == 4

    best = load(run / "best.pt")
    assert best["key_metric"] == {"name": "tre_mm"}
    for checkpoint in ("last.pt", "best.pt"):
        network = RegistrationNetwork(*NETWORK.values(), stage=1)
        loaded = load_weights(network, "none", run / checkpoint)
        assert_same_state(dict(loaded.state_dict()), dict(load(run / checkpoint)["model"]))


def test_inference_takes_what_training_wrote(tmp_path: Path) -> None:
    train(tmp_path / "run", stage=2)
    pair = {
        "fixed": write(tmp_path / "fixed.nii.gz", noise()),
        "moving": write(tmp_path / "moving.nii.gz", noise(seed=1)),
    }
    for checkpoint in ("best.pt", "last.pt"):
        path = str(tmp_path / "run" / checkpoint)
        report = run_inference(tmp_path / checkpoint, ckpt_path=path, optimization="off", **pair)
        assert report["weights"]["path"] == path


def test_the_same_seed_gives_the_same_weights(tmp_path: Path) -> None:
    first, again = train(tmp_path / "a"), train(tmp_path / "b", num_workers=2)
    other = train(tmp_path / "c", seed=1)
    assert_same_state(first, again)
    assert any(not torch.equal(value, other["model"][key]) for key, value in first["model"].items())


def test_stage_2_starts_from_stage_1(tmp_path: Path) -> None:
    first = train(tmp_path / "one", stage=1, max_epochs=1)
    workflow = training_workflow(tmp_path / "two", stage=2, init_ckpt=str(tmp_path / "one" / "last.pt"))
    started = workflow.parser.get_parsed_content("pair_network").network.state_dict()
    for key, value in first["model"].items():
        assert torch.equal(started[key], value), key
    assert not started["unets.3.last.weight"].any()


def test_finetuning_starts_from_a_published_checkpoint(tmp_path: Path) -> None:
    published = random_network(down_channels=SMALL["down_channels"], up_channels=SMALL["up_channels"])
    torch.save(published_state(published), tmp_path / "Step_2_final.trch")
    path = synthetic_list(tmp_path)
    options = {"train_datalist": path, "val_datalist": path, "max_epochs": 1}
    configs = ("train.yaml", "finetune.yaml")
    start = str(tmp_path / "Step_2_final.trch")
    last = train(tmp_path / "run", configs, init_ckpt=start, learning_rate=1e-12, **options)
    for key, value in published.state_dict().items():
        torch.testing.assert_close(last["model"][key], value, atol=1e-9, rtol=0)
    with pytest.raises(Exception, match=r".") as error:
        train(tmp_path / "other", configs, model="none", **options)
    assert "--init_ckpt" in refused(error)
    assert "download unigradicon" in refused(error)


def test_finetuning_takes_shape_and_widths_from_the_weights(tmp_path: Path) -> None:
    first = train(tmp_path / "first", stage=1, max_epochs=1, network_shape=[21, 22, 20])
    assert first["network"]["spatial_shape"] == [21, 22, 20]
    path = synthetic_list(tmp_path)
    workflow = ConfigWorkflow(
        config_file=[str(ROOT / "configs" / name) for name in ("train.yaml", "finetune.yaml")],
        workflow_type="train",
        bundle_root=str(ROOT),
        **{"init_ckpt": str(tmp_path / "first" / "best.pt"), "ckpt_dir": str(tmp_path / "second"), "max_epochs": 1},
        **{"train_datalist": path, "num_workers": 0, "progress": False, "pairs_per_epoch": 2, "device": "cpu"},
    )
    workflow.initialize()
    workflow.run()
    second = load(tmp_path / "second" / "last.pt")
    assert second["network"] == first["network"]
    assert {key: value.shape for key, value in second["model"].items()} == {
        key: value.shape for key, value in first["model"].items()
    }


def test_voxelmorph_trains_on_the_same_data(tmp_path: Path) -> None:
    path = synthetic_list(tmp_path, pairs=2)
    lists = {"train_datalist": path, "val_datalist": path, "network_shape": [32, 33, 34], "max_epochs": 1}
    last = train(tmp_path / "run", ("train.yaml", "train_voxelmorph.yaml"), **lists)
    assert all(key.startswith("voxelmorph.") for key in last["model"])
    assert scalars(tmp_path / "run", "regularity")[-1] > 0


def test_dice_on_labels_of_some_sets(tmp_path: Path) -> None:
    for n in range(2):
        write(tmp_path / f"{n}.nii.gz", noise(seed=n))
    sets = [
        {"name": "made", "synthetic": {}, "pairs_per_epoch": 2},
        {"name": "bare", "images": [{"image": f"{n}.nii.gz"} for n in range(2)], "pairs_per_epoch": 2},
    ]
    (tmp_path / "list.json").write_text(json.dumps({"datasets": sets}))
    options = {"train_datalist": str(tmp_path / "list.json"), "dice_weight": 1.0, "batch_size": 2, "max_epochs": 1}
    train(tmp_path / "run", **options)
    dice = scalars(tmp_path / "run", "epoch_dice_loss")
    assert 0 < dice[0] < 2
    assert not (tmp_path / "run" / "best.pt").exists()  # nothing was validated
    options["train_datalist"] = str(tmp_path / "bare.json")
    (tmp_path / "bare.json").write_text(json.dumps([{"image": f"{n}.nii.gz"} for n in range(2)]))
    with pytest.raises(Exception, match=r".") as error:
        train(tmp_path / "other", **options)
    assert "no image of train_datalist has a label" in refused(error)


def test_a_bad_file_in_the_list_is_named_before_anything_starts(tmp_path: Path) -> None:
    names = [write(tmp_path / f"{n}.nii.gz", noise(seed=n)) for n in range(4)]
    Path(names[2]).write_bytes(Path(names[2]).read_bytes()[:-400])
    (tmp_path / "list.json").write_text(json.dumps([{"image": name} for name in names]))
    with pytest.raises(Exception, match=r".") as error:
        train(tmp_path / "run", train_datalist=str(tmp_path / "list.json"))
    assert names[2] in refused(error)
    assert "cut short" in refused(error)
    assert not (tmp_path / "run").exists()


def test_missing_weights_and_a_run_that_exists_are_named_before_images_are_read(tmp_path: Path) -> None:
    (tmp_path / "cut.nii.gz").write_bytes(b"no image")
    (tmp_path / "list.json").write_text(json.dumps([{"image": "cut.nii.gz"}, {"image": "cut.nii.gz"}]))
    lists = {"train_datalist": str(tmp_path / "list.json")}
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "last.pt").touch()
    for folder, options, words in (
        ("other", {"model": "unigradicon", "bundle_root": str(tmp_path)}, "download unigradicon --bundle_root"),
        ("run", {}, "--resume True"),
    ):
        with pytest.raises(Exception, match=r".") as error:
            train(tmp_path / folder, **lists, **options)
        assert words in refused(error)


def test_an_image_that_can_not_be_used_is_named_while_the_cache_fills(tmp_path: Path) -> None:
    names = [write(tmp_path / f"{n}.nii.gz", noise(seed=n)) for n in range(3)]
    write(Path(names[1]), np.zeros((8, 9, 10), np.int16))
    (tmp_path / "list.json").write_text(json.dumps([{"image": name} for name in names]))
    with pytest.raises(Exception, match=r".") as error:
        train(tmp_path / "run", train_datalist=str(tmp_path / "list.json"))
    assert names[1] in refused(error)


def test_a_loss_that_is_no_number_stops_with_the_pair_and_keeps_the_last_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    path = synthetic_list(tmp_path)
    lists = {"train_datalist": path}
    before = train(run, max_epochs=1, **lists)
    forward, calls = GradICONLoss.forward, []

    def spoiled(self: GradICONLoss, *args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        terms = forward(self, *args, **kwargs)
        return terms._replace(loss=terms.loss * float("nan")) if len(calls) == 3 else terms

    monkeypatch.setattr(GradICONLoss, "forward", spoiled)
    with pytest.raises(Exception, match=r".") as error:
        train(run, max_epochs=2, resume=True, **lists)
    assert "the loss became nan at epoch 2, iteration 7" in refused(error)
    assert "synthetic pair with seed" in refused(error)
    assert_same_state(before, load(run / "last.pt"))


def test_a_gradient_that_is_no_number_does_not_reach_the_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = GradICONLoss.forward

    def spoiled(self: GradICONLoss, *args: Any, **kwargs: Any) -> Any:
        terms = forward(self, *args, **kwargs)
        # finite, with a gradient that is not
        return terms._replace(loss=terms.loss + torch.sqrt(terms.similarity - terms.similarity.detach()))

    monkeypatch.setattr(GradICONLoss, "forward", spoiled)
    with pytest.raises(Exception, match=r".") as error:
        train(tmp_path / "run", train_datalist=synthetic_list(tmp_path))
    assert "the gradient is no longer finite" in refused(error)


def test_the_schedule_is_followed(tmp_path: Path) -> None:
    train(tmp_path / "run", lr_schedule="cosine", warmup_epochs=1, max_epochs=3)
    assert scalars(tmp_path / "run", "learning_rate") == pytest.approx([0.5e-3, 1e-3, 0.5e-3])


def test_training_without_validation_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(tmp_path / "run", train_datalist=synthetic_list(tmp_path), max_epochs=1)
    assert "no val_datalist" in capsys.readouterr().out


def test_an_unknown_option_of_synthetic_pairs_is_named(tmp_path: Path) -> None:
    with pytest.raises(Exception, match=r".") as error:
        train(tmp_path / "run", train_datalist=synthetic_list(tmp_path, deformations=[0.1, 0.2]))
    assert "did you mean 'deformation'" in refused(error)


def test_best_is_never_chosen_by_a_figure_that_is_missing(tmp_path: Path) -> None:
    names = [write(tmp_path / f"{n}.nii.gz", noise(seed=n)) for n in range(3)]
    (tmp_path / "marks.csv").write_text("x,y,z\n-30,14,141\n")
    (tmp_path / "list.json").write_text(json.dumps([{"image": name} for name in names]))
    pair = {"fixed": names[0], "moving": names[1], "fixed_landmarks": str(tmp_path / "marks.csv")}
    (tmp_path / "val.json").write_text(json.dumps([pair]))
    lists = {"train_datalist": str(tmp_path / "list.json"), "val_datalist": str(tmp_path / "val.json")}
    train(tmp_path / "run", max_epochs=1, pairs_per_epoch=2, **lists)
    assert load(tmp_path / "run" / "best.pt")["key_metric"] == {"name": "similarity"}
    with pytest.raises(Exception, match=r".") as error:
        train(tmp_path / "other", key_metric="tre_mm", **lists)
    assert "in both images" in refused(error)


def test_landmarks_that_do_not_pair_are_named(tmp_path: Path) -> None:
    names = [write(tmp_path / f"{n}.nii.gz", noise(seed=n)) for n in range(2)]
    (tmp_path / "one.csv").write_text("x,y,z\n-30,14,141\n")
    (tmp_path / "two.csv").write_text("x,y,z\n-30,14,141\n-28,16,150\n")
    pair = {"fixed": names[0], "moving": names[1]}
    marks = {"fixed_landmarks": str(tmp_path / "one.csv"), "moving_landmarks": str(tmp_path / "two.csv")}
    (tmp_path / "val.json").write_text(json.dumps([{**pair, **marks}]))
    with pytest.raises(Exception, match=r".") as error:
        train(tmp_path / "run", train_datalist=synthetic_list(tmp_path), val_datalist=str(tmp_path / "val.json"))
    assert "2 and 1 points" in refused(error)
    assert names[0] in refused(error)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"train_datalist": None}, "--train_datalist"),
        ({"similarity": "ncc"}, "similarity: expected"),
        ({"lr_schedule": "step"}, "lr_schedule: expected"),
        ({"key_metric": "accuracy"}, "key_metric: expected"),
        ({"stage": 3}, "stage must be"),
        ({"cache": "ram"}, "cache: expected"),
        ({"init_ckpt": "/nowhere.pt"}, "does not exist"),
        ({"network_shape": [8, 8, 8]}, "at least"),
    ],
)
def test_wrong_options_are_one_clear_line(tmp_path: Path, options: dict[str, Any], words: str) -> None:
    path = synthetic_list(tmp_path)
    with pytest.raises(Exception, match=r".") as error:
        train(tmp_path / "run", **{"train_datalist": path, "val_datalist": path, **options})
    assert words in refused(error)
    assert not list((tmp_path / "run").glob("*.pt"))
    assert SHAPE == [20, 20, 20]
