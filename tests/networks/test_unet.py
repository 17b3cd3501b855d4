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

from pathlib import Path

import pytest
import torch
from torch import Tensor

from scripts.networks.unet import UNet, match_channels
from scripts.utils.errors import InputError


def make_unet() -> UNet:
    unet = UNet((2, 4, 6, 8), (3, 4, 6)).eval()
    torch.nn.init.normal_(unet.last.weight, std=0.1)
    return unet


def test_the_published_widths_give_the_published_size() -> None:
    unet = UNet()
    assert unet.levels == 5
    assert sum(parameter.numel() for parameter in unet.parameters()) == 17_670_229
    assert len(unet.state_dict()) == 47


def test_an_untrained_unet_displaces_nothing() -> None:
    image = torch.rand(1, 1, 9, 9, 9)
    assert not UNet((2, 4, 6), (3, 4)).eval()(image, image).any()


@pytest.mark.parametrize("shape", [(5, 5, 5), (8, 16, 12), (7, 18, 11)])
def test_any_shape_gives_a_displacement_of_that_shape(shape: tuple[int, int, int]) -> None:
    moving, fixed = torch.rand(2, 2, 1, *shape)
    assert make_unet()(moving, fixed).shape == (2, 3, *shape)


@pytest.mark.parametrize(("down", "up"), [((2, 4), ()), ((2, 4, 6), (3,)), ((1, 4, 6), (3, 4)), ((2, 4, 6), (0, 4))])
def test_channel_lists_that_do_not_fit_together_are_refused(down: tuple[int, ...], up: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="expected down_channels"):
        UNet(down, up)


def test_channels_are_cut_at_the_end_and_padded_in_front() -> None:
    x: Tensor = torch.rand(1, 3, 2, 2, 2)
    assert torch.equal(match_channels(x, 2), x[:, :2])
    padded = match_channels(x, 5)
    assert not padded[:, :2].any()
    assert torch.equal(padded[:, 2:], x)


def randomized(unet: UNet) -> UNet:
    """Give the batch norms statistics and weights that matter."""
    for norm in unet.norm:
        norm.weight.data.uniform_(0.5, 1.5)
        norm.bias.data.normal_(std=0.2)
        norm.running_mean.normal_(std=0.2)
        norm.running_var.uniform_(0.5, 1.5)
    return unet


def test_scripted_and_eager_agree() -> None:
    unet, pair = randomized(make_unet()), torch.rand(2, 1, 1, 9, 10, 11)
    with torch.no_grad():
        torch.testing.assert_close(torch.jit.script(unet)(*pair), unet(*pair), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("shape", [(5, 5, 5), (8, 16, 12), (7, 18, 11), (9, 9, 14)])
@pytest.mark.parametrize("recomputes", [False, True])
def test_joined_linear_steps_give_the_same_displacement_and_gradients(
    shape: tuple[int, int, int], recomputes: bool
) -> None:
    unet, pair = randomized(make_unet()).double(), torch.rand(2, 2, 1, *shape, dtype=torch.float64)
    unet.recomputes = recomputes
    pair.requires_grad_()
    weight = torch.rand(2, 3, *shape, dtype=torch.float64)
    found = []
    for compute in (unet, lambda *images: unet._displacement(torch.cat(images, dim=1))):
        displacement = compute(*pair)
        (displacement * weight).sum().backward()
        found.append([displacement.detach(), pair.grad, *(parameter.grad for parameter in unet.parameters())])
        pair.grad = None
        unet.zero_grad(set_to_none=True)
    for ours, expected in zip(*found, strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-10, rtol=1e-8)


def test_a_trace_can_be_saved(tmp_path: Path) -> None:
    unet, pair = randomized(make_unet()), torch.rand(2, 1, 1, 9, 10, 11)
    torch.jit.trace(unet, tuple(pair)).save(tmp_path / "unet.ts")
    torch.testing.assert_close(torch.jit.load(tmp_path / "unet.ts")(*pair), unet(*pair), atol=1e-6, rtol=1e-5)


def test_linear_steps_are_joined_in_evaluation_only() -> None:
    unet, pair = randomized(make_unet()), torch.rand(2, 2, 1, 9, 9, 9)
    running = unet(*pair)
    unet.train()
    assert (unet(*pair) - running).abs().max() > 1e-3  # normalized by the batch


@pytest.mark.parametrize("recomputes", [False, True])
def test_mixed_precision_is_close_forwards_and_backwards(recomputes: bool) -> None:
    unet, pair = randomized(make_unet()), torch.rand(2, 1, 1, 9, 10, 11)
    unet.recomputes = recomputes
    found = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            displacement = unet(*pair)
        displacement.float().square().sum().backward()
        found.append([displacement.detach().float(), *(parameter.grad.clone() for parameter in unet.parameters())])
        unet.zero_grad(set_to_none=True)
    for full, mixed in zip(*found, strict=True):
        assert 0 < (full - mixed).norm() < 0.05 * full.norm() + 1e-6
