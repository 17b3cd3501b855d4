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
"""The inferer: its modes, their common interface, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from monai.data import MetaTensor

from scripts.geometry.composition import transform_on_grid
from scripts.geometry.coordinates import extent, from_ddf, identity_grid_like
from scripts.geometry.image_pair import ImagePair
from scripts.geometry.smoothing import gaussian_blur
from scripts.inferers.registration_inferer import PreparePair, RegistrationInferer
from scripts.losses.gradicon import GradICONLoss
from scripts.losses.similarity import LNCC
from scripts.networks.registration_network import IdentityNetwork, RegistrationNetwork
from scripts.utils.errors import InputError
from tests.helpers.networks import random_network

SHAPE = (24, 26, 28)
LEVELS = {"fast": [[16, 20]], "default": [[16, 30], [24, 30]]}
AFFINE = torch.eye(4, dtype=torch.float64)


def image_pair() -> torch.Tensor:
    """Return (1, 2, D, H, W): a texture moved by two voxels along the last axis, and the texture."""
    large = gaussian_blur(torch.randn(1, 1, *SHAPE[:2], SHAPE[2] + 8), 2)
    large = (large - large.min()) / (large.max() - large.min())
    return torch.cat([large[..., 2 : 2 + SHAPE[2]], large[..., 4 : 4 + SHAPE[2]]], dim=1)


def make_inferer(network_optimization: dict[str, Any] | None = None, **options: Any) -> RegistrationInferer:
    of_network = {"sigma": 2, **(network_optimization or {})}
    return RegistrationInferer(field={"levels": LEVELS}, network_optimization=of_network, progress=False, **options)


def register(network: torch.nn.Module, **options: Any) -> dict[str, Any]:
    inferer = make_inferer(**options)
    return inferer(image_pair(), network, moving_affine=AFFINE, fixed_affine=AFFINE)


def small_network(shape: tuple[int, int, int] = SHAPE) -> RegistrationNetwork:
    return random_network(spatial_shape=shape)


def test_without_a_network_the_shift_is_found_in_both_directions() -> None:
    found = register(IdentityNetwork())
    inner = (slice(None), slice(None), *(slice(7, -7),) * 3)
    assert found["forward_ddf"].shape == (1, 3, 24, 24, 24)  # the last level's
    expected = torch.tensor([[0.0, 0.0, 2.0 * (24 - 1) / (SHAPE[2] - 1)]])  # two voxels of the images' grid
    torch.testing.assert_close(found["forward_ddf"][inner].mean((2, 3, 4)), expected, atol=0.25, rtol=0)
    torch.testing.assert_close(found["inverse_ddf"][inner].mean((2, 3, 4)), -expected, atol=0.25, rtol=0)
    terms = {name: value[0] for name, value in found["terms"].items()}
    assert terms["similarity_after"] < 0.5 * terms["similarity_before"]
    assert terms["start"] in {"field_of_view", "world", "center"}


def test_off_returns_the_network_as_it_is() -> None:
    network, image = small_network(), image_pair()
    torch.manual_seed(0)
    found = register(network, optimization="off")
    torch.manual_seed(0)
    image = image_pair()
    for name, order in (("forward_ddf", (0, 1)), ("inverse_ddf", (1, 0))):
        with torch.no_grad():
            torch.testing.assert_close(found[name], network(image[:, list(order)]), atol=1e-4, rtol=0)


@pytest.mark.parametrize("shape", [(17, 18, 19), (30, 31, 29)])
def test_the_network_sees_the_pair_at_the_shape_of_its_weights(shape: tuple[int, int, int]) -> None:
    network = small_network(shape)
    torch.manual_seed(0)
    found = register(network, optimization="off")
    torch.manual_seed(0)
    image = image_pair()
    pair = ImagePair(image[:, :1], image[:, 1:], AFFINE, AFFINE).shrink(shape)
    with torch.no_grad():
        torch.testing.assert_close(
            found["forward_ddf"], network(torch.cat([pair.moving, pair.fixed], dim=1)), atol=1e-4, rtol=0
        )
        torch.testing.assert_close(
            found["inverse_ddf"], network(torch.cat([pair.fixed, pair.moving], dim=1)), atol=1e-4, rtol=0
        )
    optimized = register(network, optimization="network", network_optimization={"steps": 1})
    assert optimized["forward_ddf"].shape == (1, 3, *shape)


def test_field_starts_from_the_network_and_lowers_its_objective() -> None:
    network, image = small_network(), image_pair()
    loss = GradICONLoss(LNCC(2))
    inferer = make_inferer()
    found = inferer(image, network, moving_affine=AFFINE, fixed_affine=AFFINE)
    assert found["terms"]["start"][0] in ("network", "field_of_view")  # a random network knows no better

    def objective(forward: Any, inverse: Any) -> float:
        noise = torch.Generator().manual_seed(0)
        return float(loss(forward, inverse, image[:, :1], image[:, 1:], generator=noise).loss)

    after = objective(from_ddf(found["forward_ddf"]), from_ddf(found["inverse_ddf"]))
    with torch.no_grad():
        before = objective(network.register(image[:, :1], image[:, 1:]), network.register(image[:, 1:], image[:, :1]))
    assert after < 0.5 * before


def test_network_mode_changes_the_result_and_not_the_weights() -> None:
    network = small_network()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    torch.manual_seed(0)
    plain = register(network, optimization="off")
    torch.manual_seed(0)
    optimized = register(network, optimization="network", network_optimization={"steps": 3, "learning_rate": 1e-3})
    assert not torch.equal(plain["forward_ddf"], optimized["forward_ddf"])
    assert optimized["terms"]["similarity_after"] < plain["terms"]["similarity_after"]
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name])


def test_forward_and_inverse_swap_with_the_pair() -> None:
    image = image_pair()
    inferer = RegistrationInferer(field={"levels": LEVELS}, progress=False)
    first = inferer(image, IdentityNetwork(), moving_affine=AFFINE, fixed_affine=AFFINE)
    second = inferer(image.flip(1), IdentityNetwork(), moving_affine=AFFINE, fixed_affine=AFFINE)
    difference = first["forward_ddf"] - second["inverse_ddf"]
    assert difference.abs().mean() < 0.05


def test_the_batch_is_handed_over_as_a_pair_with_its_affines() -> None:
    affine = torch.diag(torch.tensor([1.0, 2.0, 3.0, 1.0], dtype=torch.float64))[None]
    volume = torch.rand(1, 1, 4, 5, 6)
    batch = {
        "moving_image": MetaTensor(volume, affine=affine),
        "fixed_image": MetaTensor(volume + 1, affine=2 * affine),
        "fixed_loss_mask": MetaTensor(torch.ones_like(volume)),
    }
    image, _, _, extras = PreparePair()(batch, "cpu")
    torch.testing.assert_close(image, torch.cat([volume, volume + 1], dim=1))
    assert not isinstance(image, MetaTensor)
    torch.testing.assert_close(extras["fixed_affine"], 2 * affine[0])
    assert set(extras) == {"moving_affine", "fixed_affine", "fixed_mask"}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"optimization": "fields"}, "optimization: expected one of off, field, network, got 'fields'"),
        ({"preset": "quick"}, "preset: expected one of fast, default, got 'quick'"),
        ({"similarity": "ssd"}, "similarity: expected one of lncc"),
        ({"optimization": "network", "network_optimization": {"steps": 0}}, "steps: expected at least 1, got 0"),
        ({"lambda_gradicon": -1}, "must not be negative"),
        ({"optimization": "off"}, "needs a network"),
        ({"optimization": False}, "needs a network"),  # a bare off in YAML
        ({"optimization": "network"}, "needs a network"),
    ],
)
def test_wrong_options_are_refused_in_words(options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        register(IdentityNetwork(), **options)


def test_the_ddf_of_the_result_is_that_of_the_network_grid() -> None:
    network, image = small_network(), image_pair()
    with torch.no_grad():
        points = transform_on_grid(network.register(image[:, :1], image[:, 1:]), image)
        ddf = (points - identity_grid_like(image)) * extent(points)
        torch.testing.assert_close(network(image), ddf, atol=1e-4, rtol=0)


class CountingNetwork(RegistrationNetwork):
    """A network that counts its passes."""

    passes = 0

    def displacements(self, moving: torch.Tensor, fixed: torch.Tensor) -> list[torch.Tensor]:
        CountingNetwork.passes += 1
        return super().displacements(moving, fixed)


@pytest.mark.parametrize(("inverse", "passes"), [(True, 2), (False, 1)])
def test_one_pass_goes_in_the_directions_that_are_wanted(
    inverse: bool, passes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = small_network()
    both = register(network, optimization="off")
    network.__class__ = CountingNetwork
    monkeypatch.setattr(CountingNetwork, "passes", 0)
    torch.manual_seed(0)
    expected = register(network, optimization="off")
    CountingNetwork.passes = 0
    torch.manual_seed(0)
    found = register(network, optimization="off", inverse=inverse)
    assert CountingNetwork.passes == passes
    assert ("inverse_ddf" in found) is inverse
    assert "inverse_ddf" in both
    torch.testing.assert_close(found["forward_ddf"], expected["forward_ddf"])


def test_optimization_has_both_directions_anyway() -> None:
    assert "inverse_ddf" in register(IdentityNetwork(), inverse=False)


def test_mixed_precision_stays_within_a_tenth_of_a_voxel_and_in_float32() -> None:
    network = small_network()
    found = []
    for amp in (False, True):
        torch.manual_seed(0)
        found.append(register(network, optimization="off", amp=amp)["forward_ddf"])
    assert found[1].dtype == torch.float32
    difference = (found[0] - found[1]).norm(dim=1)
    assert 0 < difference.mean() < 0.1
