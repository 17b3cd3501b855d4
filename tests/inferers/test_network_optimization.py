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

from typing import Any

import pytest
import torch
from monai.data import MetaTensor
from torch import Tensor

from scripts.inferers.network_optimization import optimize_network
from scripts.losses.gradicon import GradICONLoss, LossTerms
from scripts.losses.similarity import LNCC
from scripts.networks.registration_network import IdentityNetwork, RegistrationNetwork
from scripts.utils.errors import InputError
from tests.helpers.networks import random_network, random_pair

SHAPE = (17, 19, 18)
OPTIONS: dict[str, Any] = {"steps": 3, "learning_rate": 1e-3, "progress": False}


def make_loss() -> GradICONLoss:
    return GradICONLoss(LNCC(sigma=2))


def state_of(network: RegistrationNetwork) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in network.state_dict().items()}


def assert_unchanged(network: RegistrationNetwork, before: dict[str, Tensor]) -> None:
    for key, value in network.state_dict().items():
        assert torch.equal(value, before[key]), key
    assert all(parameter.grad is None for parameter in network.parameters())


def test_the_objective_falls_and_the_weights_are_restored() -> None:
    network, pair = random_network(), random_pair(SHAPE)
    before = state_of(network)
    start = optimize_network(network, *pair, make_loss(), **{**OPTIONS, "steps": 0})
    result = optimize_network(network, *pair, make_loss(), **{**OPTIONS, "steps": 10})
    assert result.terms.loss < 0.98 * start.terms.loss
    assert result.forward_ddf.shape == result.inverse_ddf.shape == (1, 3, *SHAPE)
    assert not result.forward_ddf.requires_grad
    assert_unchanged(network, before)
    # the result is that of the optimized weights, not of the restored ones
    with torch.no_grad():
        torch.testing.assert_close(start.forward_ddf, network(torch.cat(pair, dim=1)))
        torch.testing.assert_close(start.inverse_ddf, network(torch.cat(pair[::-1], dim=1)))
    assert (result.forward_ddf - start.forward_ddf).abs().max() > 1e-2


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError("out of memory")])
def test_the_weights_are_restored_after_an_interrupt_or_an_error(error: Any) -> None:
    network, pair = random_network().train(), random_pair(SHAPE)
    network.unets[0].requires_grad_(False)
    before = state_of(network)

    class Interrupted(GradICONLoss):
        calls = 0

        def forward(self, *args: Any, **kwargs: Any) -> LossTerms:
            self.calls += 1
            if self.calls == 3:
                assert not torch.equal(network.unets[0].last.weight, before["unets.0.last.weight"])
                raise error
            return super().forward(*args, **kwargs)

    with pytest.raises(error if isinstance(error, type) else type(error)):
        optimize_network(network, *pair, Interrupted(LNCC(sigma=2)), **{**OPTIONS, "steps": 5})
    assert_unchanged(network, before)
    assert network.training
    assert not network.unets[0].last.weight.requires_grad
    assert network.unets[1].last.weight.requires_grad


def test_a_pair_does_not_depend_on_the_pairs_before() -> None:
    network, second = random_network(), random_pair(SHAPE, seed=2)
    alone = optimize_network(network, *second, make_loss(), **OPTIONS)
    optimize_network(network, *random_pair(SHAPE, seed=1), make_loss(), **OPTIONS)
    after = optimize_network(network, *second, make_loss(), **OPTIONS)
    assert torch.equal(alone.forward_ddf, after.forward_ddf)
    assert torch.equal(alone.inverse_ddf, after.inverse_ddf)


def test_the_seed_decides_the_result_and_leaves_the_random_state_alone() -> None:
    network, pair = random_network(), random_pair(SHAPE)
    state = torch.get_rng_state()
    first = optimize_network(network, *pair, make_loss(), seed=4, **OPTIONS)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(3)
    assert torch.equal(optimize_network(network, *pair, make_loss(), seed=4, **OPTIONS).forward_ddf, first.forward_ddf)
    other = optimize_network(network, *pair, make_loss(), seed=5, **OPTIONS)
    assert not torch.equal(other.forward_ddf, first.forward_ddf)


def test_it_works_under_no_grad_with_metadata_masks_and_labels() -> None:
    network, (moving, fixed) = random_network(), random_pair(SHAPE)
    extras = {
        "moving_mask": (moving > 0.3).float(),
        "fixed_mask": (fixed > 0.3).float(),
        "moving_label": (moving > 0.5).float(),
        "fixed_label": (fixed > 0.5).float(),
    }
    loss = GradICONLoss(LNCC(sigma=2), dice_weight=1)
    expected = optimize_network(network, moving, fixed, loss, **extras, **OPTIONS)
    with torch.no_grad():
        result = optimize_network(
            network,
            MetaTensor(moving),
            MetaTensor(fixed),
            loss,
            **{name: MetaTensor(value) for name, value in extras.items()},
            **OPTIONS,
        )
        assert not torch.is_grad_enabled()
    assert type(result.forward_ddf) is Tensor
    assert torch.equal(result.forward_ddf, expected.forward_ddf)
    assert result.terms.dice > 0


def test_the_progress_bar_shows_the_terms(capsys: pytest.CaptureFixture[str]) -> None:
    optimize_network(random_network(), *random_pair(SHAPE), make_loss(), **{**OPTIONS, "progress": True})
    shown = capsys.readouterr().err
    assert "similarity=" in shown
    assert "regularity=" in shown


def test_bad_arguments_are_refused() -> None:
    pair, network = random_pair(SHAPE), random_network()
    with pytest.raises(InputError, match="needs a network"):
        optimize_network(IdentityNetwork(), *pair, make_loss())
    with pytest.raises(InputError, match="got steps -1"):
        optimize_network(network, *pair, make_loss(), steps=-1)
    before = state_of(network)
    with pytest.raises(InputError, match="became nan at step 0"):
        optimize_network(network, pair[0] * torch.nan, pair[1], make_loss(), **OPTIONS)
    assert_unchanged(network, before)
