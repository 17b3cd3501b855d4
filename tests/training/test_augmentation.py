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
"""Augmentation of pairs: shared turns, own affine noise, as the reference."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from scripts.geometry.coordinates import sample
from scripts.training.augmentation import RandPairAffineNoised, RandPairAxesd, affine_points
from tests.helpers.networks import random_pair

CUBE = (12, 12, 12)


def pair_of(shape: tuple[int, int, int]) -> dict[str, torch.Tensor]:
    moving, fixed = (image[0] for image in random_pair(shape))
    return {
        "moving_image": moving,
        "fixed_image": fixed,
        "moving_label": (moving * 5).floor().to(torch.uint8),
        "fixed_label": (fixed * 5).floor().to(torch.uint8),
        "fixed_mask": (fixed > 0.3).to(torch.uint8),
    }


@pytest.mark.parametrize("shape", [(11, 13, 17), CUBE])
def test_affine_noise_is_that_of_affine_grid(shape: tuple[int, int, int]) -> None:
    image = random_pair(shape)[0]
    matrix = torch.eye(3, 4) + 0.05 * torch.randn(3, 4)
    grid = F.affine_grid(matrix[None], [1, 1, *shape], align_corners=False)
    expected = F.grid_sample(image, grid, padding_mode="border", align_corners=False)
    torch.testing.assert_close(sample(image, affine_points(matrix, shape)), expected, atol=1e-5, rtol=0)
    assert (expected - image).abs().max() > 0.05


def test_each_image_gets_its_own_noise_and_its_label_the_same() -> None:
    pair = pair_of((20, 22, 24))
    transform = RandPairAffineNoised().set_random_state(seed=3)
    result = transform(pair)
    noises = transform.noise
    assert not torch.equal(noises[0], noises[1])
    assert noises.std() == pytest.approx(0.05, rel=0.5)
    for side, noise in zip(("fixed", "moving"), noises, strict=True):
        points = affine_points(torch.eye(3, 4) + noise, (20, 22, 24))
        torch.testing.assert_close(result[f"{side}_image"], sample(pair[f"{side}_image"][None], points)[0])
        label = sample(pair[f"{side}_label"][None].float(), points, mode="nearest")[0].to(torch.uint8)
        assert torch.equal(result[f"{side}_label"], label)
        assert result[f"{side}_label"].dtype == torch.uint8
    assert not torch.equal(result["fixed_mask"], pair["fixed_mask"])


def test_axes_are_turned_alike_in_all_volumes() -> None:
    seen = set()
    for seed in range(60):
        pair = pair_of(CUBE)
        transform = RandPairAxesd().set_random_state(seed=seed)
        result = transform(pair)
        order, flipped = transform.order, transform.flipped
        seen.add((order, flipped))
        for key, value in pair.items():
            expected = value.numpy().transpose(0, *(axis + 1 for axis in order))
            expected = np.flip(expected, [axis + 1 for axis in flipped])
            assert np.array_equal(result[key].numpy(), expected)
    assert {order for order, _ in seen} == set(itertools.permutations(range(3)))
    assert len({flipped for _, flipped in seen}) == 8


def test_axes_of_other_sizes_stay_where_they_are() -> None:
    for seed in range(20):
        transform = RandPairAxesd().set_random_state(seed=seed)
        assert transform(pair_of((9, 12, 9)))["fixed_image"].shape == (1, 9, 12, 9)
        assert transform.order in ((0, 1, 2), (2, 1, 0))


@pytest.mark.parametrize("transform", [RandPairAxesd, RandPairAffineNoised])
def test_a_seed_gives_one_result_and_the_input_stays(transform: type) -> None:
    pair = pair_of(CUBE)
    copies = {key: value.clone() for key, value in pair.items()}
    first, again, other = (transform().set_random_state(seed=seed)(pair) for seed in (1, 1, 2))
    assert all(torch.equal(first[key], again[key]) for key in pair)
    assert any(not torch.equal(first[key], other[key]) for key in pair)
    assert all(torch.equal(pair[key], copies[key]) for key in pair)
