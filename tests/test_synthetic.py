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
"""Synthetic pairs: exact correspondence, seeds, ranges, options."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from scripts.coordinates import extent, identity_grid, jacobian_determinant, sample
from scripts.errors import InputError
from scripts.synthetic import SyntheticPair, SyntheticPairs

SHAPE = (32, 36, 40)
CLEAN: dict[str, Any] = {"same_contrast": 1.0, "corruption": 0.0, "partial_view": 0.0, "kinds": ("mr",)}


def partners(pair: SyntheticPair) -> torch.Tensor:
    """Return the fixed points of all moving voxels, normalized."""
    ddf = pair.inverse_ddf[None]
    return identity_grid(SHAPE) + ddf / extent(ddf)


@pytest.mark.parametrize("seed", range(4))
def test_the_correspondence_carries_the_fixed_image_onto_the_moving_one(seed: int) -> None:
    pair = SyntheticPairs(SHAPE, affine=0.05, deformation=(0.08, 0.1), **CLEAN)(seed)
    points = partners(pair)
    inside = ((points >= 0) & (points <= 1)).all(dim=1)[0] & (pair.moving_label[0] > 0)
    carried = sample(pair.fixed[None], points)[0, 0]
    scale = pair.moving[0][inside].median() / carried[inside].median()  # each is scaled by its own percentile
    after = (carried * scale - pair.moving[0])[inside].abs().mean()
    before = (pair.fixed[0] * scale - pair.moving[0])[inside].abs().mean()
    assert after < 0.35 * before
    labels = sample(pair.fixed_label[None].float(), points, mode="nearest")[0, 0].to(torch.uint8)
    assert (labels == pair.moving_label[0])[inside].float().mean() > 0.9


def test_landmarks_are_the_correspondence_at_points() -> None:
    pair = SyntheticPairs(SHAPE, landmarks=50)(3)
    assert pair.moving_points.shape == pair.fixed_points.shape == (50, 3)
    size = extent(pair.inverse_ddf[None])
    at = (pair.moving_points.T[None, :, :, None, None] / size).float()
    displacement = sample(pair.inverse_ddf[None], at)[0, :, :, 0, 0].T
    assert (pair.moving_points + displacement - pair.fixed_points).abs().max() < 0.05
    assert pair.fixed_points.min() >= 0
    assert (pair.fixed_points <= torch.tensor(SHAPE) - 1).all()
    assert (sample(pair.moving_label[None].float(), at, mode="nearest") > 0).all()


def test_a_seed_gives_one_pair_and_leaves_the_global_random_state_alone() -> None:
    pairs = SyntheticPairs(SHAPE)
    before = torch.get_rng_state()
    first, again, other = pairs(5), SyntheticPairs(SHAPE)(5), pairs(6)
    assert torch.equal(before, torch.get_rng_state())
    for value, same, different in zip(first, again, other, strict=True):
        assert torch.equal(value, same)
        assert not torch.equal(value, different)


@pytest.mark.parametrize("seed", range(4))
def test_shapes_types_and_ranges(seed: int) -> None:
    pair = SyntheticPairs(SHAPE)(seed)
    for image, label in ((pair.moving, pair.moving_label), (pair.fixed, pair.fixed_label)):
        assert image.shape == label.shape == (1, *SHAPE)
        assert image.dtype == torch.float32
        assert label.dtype == torch.uint8
        assert image.min() >= 0
        assert image.max() <= 1
        assert image.std() > 0.02
        assert len(label.unique()) >= 3
    assert pair.inverse_ddf.shape == (3, *SHAPE)


def test_no_deformation_folds() -> None:
    lowest = []
    for seed in range(6):
        points = partners(SyntheticPairs(SHAPE, deformation=(0.18, 0.2))(seed))
        lowest.append(float(jacobian_determinant(points).min()))
    assert min(lowest) > 0


def test_the_deformation_grows_with_its_option() -> None:
    def size(deformation: tuple[float, float]) -> float:
        pairs = SyntheticPairs(SHAPE, affine=0.0, partial_view=0.0, deformation=deformation)
        ddfs = [pairs(seed).inverse_ddf for seed in (0, 1)]
        longest = [(ddf / extent(ddf[None])[0]).norm(dim=0).max() for ddf in ddfs]
        return float(sum(longest) / 2)

    assert 0.01 < size((0.03, 0.03)) <= 0.031
    assert 0.06 < size((0.12, 0.12)) <= 0.121


def test_ct_is_on_its_scale() -> None:
    pair = SyntheticPairs(SHAPE, kinds=("ct",), corruption=0.0)(1)
    body = pair.fixed[0][pair.fixed_label[0] > 0]
    assert body.max() <= 1
    assert ((body > 0.4) & (body < 0.7)).float().mean() > 0.3  # soft tissue
    in_air = next(
        made
        for made in (SyntheticPairs(SHAPE, kinds=("ct",), corruption=0.0)(seed) for seed in range(50))
        if (made.fixed_label == 0).float().mean() > 0.3
    )
    assert in_air.fixed[in_air.fixed_label == 0].median() < 0.02


def test_contrasts_differ_only_where_they_may() -> None:
    def correlation(same_contrast: float) -> float:
        options = {**CLEAN, "same_contrast": same_contrast, "affine": 0.0, "deformation": (0.001, 0.001)}
        values = []
        for seed in range(6):
            pair = SyntheticPairs(SHAPE, **options)(seed)
            inside = (pair.moving_label > 0) & (pair.moving_label == pair.fixed_label)
            values.append(float(torch.corrcoef(torch.stack([pair.moving[inside], pair.fixed[inside]]))[0, 1]))
        return min(values)

    assert correlation(1.0) > 0.95
    assert correlation(0.0) < 0.6


@pytest.mark.parametrize(
    "options",
    [
        {"spatial_shape": (32, 32, 8)},
        {"kinds": ("pet",)},
        {"same_contrast": 1.2},
        {"partial_view": -0.1},
        {"deformation": (0.2, 0.1)},
        {"deformation": (-0.1, 0.1)},
        {"labels": (1, 4)},
        {"affine": -1},
        {"landmarks": 0},
    ],
)
def test_nonsense_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="synthetic"):
        SyntheticPairs(**{"spatial_shape": SHAPE, **options})
