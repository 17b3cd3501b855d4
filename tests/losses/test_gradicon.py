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

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from scripts.geometry.coordinates import extent, identity_grid, identity_transform
from scripts.losses.gradicon import (
    GradICONLoss,
    gradicon_regularity,
    jitter_shape,
    jittered_points,
    symmetric_dice_loss,
)
from scripts.losses.similarity import LNCC
from scripts.metrics.registration_metrics import common_labels, dice_per_label
from scripts.utils.errors import InputError
from tests.helpers.networks import random_network, random_pair

SHAPE = (12, 15, 13)


def squared_difference(warped: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    squares = (warped - target) ** 2
    return squares.mean() if mask is None else (squares * mask).sum() / mask.sum()


def scaling(factors: tuple[float, float, float]) -> Callable[[Tensor], Tensor]:
    return lambda points: points * points.new_tensor(factors).view(1, 3, 1, 1, 1)


def test_identical_images_under_the_identity_cost_nothing() -> None:
    image, _ = random_pair(SHAPE)
    terms = GradICONLoss(squared_difference)(identity_transform, identity_transform, image, image)
    assert terms.as_floats() == pytest.approx(dict.fromkeys(terms._fields, 0.0), abs=1e-12)
    assert terms._fields == ("loss", "similarity", "regularity", "transform_magnitude", "folding", "dice")


def test_the_loss_is_the_weighted_sum_of_its_terms() -> None:
    moving, fixed = random_pair(SHAPE)
    labels = (moving > 0.5).float(), (fixed > 0.5).float()
    loss = GradICONLoss(LNCC(), lambda_gradicon=0.7, dice_weight=0.3)
    terms = loss(
        scaling((0.9, 1.0, 1.1)),
        identity_transform,
        moving,
        fixed,
        moving_label=labels[0],
        fixed_label=labels[1],
    )
    expected = terms.similarity + 0.7 * terms.regularity + 0.3 * terms.dice
    torch.testing.assert_close(terms.loss, expected)
    assert min(terms.similarity, terms.regularity, terms.dice, terms.transform_magnitude) > 0
    published = GradICONLoss(LNCC())(scaling((0.9, 1.0, 1.1)), identity_transform, moving, fixed)
    torch.testing.assert_close(published.loss, published.similarity + 1.5 * published.regularity)


def test_the_magnitude_is_the_mean_square_of_the_forward_displacement() -> None:
    shift = torch.tensor([0.1, -0.2, 0.0]).view(1, 3, 1, 1, 1)
    terms = GradICONLoss(squared_difference)(lambda x: x + shift, identity_transform, *random_pair(SHAPE))
    assert float(terms.transform_magnitude) == pytest.approx((0.1**2 + 0.2**2) / 3, rel=1e-4)


def test_terms_have_the_device_and_type_of_the_images() -> None:
    image = torch.empty(2, 1, *SHAPE, device="meta", dtype=torch.float64)
    terms = GradICONLoss(squared_difference)(identity_transform, identity_transform, image, image)
    for name in ("loss", "similarity", "regularity", "transform_magnitude"):
        term = getattr(terms, name)
        assert (term.device, term.dtype) == (image.device, image.dtype), name


def test_the_noise_of_the_regularity_is_that_of_the_generator() -> None:
    found = [
        GradICONLoss(squared_difference)(
            lambda x: x + x**2, identity_transform, *random_pair(SHAPE), generator=torch.Generator().manual_seed(seed)
        ).regularity
        for seed in (5, 5, 6)
    ]
    assert found[0] == found[1] != found[2]


@pytest.mark.parametrize("recompute", [None, False, True])
def test_terms_are_computed_again_only_where_that_is_asked_for(recompute: bool | None) -> None:
    calls = {"similarity": 0, "transform": 0}

    def similarity(warped: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
        calls["similarity"] += 1
        return squared_difference(warped, target, mask)

    factor = torch.ones((), requires_grad=True)

    def transform(points: Tensor) -> Tensor:
        calls["transform"] += 1
        return 0.9 * factor * points

    options = {} if recompute is None else {"recompute": recompute}
    GradICONLoss(similarity)(transform, identity_transform, *random_pair(SHAPE), **options).loss.backward()
    # the transform: once on the grid, and once in the regularity; the similarity of the way back needs no gradient
    assert calls == ({"similarity": 3, "transform": 3} if recompute else {"similarity": 2, "transform": 2})


def test_the_regularity_is_the_gradient_of_the_round_trip() -> None:
    # x - forward(inverse(x)) = (0.1, 0, -0.2) * x: the squares of its gradient, averaged over the three components
    points = jittered_points(SHAPE, generator=torch.Generator().manual_seed(0))
    regularity = gradicon_regularity(scaling((0.9, 1.0, 1.2)), identity_transform, points)
    assert float(regularity) == pytest.approx((0.1**2 + 0.2**2) / 3, rel=1e-3)
    exact = gradicon_regularity(scaling((0.9, 1.0, 1.2)), identity_transform, points.double())
    assert float(exact) == pytest.approx((0.1**2 + 0.2**2) / 3, rel=1e-9)


def test_the_points_are_every_second_voxel_with_seeded_noise() -> None:
    assert jitter_shape(SHAPE) == (1, 3, 6, 8, 7)
    centers = identity_grid(SHAPE)[:, :, ::2, ::2, ::2]
    assert torch.equal(jittered_points(SHAPE, torch.zeros(jitter_shape(SHAPE))), centers)
    torch.testing.assert_close(jittered_points(SHAPE, torch.ones(jitter_shape(SHAPE))), centers + 2 / 13)
    double = jittered_points(SHAPE, torch.zeros(jitter_shape(SHAPE)), dtype=torch.float64)
    assert torch.equal(double, identity_grid(SHAPE, dtype=torch.float64)[:, :, ::2, ::2, ::2])
    assert jittered_points(SHAPE, torch.zeros(jitter_shape(SHAPE), dtype=torch.float64)).dtype == torch.float32
    elsewhere = jittered_points(SHAPE, generator=torch.Generator(), device="meta", dtype=torch.float64)
    assert (elsewhere.device.type, elsewhere.dtype) == ("meta", torch.float64)
    state = torch.get_rng_state()
    first, second = (jittered_points(SHAPE, generator=torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), state)
    assert float((first - centers).std()) == pytest.approx(2 / 13, rel=0.1)
    with pytest.raises(ValueError, match=r"expected noise of shape \(1, 3, 6, 8, 7\), got \(1, 3, 12, 15, 13\)"):
        jittered_points(SHAPE, torch.zeros(1, 3, *SHAPE))


def test_each_direction_has_the_mask_of_its_target() -> None:
    moving, fixed = random_pair(SHAPE)
    seen: list[Tensor | None] = []

    def similarity(warped: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        seen.append(mask)
        return squared_difference(warped, target, mask)

    masks = (moving > 0.5).float(), (fixed > 0.5).float()
    GradICONLoss(similarity)(
        identity_transform, identity_transform, moving, fixed, moving_mask=masks[0], fixed_mask=masks[1]
    )
    assert seen[0] is masks[1]
    assert seen[1] is masks[0]


def test_outside_of_the_image_is_nothing() -> None:
    one = torch.ones(1, 1, *SHAPE)
    terms = GradICONLoss(squared_difference)(lambda points: points + 2, lambda points: points + 2, one, one)
    assert float(terms.similarity) == 2


def test_mass_conservation_compares_what_lies_in_the_cells() -> None:
    moving, fixed = random_pair(SHAPE)
    masks = (moving > 0.5).float(), (fixed > 0.5).float()
    seen = []

    def similarity(*compared: Tensor) -> Tensor:
        seen.append(compared)
        return squared_difference(*compared)

    loss = GradICONLoss(similarity, mass_conservation=True)
    loss(identity_transform, identity_transform, moving, fixed, moving_mask=masks[0], fixed_mask=masks[1])
    for found, whole in zip(seen, ((moving, fixed, masks[1]), (fixed, moving, masks[0])), strict=True):
        for values, expected in zip(found, whole, strict=True):  # the identity: determinant 1
            torch.testing.assert_close(values, expected[..., :-1, :-1, :-1], rtol=0, atol=1e-4)


def test_mass_is_conserved_by_a_known_compression() -> None:
    # the map doubles lengths along one axis: warped densities double as well
    image = torch.full((1, 1, *SHAPE), 0.25)
    target = torch.full((1, 1, *SHAPE), 0.5)
    half = torch.zeros(1, 1, *SHAPE)
    half[:, :, :5] = 1  # beyond, the map leaves the image
    loss = GradICONLoss(squared_difference, mass_conservation=True)
    terms = loss(scaling((2.0, 1.0, 1.0)), identity_transform, image, target, fixed_mask=half)
    reverse = (0.5 - 0.25) ** 2  # the inverse map, here the identity, changes nothing
    assert float(terms.similarity) == pytest.approx(reverse, abs=1e-5)


def test_folds_are_counted_per_sample_in_the_inverse_transform() -> None:
    moving, fixed = random_pair(SHAPE, batch=2)
    loss = GradICONLoss(squared_difference)
    cells = 11 * 14 * 12
    assert float(loss(identity_transform, scaling((-1.0, 1.0, 1.0)), moving, fixed).folding) == cells
    assert float(loss(scaling((-1.0, 1.0, 1.0)), identity_transform, moving, fixed).folding) == 0
    assert float(loss(identity_transform, scaling((0.0, 1.0, 1.0)), moving, fixed).folding) == 0  # flat
    one_folded = torch.tensor([1.0, -1.0]).view(2, 1, 1, 1, 1)
    assert float(loss(identity_transform, lambda points: points * one_folded, moving, fixed).folding) == cells / 2


def test_dice_counts_the_labels_that_both_images_have() -> None:
    moving, fixed = torch.zeros(2, 1, 1, *SHAPE)
    moving[:, :, 1:7] = 7
    fixed[:, :, 4:10] = 7  # half of it overlaps
    moving[:, :, 11] = 3  # absent in fixed
    grid = identity_grid(SHAPE)
    assert float(symmetric_dice_loss(moving, fixed, grid, grid)) == pytest.approx(2 * 0.5, rel=1e-4)
    shift = torch.tensor([3.0, 0, 0]).view(1, 3, 1, 1, 1) / extent(moving)
    assert float(symmetric_dice_loss(moving, fixed, grid - shift, grid + shift)) == pytest.approx(0, abs=1e-5)


def test_dice_is_the_mean_of_the_labels_of_each_pair() -> None:
    moving, fixed = torch.zeros(2, 3, 1, *SHAPE)
    moving[0, :, 1:7], fixed[0, :, 4:10] = 1, 1
    moving[0, :, 0, :4], fixed[0, :, 0, :5] = 2, 2
    moving[0, :, 11, 3, 3], fixed[0, :, 11, 3, 2:4] = 300, 300  # one voxel against two
    moving[0, :, 11, 5, 3:5], fixed[0, :, 11, 5, 3] = 4, 4
    moving[1, :, 2:9], fixed[1, :, 2:4] = 2, 2
    fixed[1, :, 11] = 300  # the moving image of this pair has none, the first pair's has
    moving[2, :, :, 5], fixed[2, :, :, 5:7] = 1, 1
    expected = []
    for pair in zip(moving.numpy(), fixed.numpy(), strict=True):
        expected.append(1 - np.mean([*dice_per_label(*pair, common_labels(*pair)).values()]))
    grid = identity_grid(SHAPE)
    assert min(expected) > 0.1
    assert float(symmetric_dice_loss(moving, fixed, grid, grid)) == pytest.approx(2 * np.mean(expected), rel=1e-5)
    moving[2] = 300  # nothing in common: refused, or counted as 0
    with pytest.raises(InputError, match=r"^dice_weight > 0: .* of a pair have no common label besides 0$"):
        symmetric_dice_loss(moving, fixed, grid, grid)
    found = symmetric_dice_loss(moving, fixed, grid, grid, False)
    assert float(found) == pytest.approx(2 * sum(expected[:2]) / 3, rel=1e-5)


def test_pairs_without_common_labels_add_nothing_to_the_dice_loss() -> None:
    points = identity_grid(SHAPE).requires_grad_()
    loss = symmetric_dice_loss(torch.zeros(1, 1, *SHAPE), torch.ones(1, 1, *SHAPE), points, points, False)
    assert loss.item() == 0
    (gradient,) = torch.autograd.grad(loss, points)
    assert not gradient.any()


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({}, "^dice_weight > 0 needs moving_label and fixed_label$"),
        ({"fixed_label": torch.ones(1, 1, *SHAPE)}, "^dice_weight > 0 needs moving_label and fixed_label$"),
        ({"moving_label": torch.zeros(1, 1, *SHAPE), "fixed_label": torch.ones(1, 1, *SHAPE)}, "no common label"),
    ],
)
def test_dice_without_common_labels_is_refused_or_0_where_labels_are_not_required(
    labels: dict[str, Any], message: str
) -> None:
    arguments = (identity_transform, identity_transform, *random_pair(SHAPE))
    with pytest.raises(InputError, match=message):
        GradICONLoss(LNCC(), dice_weight=1)(*arguments, **labels)
    assert GradICONLoss(LNCC(), dice_weight=1, require_labels=False)(*arguments, **labels).dice == 0


def test_dice_that_is_off_is_0() -> None:
    moving, fixed = random_pair(SHAPE)
    labels = {"moving_label": (moving > 0.5).float(), "fixed_label": (fixed > 0.5).float()}
    assert GradICONLoss(LNCC())(identity_transform, identity_transform, moving, fixed, **labels).dice == 0


def test_ill_shape() -> None:
    message = r"^GradICONLoss: .* one shape \(B, 1, D, H, W\), got \(1, 1, 4, 4, 4\) and \(1, 1, 4, 4, 5\)$"
    with pytest.raises(ValueError, match=message):
        GradICONLoss(LNCC())(
            identity_transform, identity_transform, torch.rand(1, 1, 4, 4, 4), torch.rand(1, 1, 4, 4, 5)
        )
    assert GradICONLoss(LNCC(), lambda_gradicon=0, dice_weight=0).lambda_gradicon == 0
    for weights in ((-1, 0), (1.5, -1)):
        message = rf"^GradICONLoss: .* must not be negative, got {weights[0]} and {weights[1]}$"
        with pytest.raises(ValueError, match=message):
            GradICONLoss(LNCC(), lambda_gradicon=weights[0], dice_weight=weights[1])


def test_the_gradient_reaches_all_weights_and_only_the_loss_needs_it() -> None:
    network, (moving, fixed) = random_network(), random_pair((17, 18, 19), batch=2)
    labels = {"moving_label": (moving > 0.5).float(), "fixed_label": (fixed > 0.5).float()}
    loss = GradICONLoss(LNCC(sigma=2), mass_conservation=True, dice_weight=0.5)
    terms = loss(network.register(moving, fixed), network.register(fixed, moving), moving, fixed, **labels)
    terms.loss.backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in network.parameters())
    assert not terms.folding.requires_grad
    assert not terms.transform_magnitude.requires_grad


def reference_regularity(
    forward: Callable[[Tensor], Tensor], inverse: Callable[[Tensor], Tensor], at: Tensor
) -> Tensor:
    """Return the regularity as the reference writes it: four compositions, one for each displaced set of points."""

    def error(points: Tensor) -> Tensor:
        return points - forward(inverse(points))

    total = torch.zeros(())
    for axis in range(3):
        step = torch.zeros(1, 3, 1, 1, 1)
        step[:, axis] = 0.001
        total = total + (((error(at) - error(at + step)) / 0.001) ** 2).mean()
    return total


def test_the_batched_regularity_has_the_value_and_gradient_of_the_reference_form() -> None:
    network, pair = random_network(size=0.1), random_pair((26, 33, 29))
    at = jittered_points((26, 33, 29), generator=torch.Generator().manual_seed(0))
    found = []
    for measure in (gradicon_regularity, reference_regularity):
        value = measure(network.register(*pair), network.register(*pair[::-1]), at)
        found.append((value.detach(), torch.autograd.grad(value, list(network.parameters()))))
    assert found[0][0] > 1e-2
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-4, atol=0)
    for ours, theirs in zip(found[0][1], found[1][1], strict=True):
        assert (ours - theirs).norm() <= 1e-3 * theirs.norm() + 1e-4 * found[1][0]


@pytest.mark.parametrize("dice_weight", [0.0, 0.5])
def test_terms_computed_again_in_the_backward_pass_are_the_same(dice_weight: float) -> None:
    network, (moving, fixed) = random_network(), random_pair((17, 22, 19))
    noise = torch.randn(jitter_shape((17, 22, 19)))
    loss = GradICONLoss(LNCC(2), dice_weight=dice_weight, mass_conservation=True)
    labels = {"moving_label": (moving > 0.5).float(), "fixed_label": (fixed > 0.5).float()}
    found = []
    for recompute in (False, True):
        transforms = network.register(moving, fixed), network.register(fixed, moving)
        terms = loss(*transforms, moving, fixed, noise=noise, recompute=recompute, **labels)
        found.append((terms.as_floats(), torch.autograd.grad(terms.loss, list(network.parameters()))))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-6)
    for kept, again in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(kept, again, rtol=1e-4, atol=1e-6)
