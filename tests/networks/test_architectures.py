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
"""Networks are made as their weights need them, and weights for the bundle from a training run's."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch

from scripts.networks.architectures import architecture_of, create_network, create_registration_network
from scripts.networks.checkpoints import MODEL_FILES, load_weights
from scripts.networks.registration_network import IdentityNetwork, RegistrationNetwork
from scripts.utils.errors import InputError
from tests.helpers.networks import SMALL, published_state, random_network, random_pair
from tools.default_weights import write_default_weights

WIDE = {"down_channels": (2, 4, 6, 6, 10), "up_channels": (5, 4, 6, 8)}  # four levels


def widths(network: RegistrationNetwork) -> list[tuple[int, ...]]:
    return [tuple(parameter.shape) for parameter in network.parameters()]


@pytest.mark.parametrize("stage", [1, 2])
@pytest.mark.parametrize("channels", [SMALL, WIDE])
@pytest.mark.parametrize("published", [False, True])
def test_widths_and_stage_follow_from_the_weights(
    tmp_path: Path, stage: int, channels: dict[str, tuple[int, ...]], published: bool
) -> None:
    source = random_network(stage=stage, **channels, spatial_shape=(40, 40, 40))
    path = tmp_path / "weights.pt"
    torch.save(published_state(source) if published else source.state_dict(), path)
    network = create_registration_network(ckpt_path=path, default_shape=(34, 35, 36))
    assert widths(network) == widths(source)
    assert network.spatial_shape == [34, 35, 36]  # such files do not tell it
    load_weights(network, "none", path)
    pair = random_pair((34, 33, 36))
    with torch.no_grad():
        expected, found = source.displacements(*pair), network.eval().displacements(*pair)
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


def test_what_is_given_wins_over_the_weights(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save({"model": random_network().state_dict(), "network": {"spatial_shape": [21, 22, 23]}}, path)
    assert create_registration_network(ckpt_path=path).spatial_shape == [21, 22, 23]
    network = create_registration_network(ckpt_path=path, spatial_shape=(24, 24, 24), stage=1)
    assert network.spatial_shape == [24, 24, 24]
    assert len(network.unets) == 3
    assert network.unets[0].last.in_channels == SMALL["up_channels"][0] + 2


def test_without_a_file_the_network_is_the_published_one(tmp_path: Path) -> None:
    for network in (create_registration_network(), create_registration_network("unigradicon", bundle_root=tmp_path)):
        assert network.spatial_shape == [175, 175, 175]
        assert sum(parameter.numel() for parameter in network.parameters()) == 70_680_916
    assert architecture_of({"conv.weight": torch.zeros(1)}).stage is None


def test_the_model_chooses_the_network(tmp_path: Path) -> None:
    assert isinstance(create_network("none"), IdentityNetwork)
    assert isinstance(create_network("none", "own.pt", **SMALL), RegistrationNetwork)
    assert isinstance(create_network("default", bundle_root=tmp_path, **SMALL), RegistrationNetwork)


def test_weights_for_the_bundle_are_small_listed_and_give_nearly_the_same(tmp_path: Path) -> None:
    source = random_network(stage=1)
    torch.save(
        {"model": source.state_dict(), "network": {"spatial_shape": [17, 18, 19]}, "optimizer": {"lr": 1.0}},
        tmp_path / "best.pt",
    )
    out = tmp_path / MODEL_FILES["default"]
    sha256 = write_default_weights(tmp_path / "best.pt", out)
    assert (out.parent / "SHA256SUMS").read_text() == f"{sha256}  model.pt\n"
    assert sha256 == hashlib.sha256(out.read_bytes()).hexdigest()
    network = create_network("default", bundle_root=tmp_path)
    assert network.spatial_shape == [17, 18, 19]
    load_weights(network, "default", bundle_root=tmp_path)
    pair = random_pair((17, 18, 19))
    with torch.no_grad():
        for found, expected in zip(network.displacements(*pair), source.displacements(*pair), strict=True):
            torch.testing.assert_close(found, expected, atol=2e-4, rtol=0)


def test_weights_for_the_bundle_come_from_a_run_here(tmp_path: Path) -> None:
    torch.save(random_network().state_dict(), tmp_path / "plain.pt")
    with pytest.raises(InputError, match=r"plain\.pt is no checkpoint of a training run here"):
        write_default_weights(tmp_path / "plain.pt", tmp_path / "model.pt")
    large = random_network().state_dict()
    large["unets.0.norm.0.running_var"] += 1e6
    torch.save({"model": large, "network": {"spatial_shape": [17, 17, 17]}}, tmp_path / "large.pt")
    with pytest.raises(InputError, match="beyond half precision"):
        write_default_weights(tmp_path / "large.pt", tmp_path / "model.pt")
    assert not (tmp_path / "model.pt").exists()
