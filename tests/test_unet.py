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
from torch import Tensor

from scripts.errors import InputError
from scripts.unet import UNet, match_channels


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


def test_scripted_and_eager_agree() -> None:
    unet, pair = make_unet(), torch.rand(2, 1, 1, 9, 10, 11)
    with torch.no_grad():
        assert torch.equal(torch.jit.script(unet)(*pair), unet(*pair))
