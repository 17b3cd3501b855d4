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

from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from scripts.networks.linear_tail import TailWeights, _compose, _RegionConvolution, linear_tail, tail_features

CHANNELS, MIDDLE, SKIP = 5, 3, 2


def random_case(shape: tuple[int, int, int], batch: int = 2) -> tuple[list[Tensor], TailWeights]:
    """Return the inputs (activated, interpolated, skip), and weights, double, all with gradients."""
    coarse = [-(-n // 2) for n in shape]

    def numbers(*size: int) -> Tensor:
        return torch.randn(*size, dtype=torch.float64).requires_grad_()

    inputs = [numbers(batch, CHANNELS, *coarse), numbers(batch, MIDDLE, *coarse), numbers(batch, SKIP, *shape)]
    weights = TailWeights(
        numbers(CHANNELS, MIDDLE, 4, 4, 4),
        numbers(MIDDLE),
        numbers(MIDDLE),
        numbers(3, MIDDLE + SKIP, 3, 3, 3),
        numbers(3),
    )
    return inputs, weights


def step_by_step(inputs: list[Tensor], weights: TailWeights) -> Tensor:
    below, interpolated, skip = inputs
    y = F.conv_transpose3d(F.leaky_relu(below), weights.up, weights.shift, stride=2, padding=1)
    scaled = interpolated * weights.scale.view(-1, 1, 1, 1)
    y = y + F.interpolate(scaled, scale_factor=2.0, mode="trilinear", align_corners=False)
    y = torch.cat([y[:, :, : skip.shape[2], : skip.shape[3], : skip.shape[4]], skip], dim=1)
    return F.conv3d(y, weights.last, weights.bias, padding=1)


@pytest.mark.parametrize("shape", [*product((5, 8), repeat=3), (3, 4, 3), (4, 4, 4)])
def test_one_convolution_gives_the_values_and_gradients_of_the_steps(shape: tuple[int, int, int]) -> None:
    inputs, weights = random_case(shape)
    factor = torch.randn(2, 3, *shape, dtype=torch.float64)
    found = []
    for compute in (lambda: linear_tail(tail_features(*inputs), shape, weights), lambda: step_by_step(inputs, weights)):
        result = compute()
        gradients = torch.autograd.grad((result * factor).sum(), [*inputs, *weights])
        found.append([result.detach(), *gradients])
    for ours, expected in zip(*found, strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-9, rtol=1e-9)


def test_without_gradients_the_result_is_the_same_and_the_inputs_stay_as_they_are() -> None:
    inputs, weights = random_case((5, 8, 5))
    before = [value.detach().clone() for value in inputs]
    with torch.no_grad():
        ours = linear_tail(tail_features(*inputs), (5, 8, 5), weights)
        torch.testing.assert_close(ours, step_by_step(inputs, weights), atol=1e-9, rtol=1e-9)
    assert all(torch.equal(value, old) for value, old in zip(inputs, before, strict=True))


def test_frozen_weights_get_no_gradients() -> None:
    inputs, weights = random_case((5, 6, 7))
    frozen = TailWeights(*(value.detach() for value in weights))
    linear_tail(tail_features(*inputs), (5, 6, 7), frozen).sum().backward()
    expected = torch.autograd.grad(step_by_step(inputs, weights).sum(), inputs)
    for value, gradient in zip(inputs, expected, strict=True):
        torch.testing.assert_close(value.grad, gradient)


def test_gradients_of_the_bias_need_no_other_trained_weights() -> None:
    inputs, weights = random_case((5, 6, 7))
    inputs = [value.detach() for value in inputs]
    partly = weights._replace(**{name: getattr(weights, name).detach() for name in ("up", "scale", "last")})
    trained = [partly.shift, partly.bias]
    ours = torch.autograd.grad(linear_tail(tail_features(*inputs), (5, 6, 7), partly).sum(), trained)
    expected = torch.autograd.grad(step_by_step(inputs, partly).sum(), trained)
    torch.testing.assert_close(ours, expected)


def test_the_features_are_not_changed_by_the_backward_pass() -> None:
    inputs, weights = random_case((6, 6, 6))
    before = [value.detach().clone() for value in inputs]
    linear_tail(tail_features(*inputs), (6, 6, 6), weights).sum().backward()
    assert all(torch.equal(value, old) for value, old in zip(inputs, before, strict=True))


def test_the_gradient_that_comes_in_is_not_changed() -> None:
    inputs, weights = random_case((6, 6, 6))
    result = _RegionConvolution.apply(tail_features(*inputs), *_compose(weights, [0, 0, 0]))
    gradient = torch.ones_like(result).contiguous(memory_format=torch.channels_last_3d)
    result.backward(gradient)
    assert gradient.eq(1).all()
