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
"""Instance optimization of fields and the search for its start, on pairs with a known answer."""

from __future__ import annotations

import itertools

import pytest
import torch

from scripts.geometry.coordinates import identity_grid, resample_grid, sample
from scripts.geometry.image_pair import ImagePair
from scripts.geometry.smoothing import gaussian_blur
from scripts.inferers.field_optimization import (
    FieldObjective,
    Level,
    gradicon_regularity,
    optimize_field,
    refine_levels,
)
from scripts.inferers.start_search import apply_affine, search_start, start_candidates
from scripts.losses.similarity import LNCC
from scripts.utils.errors import InputError

SHAPE = (32, 36, 40)
LEVELS = (Level(16, 40), Level(32, 40))
OBJECTIVE = FieldObjective(LNCC(2))


def affine(spacing: float = 2.0, origin: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> torch.Tensor:
    matrix = torch.diag(torch.tensor([spacing, spacing, spacing, 1.0], dtype=torch.float64))
    matrix[:3, 3] = torch.tensor(origin, dtype=torch.float64)
    return matrix


def texture(seed: int = 0, shape: tuple[int, int, int] = SHAPE) -> torch.Tensor:
    image = gaussian_blur(torch.randn(1, 1, *shape, generator=torch.Generator().manual_seed(seed)), 2.5)
    return (image - image.min()) / (image.max() - image.min())


def shifted_pair(axis: int, voxels: float) -> ImagePair:
    """Return a pair whose forward displacement is ``voxels`` along ``axis``: moving(x + d) = fixed(x)."""
    large = texture(0, tuple(n + 16 for n in SHAPE))
    points = identity_grid(large.shape[2:])
    points[:, axis] = points[:, axis] - voxels / (large.shape[axis + 2] - 1)
    crop = (slice(None), slice(None), *(slice(8, 8 + n) for n in SHAPE))
    return ImagePair(sample(large, points)[crop], large[crop], affine(), affine())


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("voxels", [3.0, -3.0])
def test_a_known_shift_is_found_with_its_sign_in_both_directions(axis: int, voxels: float) -> None:
    result = optimize_field(shifted_pair(axis, voxels), torch.zeros(2, 3, 4, 4, 4), OBJECTIVE, LEVELS)
    found = resample_grid(result.displacement, SHAPE)
    inner = found[:, :, 8:-8, 8:-8, 8:-8].mean(dim=(2, 3, 4)) * (torch.tensor(SHAPE) - 1)
    expected = torch.zeros(2, 3)
    expected[0, axis], expected[1, axis] = voxels, -voxels
    torch.testing.assert_close(inner, expected, atol=0.25, rtol=0)


def test_regularity_vanishes_for_exact_inverses_and_grows_with_their_disagreement() -> None:
    shift = torch.full((1, 3, 8, 8, 8), 0.1)
    assert gradicon_regularity(torch.cat([shift, -shift])).item() == pytest.approx(0, abs=1e-9)
    grid = identity_grid((8, 8, 8))
    stretch = 0.2 * (grid - 0.5)
    unequal = gradicon_regularity(torch.cat([stretch, torch.zeros_like(stretch)])).item()
    assert unequal == pytest.approx(2 * 3 * 0.2**2, rel=1e-3)  # grad r = 0.2 I, in both orders


def test_a_larger_weight_gives_a_smaller_regularity() -> None:
    pair = ImagePair(texture(1), texture(2), affine(), affine())
    start = torch.zeros(2, 3, 4, 4, 4)
    loose, strict = (
        optimize_field(pair, start, FieldObjective(LNCC(2), weight), LEVELS).regularity for weight in (0.5, 10.0)
    )
    assert strict < 0.5 * loose


def test_the_result_is_the_same_twice_and_the_start_is_not_changed() -> None:
    pair, start = shifted_pair(0, 2.0), torch.full((2, 3, 4, 4, 4), 0.01)
    first, second = (optimize_field(pair, start, OBJECTIVE, LEVELS[:1]) for _ in range(2))
    assert torch.equal(first.displacement, second.displacement)
    assert torch.equal(start, torch.full_like(start, 0.01))


def test_it_works_inside_no_grad_as_an_evaluator_calls_it() -> None:
    with torch.no_grad():
        result = optimize_field(shifted_pair(1, 2.0), torch.zeros(2, 3, 4, 4, 4), OBJECTIVE, LEVELS[:1])
    assert not result.displacement.requires_grad
    assert result.displacement.abs().max() > 0


def test_what_lies_outside_the_masks_does_not_attract() -> None:
    pair = shifted_pair(2, 3.0)
    broken = pair.fixed.clone()
    broken[:, :, 16:] = texture(7)[:, :, 16:]
    mask = torch.zeros_like(broken)
    mask[:, :, :16] = 1
    errors = []
    for masks in ((None, None), (mask, mask)):
        result = optimize_field(
            pair._replace(fixed=broken, moving_mask=masks[0], fixed_mask=masks[1]),
            torch.zeros(2, 3, 4, 4, 4),
            OBJECTIVE,
            LEVELS,
        )
        found = resample_grid(result.displacement[:1], SHAPE)[0, 2, 2:16, 8:-8, 8:-8] * (SHAPE[2] - 1)
        errors.append((found - 3.0).abs().mean().item())
    assert errors[1] < 0.5
    assert errors[1] < errors[0]


def test_labels_pull_where_the_images_are_flat() -> None:
    flat = 0.01 * texture(3)
    grid = identity_grid(SHAPE)
    ball = ((grid - 0.5) ** 2).sum(1, keepdim=True) < 0.06
    moved = ((grid - torch.tensor([0.5, 0.5, 0.58]).view(1, 3, 1, 1, 1)) ** 2).sum(1, keepdim=True) < 0.06
    pair = ImagePair(flat, flat, affine(), affine(), None, None, moved.float(), ball.float())
    result = optimize_field(
        pair, torch.zeros(2, 3, 4, 4, 4), FieldObjective(LNCC(2), 1.5, False, 5.0), (Level(24, 60),)
    )
    points = grid + resample_grid(result.displacement[:1], SHAPE)
    warped = sample(moved.float(), points, mode="nearest")
    dice = [2 * (mask * ball).sum() / (mask.sum() + ball.sum()) for mask in (moved.float(), warped)]
    assert dice[1] > 0.93 > dice[0]


def test_mass_conservation_changes_the_objective_and_stays_finite() -> None:
    pair, start = shifted_pair(0, 2.0), torch.zeros(2, 3, 4, 4, 4)
    plain, conserving = (
        optimize_field(pair, start, FieldObjective(LNCC(2), 1.5, on), LEVELS[:1]).loss for on in (False, True)
    )
    assert conserving != plain
    assert conserving < 1


def test_shrinking_a_pair_keeps_world_coordinates_of_the_ends() -> None:
    pair = ImagePair(texture(), texture(1), affine(2.0, (5.0, 6.0, 7.0)), affine(3.0))
    small = pair.shrink((8, 9, 10))
    last = torch.tensor([*(n - 1.0 for n in SHAPE), 1.0], dtype=torch.float64)
    small_last = torch.tensor([7.0, 8.0, 9.0, 1.0], dtype=torch.float64)
    torch.testing.assert_close(small.moving_affine @ small_last, pair.moving_affine @ last)
    assert small.fixed.shape[2:] == (8, 9, 10)


@pytest.mark.parametrize("network", [None, torch.zeros(2, 3, 6, 6, 6)])  # the second one knows nothing better
def test_a_start_is_found_where_one_field_of_view_is_half_of_the_other(network: torch.Tensor | None) -> None:
    shape = (48, 48, 48)
    grid = identity_grid(shape)
    centers = torch.rand(12, 3, generator=torch.Generator().manual_seed(3))
    moving = sum(torch.exp(-((grid - at.view(1, 3, 1, 1, 1)) ** 2).sum(1, keepdim=True) / 0.01) for at in centers)
    moving = 0.5 * moving.clamp(0, 1) + 0.5 * texture(5, shape)
    half = moving[:, :, 24:]
    # the last voxel center of both is the same; the header says where the first one is
    pair = ImagePair(moving, resample_grid(half, shape), affine(), torch.diag(torch.tensor([23 / 47, 1, 1, 0.5])) * 2)
    pair.fixed_affine[0, 3] = 48.0
    start = search_start(pair._replace(fixed_affine=pair.fixed_affine.double()), OBJECTIVE, network=network)
    assert start.name != "network"
    small = identity_grid((8, 8, 8))
    found = small + resample_grid(start.displacement[:1], (8, 8, 8))
    expected = small * torch.tensor([23 / 47, 1, 1]).view(1, 3, 1, 1, 1)
    expected[:, 0] += 24 / 47
    assert (found - expected).norm(dim=1).mean() < 0.1 * (small - expected).norm(dim=1).mean()


@pytest.mark.parametrize("origin", [(0.0, 0.0, 0.0), (400.0, 0.0, 0.0), (12.0, 0.0, 0.0)])
def test_the_network_is_the_start_where_headers_agree_or_are_worse(origin: tuple[float, float, float]) -> None:
    pair = shifted_pair(0, 4.0)._replace(moving_affine=affine(2.0, origin), fixed_affine=affine(2.0))
    network = torch.zeros(2, 3, *SHAPE)
    network[:, 0] = torch.tensor([4.0, -4.0]).view(2, 1, 1, 1) / (SHAPE[0] - 1)
    start = search_start(pair, OBJECTIVE, network=network)
    assert start.name in ("network", "field_of_view")  # the same place
    center = start.displacement[0, 0, 8:-8, 8:-8, 8:-8] * (SHAPE[0] - 1)
    assert (center.mean() - 4.0).abs() < 0.3


def test_the_network_is_the_start_where_it_knows_what_no_gradient_finds() -> None:
    grid = identity_grid((36, 36, 36))
    fixed = texture(1, (36, 36, 36)) * torch.exp(-((grid - 0.5) ** 2).sum(1, keepdim=True) / 0.03)
    moving = fixed.rot90(1, (3, 4))  # a quarter turn
    turned = torch.stack([grid[:, 0], 1 - grid[:, 2], grid[:, 1]], dim=1)
    back = torch.stack([grid[:, 0], grid[:, 2], 1 - grid[:, 1]], dim=1)
    torch.testing.assert_close(sample(moving, turned), fixed, atol=1e-4, rtol=0)
    pair, network = ImagePair(moving, fixed, affine(), affine()), torch.cat([turned - grid, back - grid])
    start = search_start(pair, OBJECTIVE, network=network)
    assert start.name == "network"
    assert (resample_grid(start.displacement, (36, 36, 36)) - network).abs().mean() < 0.01


def test_the_center_of_intensity_gives_a_start_where_the_headers_mislead() -> None:
    grid = identity_grid((40, 40, 40))
    image = torch.exp(-((grid - 0.5) ** 2).sum(1, keepdim=True) / 0.01) * texture(2, (40, 40, 40))
    moved = image.roll(12, 2)
    matrix = start_candidates(ImagePair(moved, image, affine(), affine()))["center"]
    point = apply_affine(matrix[None], torch.full((1, 3, 1, 1, 1), 0.5)).flatten()
    torch.testing.assert_close(point, torch.tensor([0.5 + 12 / 39, 0.5, 0.5]), atol=0.01, rtol=0)


def test_an_affine_difference_is_refined() -> None:
    image = texture(4, (48, 48, 48))
    grid = identity_grid((48, 48, 48))
    matrix = torch.tensor(
        [[1.1, 0.1, 0.0, -0.1], [-0.1, 1.05, 0.0, 0.05], [0.0, 0.05, 0.9, 0.05], [0.0, 0.0, 0.0, 1.0]]
    )
    fixed = sample(image, apply_affine(matrix[None], grid))
    start = search_start(ImagePair(image, fixed, affine(), affine()), OBJECTIVE)
    small = identity_grid((12, 12, 12))
    found = small + resample_grid(start.displacement[:1], (12, 12, 12))
    error = (found - apply_affine(matrix[None], small))[:, :, 2:-2, 2:-2, 2:-2].norm(dim=1).mean()
    before = (small - apply_affine(matrix[None], small))[:, :, 2:-2, 2:-2, 2:-2].norm(dim=1).mean()
    assert error < 0.01
    assert error < 0.2 * before


def test_flipped_and_permuted_images_give_the_flipped_and_permuted_fields() -> None:
    """In double precision, where rounding is not amplified to what could be seen."""
    shape, objective = (20, 24, 22), FieldObjective(LNCC(2, stride=2))
    moving, fixed = (texture(seed, shape).double() for seed in (5, 6))
    fixed = 0.5 * moving + 0.5 * fixed

    def register(*images: torch.Tensor) -> torch.Tensor:
        pair = ImagePair(*images, affine(), affine())
        start = search_start(pair, objective).displacement
        return optimize_field(pair, start, objective, (Level(16, 10), Level(17, 10))).displacement

    expected = register(moving, fixed)
    flipped = register(moving.flip(2, 4), fixed.flip(2, 4)).flip(2, 4)
    flipped = flipped * torch.tensor([-1.0, 1.0, -1.0]).view(1, 3, 1, 1, 1)
    turned = register(moving.permute(0, 1, 4, 2, 3), fixed.permute(0, 1, 4, 2, 3))
    assert expected.abs().max() > 0.01
    torch.testing.assert_close(flipped, expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(turned[:, [1, 2, 0]].permute(0, 1, 3, 4, 2), expected, atol=1e-6, rtol=0)


def test_a_resolution_goes_on_from_the_preset_in_small_strides() -> None:
    levels = [Level(32, 40), Level(64, 30)]
    finer = refine_levels(levels, 256, 20)
    assert finer[:2] == levels
    assert finer[-1] == Level(256, 20)
    sizes = [level.size for level in finer[1:]]
    assert all(1 < b / a <= 1.51 for a, b in itertools.pairwise(sizes))
    for resolution, steps in ((64, 20), (32, 20), (1000, 20), (128, 0)):
        with pytest.raises(InputError, match="resolution: expected more voxels"):
            refine_levels(levels, resolution, steps)


def test_detail_beyond_the_coarse_grid_is_aligned_by_a_finer_one() -> None:
    """Thin sheets with a wavy shift of up to 1.5 of their voxels: a grid of 24 blurs them away, one of 64 does not."""
    size = 64
    axes = torch.meshgrid(*(torch.linspace(0, 1, size),) * 3, indexing="ij")
    wave = 1.5 / (size - 1) * torch.sin(2 * torch.pi * 2 * axes[1])

    def sheets(shift: torch.Tensor) -> torch.Tensor:
        return (0.5 + 0.5 * torch.sin(2 * torch.pi * 14 * (axes[0] - shift)))[None, None]

    affine = torch.eye(4, dtype=torch.float64)
    pair = ImagePair(sheets(wave), sheets(torch.zeros_like(wave)), affine, affine)
    objective = FieldObjective(LNCC(2), 0.5)
    errors = {}
    for name, levels in (("coarse", [Level(24, 60)]), ("fine", refine_levels([Level(24, 60)], size, 60))):
        found = optimize_field(pair, torch.zeros(2, 3, 8, 8, 8), objective, levels).displacement[:1]
        moved = resample_grid(found, (size, size, size))[0, 0]
        errors[name] = float((moved - wave).abs()[8:-8, 8:-8, 8:-8].mean()) * (size - 1)  # voxels
    assert errors["fine"] < 0.4
    assert errors["fine"] < 0.5 * errors["coarse"]


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_a_level_never_ends_worse_than_it_began(steps: int) -> None:
    """Equal images, where every step of Adam is one too many; what is returned is what was evaluated."""
    image = texture()
    pair = ImagePair(image, image.clone(), affine(), affine())
    objective = FieldObjective(LNCC(2, flat_correlation=1.0))
    start = 0.001 * torch.randn(2, 3, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    begin = optimize_field(pair, start, objective, [Level(16, 1)], learning_rate=1e-12)
    found = optimize_field(pair, start, objective, [Level(16, steps)], learning_rate=0.02)
    assert found.loss <= begin.loss + 1e-6
    nothing = optimize_field(pair, torch.zeros_like(start), objective, [Level(16, steps)])
    assert not nothing.displacement.any()


def test_a_loss_that_is_no_number_leaves_the_start() -> None:
    image = texture()
    moving = image.clone()
    moving[0, 0, 10, 10, 10] = torch.nan
    start = torch.zeros(2, 3, 8, 8, 8)
    found = optimize_field(ImagePair(moving, image, affine(), affine()), start, OBJECTIVE, [Level(16, 3)])
    assert torch.isfinite(found.displacement).all()


def test_the_dice_loss_without_labels_is_refused_in_one_line() -> None:
    objective = FieldObjective(LNCC(2), dice_weight=1.0)
    with pytest.raises(InputError, match=r"^dice_weight > 0 needs moving_label and fixed_label$"):
        optimize_field(shifted_pair(0, 1.0), torch.zeros(2, 3, 4, 4, 4), objective, LEVELS[:1])
