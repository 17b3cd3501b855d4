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

import pytest
import torch

from scripts.inferers.network_optimization import optimize_network
from scripts.losses.gradicon import GradICONLoss
from scripts.losses.similarity import create_similarity
from scripts.networks import activation_checkpointing as recomputing
from scripts.networks.activation_checkpointing import choose_recomputing, step_bytes
from scripts.networks.registration_network import IdentityNetwork, RegistrationNetwork
from scripts.networks.unet import UNet
from scripts.utils.errors import InputError
from tests.helpers.networks import random_network, random_pair

SHAPE = (17, 22, 19)


def test_the_need_grows_with_voxels_pairs_and_unets() -> None:
    network = random_network()
    once = step_bytes(network, SHAPE)
    assert step_bytes(network, (34, 22, 19)) == pytest.approx(2 * once, rel=1e-6)
    assert step_bytes(network, SHAPE, batch_size=3) == pytest.approx(3 * once, rel=1e-6)
    assert step_bytes(network, SHAPE, batch_statistics=True) > once
    assert step_bytes(random_network(stage=1), SHAPE) < 0.6 * once


def test_the_published_network_needs_about_seven_gigabytes() -> None:
    assert 6e9 < step_bytes(RegistrationNetwork(), (175, 175, 175)) < 8e9


@pytest.mark.parametrize(("free", "expected"), [(1e15, False), (1e3, True)])
def test_auto_decides_by_free_memory(free: float, expected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recomputing, "available_memory", lambda device: int(free))
    assert choose_recomputing("auto", random_network(), SHAPE, "cpu") is expected
    assert choose_recomputing(True, random_network(), SHAPE, "cpu") is True
    assert choose_recomputing(False, random_network(), SHAPE, "cpu") is False
    assert choose_recomputing("auto", IdentityNetwork(), SHAPE, "cpu") is False


def test_another_word_is_refused() -> None:
    with pytest.raises(InputError, match="activation_checkpointing: expected True, False or auto, got 'on'"):
        choose_recomputing("on", random_network(), SHAPE, "cpu")


def test_optimization_gives_the_same_result_and_restores_the_switch() -> None:
    network, pair = random_network(), random_pair(SHAPE)
    loss = GradICONLoss(create_similarity("lncc"))
    found = [
        optimize_network(network, *pair, loss, 2, 1e-3, activation_checkpointing=wanted, progress=False)
        for wanted in (False, True)
    ]
    assert float(found[0].terms.loss) == pytest.approx(float(found[1].terms.loss), rel=1e-5)
    torch.testing.assert_close(found[0].forward_ddf, found[1].forward_ddf, atol=1e-4, rtol=1e-4)
    assert not any(unet.recomputes for unet in network.unets if isinstance(unet, UNet))
