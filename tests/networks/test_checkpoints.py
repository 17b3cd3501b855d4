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
from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from monai.bundle import download_large_files
from torch import Tensor

from scripts.networks.architectures import create_registration_network
from scripts.networks.checkpoint_files import read_checkpoint, translate_keys
from scripts.networks.checkpoints import (
    CHECKSUMS,
    MODEL_FILES,
    PUBLISHED_FILES,
    describe_weights,
    find_weights,
    load_weights,
)
from scripts.networks.published_weights import ROOT, record_of, sha256_of
from scripts.networks.registration_network import IdentityNetwork, RegistrationNetwork
from scripts.utils.errors import InputError, InputFileError
from tests.helpers.networks import SMALL, published_state, random_network


def fresh(stage: int = 2) -> RegistrationNetwork:
    return RegistrationNetwork((17, 17, 17), **SMALL, stage=stage)


def save(content: Any, folder: Path, name: str = "weights.pt") -> Path:
    path = folder / name
    torch.save(content, path)
    return path


def assert_same(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert set(first) == set(second)
    for key, value in first.items():
        assert torch.equal(value, second[key]), key


@pytest.mark.parametrize("stage", [1, 2])
@pytest.mark.parametrize("form", ["plain", "in model", "data parallel", "published"])
def test_every_known_form_loads(form: str, stage: int, tmp_path: Path) -> None:
    source = random_network(stage=stage)
    state = source.state_dict()
    content = {
        "plain": state,
        "in model": {"model": state, "optimizer": {"state": {}, "param_groups": [{"lr": 1e-4}]}},
        "data parallel": {f"module.{key}": value for key, value in state.items()},
        "published": published_state(source),
    }[form]
    network = fresh(stage).train()
    assert load_weights(network, "unigradicon", save(content, tmp_path)) is network
    assert_same(network.state_dict(), state)
    assert not network.training


def test_the_published_keys_are_those_of_the_published_files() -> None:
    network = RegistrationNetwork()
    keys = set(published_state(network))
    assert len(keys) == 188
    assert "netPhi.netPhi.net.netPhi.net.net.downConvs.4.weight" in keys
    assert "netPsi.net.batchNorms.0.running_var" in keys
    state = published_state(network)
    # the channels tell the levels apart: up 0 is the finest
    assert state["netPsi.net.upConvs.0.weight"].shape[1] == 16
    assert state["netPsi.net.upConvs.4.weight"].shape[1] == 256
    assert state["netPsi.net.batchNorms.3.weight"].shape == (128,)
    step_1 = set(published_state(RegistrationNetwork(stage=1)))
    assert step_1 == {key.removeprefix("netPhi.") for key in keys if key.startswith("netPhi.")}


def test_weights_of_stage_1_leave_the_fourth_unet_the_identity(tmp_path: Path) -> None:
    source, network = random_network(stage=1), random_network(seed=1)
    load_weights(network, "unigradicon", save(published_state(source), tmp_path))
    image = torch.rand(1, 2, 17, 18, 19)
    with torch.no_grad():
        torch.testing.assert_close(network(image), source(image), atol=1e-4, rtol=0)


def test_keys_of_another_form_stay_as_they_are() -> None:
    state = {"netPsi.net.other": torch.zeros(1), "conv.weight": torch.zeros(1)}
    assert set(translate_keys(state)) == set(state)


def test_the_log_and_the_description_name_the_file_and_its_hash(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "models").mkdir()
    path = save(random_network().state_dict(), tmp_path, MODEL_FILES["multigradicon"])
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    with caplog.at_level(logging.INFO):
        load_weights(fresh(), "multigradicon", bundle_root=tmp_path)
    for part in ("multigradicon", str(path), sha256):
        assert part in caplog.text
    assert describe_weights(path) == {"name": "multigradicon.pt", "path": str(path.resolve()), "sha256": sha256}
    assert describe_weights(path, "multigradicon")["name"] == "multigradicon"
    assert describe_weights(None) == {"name": "none", "path": None, "sha256": None}
    # a file that was replaced is hashed anew
    torch.save(random_network(seed=1).state_dict(), path)
    assert describe_weights(path)["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest() != sha256


def test_the_training_free_mode_says_how_to_get_weights(caplog: pytest.LogCaptureFixture) -> None:
    network = IdentityNetwork()
    with caplog.at_level(logging.INFO):
        assert load_weights(network, "none", bundle_root="/some where") is network
    assert len(caplog.records) == 1
    assert "training-free" in caplog.text
    assert "scripts download unigradicon --bundle_root '/some where'" in caplog.text


def test_own_weights_win_over_the_model(tmp_path: Path) -> None:
    path = save({}, tmp_path)
    for model in ("none", "unigradicon"):
        assert find_weights(model, path, tmp_path) == path


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("unigradicon",), r"unigradicon\.pt; fetch them with: python .+ download unigradicon --bundle_root "),
        (("multigradicon",), r"multigradicon\.pt; fetch them with: python .+ download multigradicon"),
        (("none", "absent.pt"), "ckpt_path: 'absent.pt' does not exist; give an existing file"),
    ],
)
def test_a_missing_file_is_named(arguments: tuple[str, ...], message: str, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=message):
        load_weights(fresh(), *arguments, bundle_root=tmp_path)


def test_an_unknown_model_is_refused() -> None:
    with pytest.raises(InputError, match="expected one of none, default, unigradicon, multigradicon, got 'voxelmorph'"):
        find_weights("voxelmorph")


def _without(count: int) -> dict[str, Tensor]:
    return dict(list(random_network().state_dict().items())[count:])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a": torch.zeros(1)}, r"116 missing keys \(unets.*, \.\.\.\), 1 unexpected keys \(a\)"),
        (lambda: _without(2), r"2 missing keys \(unets\.0\.down\.0\.bias, unets\.0\.down\.0\.weight\), 0 unexpected"),
        (
            lambda: random_network(down_channels=(2, 4, 6, 9)).state_dict(),
            r"unets\.0\.down\.2\.weight has shape \(9, 6, 3, 3, 3\), expected \(8, 6, 3, 3, 3\)",
        ),
        ({"epoch": 3}, r"must hold a state dict of tensors .* got keys \(epoch\)"),
        ([1, 2], "got a list"),
    ],
)
def test_a_file_that_does_not_fit_is_explained(content: Any, message: str, tmp_path: Path) -> None:
    path = save(content() if callable(content) else content, tmp_path)
    network = random_network()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    with pytest.raises(InputError, match=message):
        load_weights(network, "none", path)
    assert_same(network.state_dict(), before)


class Harmful:
    """Stands for an object whose unpickling would run code."""


def test_a_file_that_holds_code_or_no_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputFileError, match="can't be read as a PyTorch checkpoint"):
        load_weights(fresh(), "none", save({"model": Harmful()}, tmp_path))
    text = tmp_path / "page.pt"
    text.write_text("<html>not found</html>")
    with pytest.raises(InputFileError, match=r"page\.pt can't be read"):
        load_weights(fresh(), "none", text)


def test_the_download_list_matches_the_loader(
    bundle_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = yaml.safe_load((bundle_root / "large_files.yml").read_text())["large_files"]
    assert [entry["path"] for entry in content] == list(PUBLISHED_FILES.values())
    assert all(entry["url"].startswith("https://github.com/uncbiag/uniGradICON/releases/") for entry in content)
    # MONAI's command accepts the list as it is; only the download itself is replaced
    calls: list[dict[str, str]] = []
    monkeypatch.setattr("monai.bundle.scripts.download_url", lambda **call: calls.append(call))
    (tmp_path / "large_files.yml").write_bytes((bundle_root / "large_files.yml").read_bytes())
    download_large_files(bundle_path=str(tmp_path))
    assert [Path(call["filepath"]) for call in calls] == [tmp_path / name for name in PUBLISHED_FILES.values()]
    assert all("hash_val" not in call for call in calls)


def test_own_weights_with_a_hash_sign_in_their_path_are_found(tmp_path: Path) -> None:
    """MONAI turns '#' into '::' in options."""
    path = save({}, tmp_path, "run#2.pt")
    assert find_weights("none", f"{tmp_path}/run::2.pt") == path
    with pytest.raises(InputFileError, match=r"ckpt_path: .* is a folder; give a file"):
        find_weights("none", tmp_path)


def default_bundle(folder: Path, network: RegistrationNetwork, digest: str | None = None) -> Path:
    """Return a bundle whose default weights are those of a network, half precision, listed with their hash."""
    (folder / "models").mkdir()
    half = {key: v.half() if v.is_floating_point() else v for key, v in network.state_dict().items()}
    content = {"model": half, "network": {"spatial_shape": [17, 18, 19]}}
    path = save(content, folder, MODEL_FILES["default"])
    digest = digest or hashlib.sha256(path.read_bytes()).hexdigest()
    (folder / "models" / CHECKSUMS).write_text(f"{digest}  model.pt\n")
    return folder


def test_the_default_weights_load_from_half_precision_and_tell_their_shape(tmp_path: Path) -> None:
    source = random_network()
    bundle = default_bundle(tmp_path, source)
    network = load_weights(fresh(), "default", bundle_root=bundle)
    for key, value in network.state_dict().items():
        torch.testing.assert_close(value, source.state_dict()[key], atol=1e-3, rtol=1e-3)
        assert value.dtype == source.state_dict()[key].dtype
    assert read_checkpoint(bundle / MODEL_FILES["default"]).spatial_shape == [17, 18, 19]


def test_default_weights_that_changed_are_refused(tmp_path: Path) -> None:
    bundle = default_bundle(tmp_path, random_network(), digest="0" * 64)
    with pytest.raises(InputFileError, match=r"not the file that this version came with .*SHA256SUMS says 0000"):
        load_weights(fresh(), "default", bundle_root=bundle)
    (bundle / "models" / CHECKSUMS).unlink()
    with pytest.raises(InputFileError, match="SHA256SUMS says None"):
        load_weights(fresh(), "default", bundle_root=bundle)


def test_a_note_of_a_former_file_does_not_speak_of_the_default_weights(tmp_path: Path) -> None:
    """Published weights had that name up to 0.8, and their note may lie there still."""
    (tmp_path / "models").mkdir()
    for name in ("model.pt", CHECKSUMS):
        (tmp_path / "models" / name).symlink_to(ROOT / "models" / name)
    record_of(tmp_path / "models" / "model.pt").write_text(f"{'0' * 64}  model.pt\n")
    load_weights(create_registration_network("default", bundle_root=tmp_path), "default", bundle_root=tmp_path)
    with pytest.raises(InputFileError, match="was changed since"):
        load_weights(fresh(), "none", tmp_path / "models" / "model.pt")


def test_published_weights_that_changed_since_their_download_are_refused(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    path = save(random_network().state_dict(), tmp_path, MODEL_FILES["unigradicon"])
    record_of(path).write_text(f"{sha256_of(path)}  unigradicon.pt\n")
    load_weights(fresh(), "unigradicon", bundle_root=tmp_path)
    save(random_network(seed=1).state_dict(), tmp_path, MODEL_FILES["unigradicon"])
    with pytest.raises(InputFileError, match=r"was changed since .*fetch it again with: python .*download unigradicon"):
        load_weights(fresh(), "unigradicon", bundle_root=tmp_path)
    with pytest.raises(InputFileError, match=r"was changed since .*or remove unigradicon\.pt\.sha256 if"):
        load_weights(fresh(), "none", path)


def test_missing_default_weights_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputFileError, match=r"default weights are not at .*model\.pt; restore them with: git"):
        find_weights("default", bundle_root=tmp_path)


@pytest.mark.parametrize("shape", [[17, 17], "175", [17.0, 17, 17], {"a": 1}])
def test_a_shape_that_is_none_is_refused(tmp_path: Path, shape: object) -> None:
    path = save({"model": random_network().state_dict(), "network": {"spatial_shape": shape}}, tmp_path)
    with pytest.raises(InputError, match="spatial_shape as three whole numbers"):
        read_checkpoint(path)


def test_the_default_folder_means_this_bundle_wherever_a_command_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").mkdir()  # of something else
    assert find_weights("default", bundle_root=".") == Path(__file__).resolve().parents[2] / "models" / "model.pt"
    with pytest.raises(InputFileError, match="default weights"):  # a folder that was named is meant
        find_weights("default", bundle_root=tmp_path)


def test_a_file_that_holds_something_else_is_no_invitation_to_run_it(tmp_path: Path) -> None:
    """PyTorch's own words advise to read it without weights_only."""
    (tmp_path / "text.pt").write_text("import os\n")
    torch.save({"model": Path("x")}, tmp_path / "path.pt")
    for name in ("text.pt", "path.pt"):
        with pytest.raises(InputFileError, match="can't be read as a PyTorch checkpoint of tensors") as error:
            read_checkpoint(tmp_path / name)
        assert "weights_only" not in str(error.value)
