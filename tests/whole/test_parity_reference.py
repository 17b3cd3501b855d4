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
"""Parity with the reference implementation, ``unigradicon`` 1.0.6 and ``icon_registration`` 1.1.9.

Both get the same random weights under the published keys, random images, and the same noise.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from scripts.geometry.composition import transform_on_grid
from scripts.losses.gradicon import GradICONLoss
from scripts.losses.similarity import create_similarity
from scripts.networks.checkpoints import load_weights
from scripts.networks.registration_network import RegistrationNetwork
from tests.helpers.networks import import_reference, published_state, random_network, random_pair, reference_network

PUBLISHED: dict[str, Any] = {
    "spatial_shape": (65, 65, 65),
    "down_channels": (2, 16, 32, 64, 256, 512),
    "up_channels": (16, 32, 64, 128, 256),
}


@pytest.fixture
def reference(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    return import_reference(monkeypatch)


@pytest.fixture(scope="module")
def published() -> RegistrationNetwork:
    return random_network(**PUBLISHED)


def both_maps(network: RegistrationNetwork, model: Any, pair: tuple[Tensor, Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Return (ours, the reference's) phi on the grid, forward and inverse."""
    maps = []
    with torch.no_grad():
        model.identity_map.isIdentity = True
        for moving, fixed in (pair, pair[::-1]):
            ours = transform_on_grid(network.register(moving, fixed), moving)
            maps.append((ours, model.regis_net(moving, fixed)(model.identity_map)))
    return maps


def assert_same_maps(maps: list[tuple[Tensor, Tensor]], displaced: float = 0.01) -> None:
    for ours, theirs in maps:
        assert (ours - theirs).abs().max() < 1e-5
    # the maps are no identities, and differ
    assert (maps[0][0] - maps[1][0]).abs().max() > displaced


@pytest.mark.parametrize("stage", [1, 2])
@pytest.mark.parametrize(("shape", "batch"), [((17, 22, 19), 1), ((33, 29, 40), 2)])
def test_small_networks_give_the_reference_map(
    shape: tuple[int, int, int], batch: int, stage: int, reference: SimpleNamespace
) -> None:
    network = random_network(stage=stage)
    model = reference_network(reference, network, shape)
    assert_same_maps(both_maps(network, model, random_pair(shape, batch)))


@pytest.mark.parametrize("shape", [(65, 71, 68), (80, 66, 97)])
def test_the_published_network_gives_the_reference_map_at_odd_shapes(
    shape: tuple[int, int, int], published: RegistrationNetwork, reference: SimpleNamespace
) -> None:
    assert_same_maps(both_maps(published, reference_network(reference, published, shape), random_pair(shape)))


def test_the_published_network_gives_the_reference_map_at_its_own_shape(
    published: RegistrationNetwork, reference: SimpleNamespace, tmp_path: Path
) -> None:
    state = published_state(published)
    torch.save(state, tmp_path / "Step_2_final.trch")
    network = load_weights(RegistrationNetwork(), "unigradicon", tmp_path / "Step_2_final.trch")
    model = reference.unigradicon.make_network([1, 1, 175, 175, 175], include_last_step=True).eval()
    model.regis_net.load_state_dict(state)
    assert_same_maps(both_maps(network, model, random_pair((175, 175, 175))))


def test_the_transform_is_the_reference_function_at_any_point(reference: SimpleNamespace) -> None:
    network, pair = random_network(), random_pair((18, 25, 21))
    model = reference_network(reference, network, (18, 25, 21))
    points = 1.4 * torch.rand(1, 3, 7, 8, 9) - 0.2  # outside of the grid, too
    with torch.no_grad():
        ours = network.register(*pair)(points)
        assert (ours - model.regis_net(*pair)(points)).abs().max() < 1e-5


CASES = list(itertools.product(["lncc", "lncc2", "mind"], [False, True], [False, True], [False, True]))


@pytest.mark.parametrize(("similarity", "masked", "mass_conservation", "dice"), CASES)
def test_all_terms_of_the_objective_equal_the_reference(
    similarity: str, masked: bool, mass_conservation: bool, dice: bool, reference: SimpleNamespace
) -> None:
    shape = (26, 33, 29)
    network, (moving, fixed) = random_network(size=0.1), random_pair(shape, batch=2)
    masks = {"moving_mask": (moving > 0.4).float(), "fixed_mask": (fixed > 0.45).float()} if masked else {}
    labels = {}
    if dice:
        labels = {"moving_label": (moving * 5).floor() * 3, "fixed_label": (fixed * 4).floor() * 3}
        labels["fixed_label"][1][labels["fixed_label"][1] == 6] = 0  # a label that only one pair has
    model = reference_network(
        reference,
        network,
        shape,
        similarity=reference.unigradicon.make_sim(similarity),
        apply_intensity_conservation_loss=mass_conservation,
        dice_loss_weight=0.7 if dice else 0.0,
        loss_function_masking=masked,
    )
    theirs = {name.replace("moving", "A").replace("fixed", "B"): value for name, value in {**masks, **labels}.items()}
    theirs = {f"{name.split('_')[1]}_{name.split('_')[0]}": value for name, value in theirs.items()}
    theirs = {name.replace("label", "segmentation"): value for name, value in theirs.items()}

    torch.manual_seed(3)
    expected = model(moving, fixed, **theirs)
    torch.manual_seed(3)
    noise = torch.randn(1, 3, *shape)[:, :, ::2, ::2, ::2]
    loss = GradICONLoss(
        create_similarity(similarity), mass_conservation=mass_conservation, dice_weight=0.7 if dice else 0.0
    )
    transforms = network.register(moving, fixed), network.register(fixed, moving)
    terms = loss(*transforms, moving, fixed, noise=noise, **masks, **labels)

    pairs = {
        "loss": (terms.loss, expected.all_loss),
        "similarity": (terms.similarity, expected.similarity_loss),
        "regularity": (terms.regularity, expected.inverse_consistency_loss),
        "transform_magnitude": (terms.transform_magnitude, expected.transform_magnitude),
        "folding": (terms.folding, expected.flips),
    }
    if dice:
        pairs["dice"] = (terms.dice, expected.dice_loss)
    for name, (ours, reference_value) in pairs.items():
        assert float(ours.detach()) == pytest.approx(float(reference_value.detach()), rel=1e-4), name
    assert terms.folding > 0
    assert terms.regularity > 1e-2


def test_the_gradient_of_the_objective_equals_the_reference(reference: SimpleNamespace) -> None:
    shape = (26, 33, 29)
    network, (moving, fixed) = random_network(), random_pair(shape)
    model = reference_network(reference, network, shape)
    torch.manual_seed(3)
    model(moving, fixed).all_loss.backward()
    torch.manual_seed(3)
    noise = torch.randn(1, 3, *shape)[:, :, ::2, ::2, ::2]
    transforms = network.register(moving, fixed), network.register(fixed, moving)
    GradICONLoss(create_similarity("lncc"))(*transforms, moving, fixed, noise=noise).loss.backward()
    theirs = [parameter.grad.norm() for parameter in model.parameters()]
    ours = [parameter.grad.norm() for parameter in network.parameters()]
    # the layers stand in another order
    torch.testing.assert_close(torch.stack(ours).sort()[0], torch.stack(theirs).sort()[0], rtol=1e-3, atol=1e-5)
