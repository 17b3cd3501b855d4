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
"""Similarities: known values, invariances, masks, gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from scripts.geometry.coordinates import resample_grid
from scripts.geometry.smoothing import box_mean, gaussian_blur, gaussian_shrink
from scripts.losses.similarity import LNCC, MINDSSC, NMI, SIMILARITIES, create_similarity


def smooth(seed: int = 0, shape: tuple[int, int, int] = (20, 22, 24)) -> torch.Tensor:
    noise = torch.randn(1, 1, *shape, generator=torch.Generator().manual_seed(seed))
    image = gaussian_blur(noise, 1.5)
    return (image - image.min()) / (image.max() - image.min())


def test_blur_equals_a_separable_convolution_with_zero_padding() -> None:
    image = torch.rand(2, 3, 11, 12, 13)
    offsets = torch.arange(-4, 5, dtype=torch.float32)
    taps = torch.exp(-0.5 * (offsets / 2) ** 2)
    taps = taps / taps.sum()
    expected = image.reshape(6, 1, 11, 12, 13)
    for shape in ((-1, 1, 1), (1, -1, 1), (1, 1, -1)):
        expected = F.conv3d(expected, taps.view(1, 1, *shape), padding="same")
    torch.testing.assert_close(gaussian_blur(image, 2), expected.reshape(image.shape), atol=1e-6, rtol=1e-5)


def test_box_mean_equals_average_pooling_of_a_replicated_border() -> None:
    image = torch.rand(1, 2, 7, 8, 9)
    expected = F.avg_pool3d(F.pad(image, (2,) * 6, mode="replicate"), 5, stride=1)
    torch.testing.assert_close(box_mean(image, 2), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", SIMILARITIES)
def test_an_image_is_more_similar_to_itself_than_shifted(name: str) -> None:
    similarity = create_similarity(name, 2)
    image = smooth()
    assert similarity(image, image) < similarity(image.roll(3, 2), image) - 1e-3


@pytest.mark.parametrize("name", ["lncc2", "mind", "nmi"])
def test_similarities_for_other_contrasts_accept_an_inverted_image(name: str) -> None:
    similarity = create_similarity(name, 2)
    image = smooth()
    assert similarity(1 - image, image) < similarity(1 - image.roll(3, 2), image) - 1e-3


def test_lncc_is_near_zero_for_the_image_and_two_for_its_negative() -> None:
    image = smooth()
    inner = torch.zeros_like(image)  # zero padding makes negatives alike at the border
    inner[:, :, 6:-6, 6:-6, 6:-6] = 1
    assert LNCC(2)(image, image, inner).item() == pytest.approx(0, abs=0.02)
    assert LNCC(2)(1 - image, image, inner).item() == pytest.approx(2, abs=0.02)


def test_with_the_floor_in_the_numerator_nothing_correlates_better_than_the_image_itself() -> None:
    """Without it, more contrast does: here of an image whose variance is below the floor."""
    image = smooth() * 0.003
    published, level = LNCC(2), create_similarity("lncc", 2, flat_correlation=1)
    assert published(1.5 * image, image) < published(image, image) - 0.01
    assert level(image, image).item() == pytest.approx(0, abs=1e-6)
    for other in (1.5 * image, 0.9 * image, image.roll(1, 2), smooth(1)):
        assert level(other, image) > 1e-6


@pytest.mark.parametrize("name", SIMILARITIES)
def test_changes_outside_the_mask_do_not_count_and_inside_do(name: str) -> None:
    similarity = create_similarity(name, 1)
    image, other = smooth(0), smooth(1)
    mask = torch.zeros_like(image)
    mask[:, :, :8] = 1
    far, near = image.clone(), image.clone()
    far[:, :, 16:] = other[:, :, 16:]
    near[:, :, :6] = other[:, :, :6]
    exact = similarity(image, image, mask)
    torch.testing.assert_close(similarity(far, image, mask), exact, atol=1e-3, rtol=1e-3)
    assert similarity(near, image, mask) > exact + 1e-2


@pytest.mark.parametrize("name", SIMILARITIES)
def test_a_target_prepared_once_gives_the_same_and_gradients_flow(name: str) -> None:
    similarity = create_similarity(name, 2)
    warped, target = smooth(0).requires_grad_(), smooth(1)
    prepared = similarity.to_target(target)
    torch.testing.assert_close(prepared(warped), similarity(warped, target))
    (gradient,) = torch.autograd.grad(prepared(warped), warped)
    assert gradient.abs().sum() > 0
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("name", ["lncc", "mind"])
def test_gradient_is_that_of_finite_differences(name: str) -> None:
    similarity = create_similarity(name, 1)
    target = smooth(1, (6, 6, 6)).double()
    warped = smooth(0, (6, 6, 6)).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda image: similarity(image, target), (warped,), atol=1e-5, rtol=1e-3)


def test_a_batch_is_the_mean_of_its_samples() -> None:
    first, second, target = smooth(0), smooth(1), smooth(2)
    batch = LNCC(2)(torch.cat([first, second]), torch.cat([target, target]))
    torch.testing.assert_close(batch, (LNCC(2)(first, target) + LNCC(2)(second, target)) / 2)


def test_nmi_uses_a_subset_of_large_images_and_stays_close() -> None:
    image, other = smooth(0), smooth(1)
    for pair in ((image, image), (image, other)):
        torch.testing.assert_close(NMI(max_voxels=3000)(*pair), NMI()(*pair), atol=0.06, rtol=0.06)


def test_errors_name_what_came() -> None:
    with pytest.raises(ValueError, match=r"one of lncc, lncc2, mind, nmi, got 'ssd'"):
        create_similarity("ssd")
    with pytest.raises(ValueError, match="sigma must be positive"):
        LNCC(0)
    with pytest.raises(ValueError, match="one shape, got"):
        MINDSSC()(torch.rand(1, 1, 4, 4, 4), torch.rand(1, 1, 4, 4, 5))


def test_shrinking_is_a_blur_within_the_image_and_an_interpolation() -> None:
    image = torch.rand(2, 1, 20, 17, 23)
    blurred = gaussian_blur(image, 1.1) / gaussian_blur(torch.ones_like(image), 1.1)
    expected = resample_grid(blurred, (9, 8, 11))
    torch.testing.assert_close(gaussian_shrink(image, (9, 8, 11), 1.1), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("shape", [(40, 44, 41), (64, 50, 48)])
@pytest.mark.parametrize("squared", [False, True])
def test_every_second_voxel_gives_nearly_the_same_loss_and_gradient(shape: tuple[int, int, int], squared: bool) -> None:
    first, second = (gaussian_blur(torch.randn(1, 1, *shape), 1.5) * 4 for _ in range(2))
    warped = (0.6 * first + 0.4 * second).requires_grad_()
    found = []
    for stride in (1, 2):
        loss = create_similarity("lncc2" if squared else "lncc", 2.0, stride)(warped, first)
        found.append((loss.detach(), torch.autograd.grad(loss, warped)[0]))
    assert 0.05 < found[0][0] < 0.95
    torch.testing.assert_close(found[1][0], found[0][0], atol=0.01, rtol=0)
    inner = (..., *(slice(6, -6),) * 3)  # at the border the voxels that count are not in balance
    agreement = F.cosine_similarity(found[0][1][inner].flatten(), found[1][1][inner].flatten(), dim=0)
    assert agreement > 0.98


@pytest.mark.parametrize("stride", [2, 3])
@pytest.mark.parametrize("shape", [(20, 21, 22), (23, 18, 16)])
def test_what_a_stride_leaves_out_is_the_same_seen_from_either_end(shape: tuple[int, int, int], stride: int) -> None:
    warped, target = torch.rand(2, 1, 1, *shape, dtype=torch.float64)
    loss = LNCC(2.0, stride=stride)
    for axis in (2, 3, 4):
        torch.testing.assert_close(loss(warped.flip(axis), target.flip(axis)), loss(warped, target), atol=1e-13, rtol=0)


def test_between_voxels_the_window_is_as_wide_and_its_weights_sum_to_one() -> None:
    ramp = torch.arange(24, dtype=torch.float64).view(1, 1, 1, 1, -1).expand(1, 1, 24, 24, 24)
    inner = (0, 0, 6, 6, slice(3, -3))
    places = gaussian_blur(ramp, 2.0, stride=2)[inner]
    torch.testing.assert_close(places, torch.arange(6.5, 18, 2, dtype=torch.float64))
    spread = gaussian_blur(ramp**2, 2.0, stride=2)[inner] - places**2
    expected = (gaussian_blur(ramp**2, 2.0) - gaussian_blur(ramp, 2.0) ** 2)[0, 0, 12, 12, 12]
    torch.testing.assert_close(spread, expected.expand_as(spread), atol=0.3, rtol=0)


def test_a_mask_is_compared_at_every_voxel() -> None:
    first, second = torch.rand(2, 1, 1, 20, 20, 20)
    mask = torch.zeros_like(first)
    mask[..., 5, 7, 9] = 1  # between the voxels of a stride of two
    assert torch.equal(LNCC(2, stride=2)(first, second, mask), LNCC(2)(first, second, mask))


def test_a_stride_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match=r"stride at least 1, got 2\.0 and 0"):
        LNCC(2.0, stride=0)
