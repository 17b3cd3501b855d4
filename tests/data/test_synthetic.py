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
import torch.nn.functional as F

from scripts.data.synthetic import SyntheticPair, SyntheticPairs
from scripts.data.synthetic_anatomy import PairRandom, make_anatomy, tissues
from scripts.geometry.coordinates import extent, identity_grid, jacobian_determinant, sample
from scripts.utils.errors import InputError

SHAPE = (32, 36, 40)
CLEAN: dict[str, Any] = {"same_contrast": 1.0, "corruption": 0.0, "partial_view": 0.0, "kinds": ("mr",)}


def partners(pair: SyntheticPair) -> torch.Tensor:
    """Return the fixed points of all moving voxels, normalized."""
    ddf = pair.inverse_ddf[None]
    return identity_grid(SHAPE) + ddf / extent(ddf)


def is_inside(points: torch.Tensor) -> torch.Tensor:
    """Return where points (1, 3, D, H, W) are in the field of view, (D, H, W)."""
    return ((points >= 0) & (points <= 1)).all(dim=1)[0]


@pytest.mark.parametrize("kind", ["ct", "mr"])
@pytest.mark.parametrize("seed", range(4))
def test_the_correspondence_carries_the_fixed_image_onto_the_moving_one(seed: int, kind: str) -> None:
    options = {**CLEAN, "kinds": (kind,), "deformation": (0.08, 0.1)}
    pair = SyntheticPairs(SHAPE, **options)(seed)
    points = partners(pair)
    inside = is_inside(points) & (pair.moving_label[0] > 0)
    carried = sample(pair.fixed[None], points)[0, 0]
    scale = pair.moving[0][inside].median() / carried[inside].median()  # MR is scaled by its own percentile
    after = (carried * scale - pair.moving[0])[inside].abs().mean()
    before = (pair.fixed[0] * scale - pair.moving[0])[inside].abs().mean()
    assert after < 0.25 * before

    label = pair.moving_label[0].float()
    labels = sample(pair.fixed_label[None].float(), points, mode="nearest")[0, 0]
    inside = is_inside(points)
    before, after = ((found != label)[inside].float().mean() for found in (pair.fixed_label[0], labels))
    assert after < 0.5 * before
    # two roundings to the nearest voxel differ at the surface of a structure, not further inside
    flat = (F.max_pool3d(label[None], 3, 1, 1) == -F.max_pool3d(-label[None], 3, 1, 1))[0] & inside
    assert flat.float().mean() > 0.25
    assert (labels == label)[flat].float().mean() > 0.99


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
    assert len(pair.moving_points.unique(dim=0)) == 50


def test_landmarks_lie_all_over_the_grid() -> None:
    points = torch.cat([SyntheticPairs(SHAPE)(seed).moving_points for seed in range(8)])
    assert (points.amin(0) < 0.1 * torch.tensor(SHAPE)).all()
    assert (points.amax(0) > 0.85 * torch.tensor(SHAPE)).all()


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
        points = partners(SyntheticPairs(SHAPE, deformation=(0.25, 0.25))(seed))
        lowest.append(float(jacobian_determinant(points).min()))
    assert min(lowest) > 0


@pytest.mark.parametrize("largest", [0.03, 0.12, 0.2])
def test_the_largest_displacement_is_that_of_the_option(largest: float) -> None:
    pairs = SyntheticPairs(SHAPE, affine=0.0, partial_view=0.0, deformation=(largest, largest))
    for seed in range(3):
        ddf = pairs(seed).inverse_ddf
        assert 0.9 * largest < (ddf / extent(ddf[None])[0]).norm(dim=0).max() < 1.03 * largest


def test_affine_maps_alone_give_a_linear_displacement() -> None:
    still = SyntheticPairs(SHAPE, affine=0.0, partial_view=0.0, deformation=(1e-6, 1e-6))(0)
    assert still.inverse_ddf.abs().max() < 1e-3
    points = partners(SyntheticPairs(SHAPE, affine=0.1, deformation=(1e-6, 1e-6))(0))
    for axis in (2, 3, 4):
        assert points.diff(dim=axis).diff(dim=axis).abs().max() < 1e-4
    assert (points - identity_grid(SHAPE)).abs().max() > 0.02


def test_partial_views_still_share_much_of_the_anatomy() -> None:
    shared, extents = [], []
    for seed in range(12):
        pair = SyntheticPairs(SHAPE, partial_view=1.0)(seed)
        points = partners(pair)
        shared.append(float(is_inside(points)[pair.moving_label[0] > 0].float().mean()))
        whole = SyntheticPairs(SHAPE, partial_view=0.0)(seed)
        extents.append(torch.equal(pair.fixed, whole.fixed))
    assert min(shared) > 1 / 3
    assert min(shared) < 0.9  # they do show different parts
    assert not any(extents)


def test_an_anatomy_that_fills_the_field_has_no_cut_where_a_view_looks_beyond_it() -> None:
    backgrounds = []
    for seed in range(12):
        pair = SyntheticPairs(SHAPE, affine=0.2)(seed)
        backgrounds.append(tuple(float((v == 0).float().mean()) for v in (pair.moving_label, pair.fixed_label)))
    filled = [b for b in backgrounds if min(b) == 0]
    assert 0 < len(filled) < len(backgrounds)
    assert all(max(b) == 0 for b in filled)


def test_corruption_is_noise_and_blur_on_the_same_pair() -> None:
    clean, corrupt = (SyntheticPairs(SHAPE, kinds=("ct",), corruption=c)(2) for c in (0.0, 1.0))
    assert torch.equal(clean.fixed_label, corrupt.fixed_label)
    assert torch.equal(clean.inverse_ddf, corrupt.inverse_ddf)
    assert 0.001 < (clean.fixed - corrupt.fixed).abs().mean() < 0.1
    # the blur repeats the border: no dark frame
    frame = clean.fixed_label[0, 0] > 0
    assert abs(clean.fixed[0, 0][frame].mean() - corrupt.fixed[0, 0][frame].mean()) < 0.03


def test_ct_is_on_its_scale() -> None:
    tissues, airs = [], []
    for seed in range(12):
        pair = SyntheticPairs(SHAPE, kinds=("ct",), corruption=0.0)(seed)
        image, label = pair.fixed[0], pair.fixed_label[0]
        counts = [(value, int((label == value).sum())) for value in label.unique().tolist()]
        tissues += [float(image[label == value].median()) for value, count in counts if value > 0 and count > 500]
        airs += [float(image[label == 0].median())] if counts[0][0] == 0 else []
    bands = ((0.07, 0.2), (0.43, 0.47), (0.5, 0.95))  # lung, fat, soft tissue and what is denser
    assert sum(any(low - 0.02 < t < high + 0.02 for low, high in bands) for t in tissues) > 0.9 * len(tissues)
    assert sum(0.48 < t < 0.58 for t in tissues) > 0.3 * len(tissues)
    assert len(airs) > 3
    assert max(airs) < 0.01


def test_a_lung_is_large_dark_and_has_vessels_of_its_own() -> None:
    shape, shares = (40, 40, 40), []
    for seed in range(6):
        random = PairRandom(seed, torch.device("cpu"))
        label, roles = make_anatomy(random, shape, (6, 10), lungs=1.0)
        values = tissues("ct", random, label, roles, torch.zeros(1, 1, *shape))
        assert roles[-2:] == ["lung", "lung vessel"]
        lung, vessels = label == len(roles) - 1, label == len(roles)
        assert values[lung].max() <= 0.2 < 0.5 <= values[vessels].min()
        shares.append(float((lung | vessels).float().mean()))
        assert 0.005 < vessels.sum() / (lung | vessels).sum() < 0.3
    assert min(shares) > 0.02
    assert sum(share > 0.08 for share in shares) >= 3
    assert all("lung" not in make_anatomy(PairRandom(n, torch.device("cpu")), shape, (6, 10))[1] for n in range(3))


def test_mr_noise_is_relative_to_the_image() -> None:
    for seed in range(12):
        clean, noisy = (SyntheticPairs(SHAPE, kinds=("mr",), corruption=c)(seed) for c in (0.0, 1.0))
        torch.testing.assert_close(clean.fixed.quantile(0.99), torch.tensor(1.0), atol=0.01, rtol=0)
        air = noisy.fixed[noisy.fixed_label == 0]
        assert air.numel() == 0 or air.median() < 0.1


def test_contrasts_differ_only_where_they_may() -> None:
    def correlation(same_contrast: float, what: str = "") -> float:
        options = {**CLEAN, "same_contrast": same_contrast, "affine": 0.0, "deformation": (0.001, 0.001)}
        values = []
        for seed in range(6):
            pair = SyntheticPairs(SHAPE, **options)(seed)
            inside = (pair.moving_label > 0) & (pair.moving_label == pair.fixed_label)
            images = [getattr(pair, side + what)[inside] for side in ("moving", "fixed")]
            values.append(float(torch.corrcoef(torch.stack(images))[0, 1]))
        return min(values)

    assert correlation(1.0) > 0.95
    assert correlation(0.0) < 0.6
    assert correlation(0.0, "_similarity") > 0.95


def test_the_similarity_has_a_contrast_of_the_pair() -> None:
    whose = set()
    for seed in range(100, 106):
        pair = SyntheticPairs(SHAPE, **{**CLEAN, "same_contrast": 0.0})(seed)
        own = [torch.equal(pair.moving, pair.moving_similarity), torch.equal(pair.fixed, pair.fixed_similarity)]
        assert sum(own) == 1
        whose.add(own[0])
    assert whose == {True, False}


@pytest.mark.parametrize(
    "options",
    [
        {"spatial_shape": (32, 32, 8)},
        {"kinds": ("pet",)},
        {"same_contrast": 1.2},
        {"partial_view": -0.1},
        {"lungs": 1.5},
        {"deformation": (0.2, 0.1)},
        {"deformation": (-0.1, 0.1)},
        {"labels": (1, 4)},
        {"affine": -1},
        {"affine": float("nan")},
        {"corruption": -0.5},
        {"landmarks": 0},
    ],
)
def test_nonsense_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="synthetic"):
        SyntheticPairs(**{"spatial_shape": SHAPE, **options})
