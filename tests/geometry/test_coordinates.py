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
"""Known answers for grids, sampling and displacement fields."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from scripts.geometry import coordinates as c


class OneDevice(TorchDispatchMode):
    """Refuses operations on tensors of several devices, which PyTorch lets pass where one is "meta"."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        devices = {leaf.device for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor) and leaf.ndim}
        assert len(devices) < 2, f"{func} of tensors on {devices}"
        return func(*args, **(kwargs or {}))


def test_identity_grid_runs_from_zero_to_one_along_each_tensor_axis() -> None:
    grid = c.identity_grid((3, 4, 5))
    assert grid.shape == (1, 3, 3, 4, 5)
    torch.testing.assert_close(grid[0, 0, :, 0, 0], torch.tensor([0.0, 0.5, 1.0]))
    torch.testing.assert_close(grid[0, 1, 0, :, 0], torch.linspace(0, 1, 4))
    torch.testing.assert_close(grid[0, 2, 0, 0, :], torch.linspace(0, 1, 5))
    exact = c.identity_grid((4, 6, 7), dtype=torch.float64)
    for axis, size in enumerate((4, 6, 7)):
        assert torch.equal(exact[0, axis].select(axis, 2).unique(), torch.tensor([2 / (size - 1)], dtype=torch.float64))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_sampling_one_voxel_further_along_an_axis_returns_the_next_voxel(axis: int) -> None:
    image = torch.rand(1, 1, 5, 6, 7)
    ddf = torch.zeros(1, 3, 5, 6, 7)
    ddf[:, axis] = 1
    warped = c.sample(image, c.from_ddf(ddf)(c.identity_grid((5, 6, 7))))
    n = image.shape[axis + 2]
    torch.testing.assert_close(warped.narrow(axis + 2, 0, n - 1), image.narrow(axis + 2, 1, n - 1), atol=1e-5, rtol=0)
    torch.testing.assert_close(c.shift_with_border(image, axis, 1), warped, atol=1e-5, rtol=0)


def test_sampling_outside_gives_the_border_or_zero() -> None:
    image = torch.ones(1, 1, 4, 4, 4)
    points = torch.full((1, 3, 1, 1, 1), 1.5)
    assert c.sample(image, points, "border").item() == 1
    assert c.sample(image, points, "zeros").item() == 0


def test_one_image_serves_a_batch_of_points() -> None:
    image = torch.rand(1, 2, 4, 4, 4)
    points = torch.cat([c.identity_grid((4, 4, 4)), 1 - c.identity_grid((4, 4, 4))])
    warped = c.sample(image, points)
    torch.testing.assert_close(warped[0], image[0], atol=1e-6, rtol=0)
    torch.testing.assert_close(warped[1], image[0].flip(1, 2, 3), atol=1e-6, rtol=0)


def test_ddf_of_a_transform_is_in_voxels_and_leads_back_to_it() -> None:
    ddf = torch.randn(1, 3, 5, 6, 7)
    assert torch.equal(c.extent(ddf), torch.tensor([4.0, 5, 6]).view(1, 3, 1, 1, 1))
    torch.testing.assert_close(c.to_ddf(c.from_ddf(ddf), (5, 6, 7)), ddf, atol=1e-4, rtol=0)
    shifted = c.to_ddf(lambda points: points + 0.5, (5, 7, 9))
    torch.testing.assert_close(shifted[0, :, 0, 0, 0], torch.tensor([2.0, 3.0, 4.0]))


def test_the_identity_returns_its_points() -> None:
    points = torch.rand(1, 3, 1, 1, 1)
    assert c.identity_transform(points) is points


def test_jacobian_determinant_is_the_product_of_scales_and_negative_for_a_mirror() -> None:
    grid = c.identity_grid((6, 7, 8))
    scale = torch.tensor([2.0, 0.5, 3.0]).view(1, 3, 1, 1, 1)
    determinant = c.jacobian_determinant(grid * scale)
    assert determinant.shape == (1, 1, 5, 6, 7)
    torch.testing.assert_close(determinant, torch.full_like(determinant, 3.0), atol=1e-3, rtol=0)
    mirror = grid.clone()
    mirror[:, 0] = 1 - mirror[:, 0]
    assert c.folding_percentage(mirror).item() == 100
    assert c.folding_percentage(grid).item() == 0
    assert c.folding_percentage(0 * grid).item() == 0  # flat, not turned inside out


def test_resampling_a_grid_keeps_the_end_voxels() -> None:
    ramp = torch.arange(8.0).view(1, 1, 8, 1, 1).expand(1, 1, 8, 4, 4)
    resampled = c.resample_grid(ramp, (15, 4, 4))[0, 0, :, 0, 0]
    torch.testing.assert_close(resampled, torch.arange(15) / 2)


def test_the_triple_product_is_that_of_the_cross_product() -> None:
    first, second, third = torch.randn(3, 2, 3, 4, 5, 6)
    expected = (torch.linalg.cross(first, second, dim=1) * third).sum(1, keepdim=True)
    torch.testing.assert_close(c.triple_product(first, second, third, dim=1), expected)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("voxels", [-9, -2, 0, 1, 9])
def test_a_shifted_image_repeats_its_border(axis: int, voxels: int) -> None:
    image = torch.rand(1, 1, 5, 6, 7)
    padding = [0] * 6  # of the last axis first
    padding[4 - 2 * axis : 6 - 2 * axis] = max(-voxels, 0), max(voxels, 0)
    padded = F.pad(image, padding, mode="replicate")
    expected = padded.narrow(axis + 2, max(voxels, 0), image.shape[axis + 2])
    assert torch.equal(c.shift_with_border(image, axis, voxels), expected)


def test_all_is_made_on_the_device_of_its_values() -> None:
    values = torch.empty(1, 3, 4, 5, 6, device="meta", dtype=torch.float64)
    with OneDevice():
        made = [
            c.identity_grid((4, 5, 6), "meta", torch.float64),
            c.identity_grid_like(values),
            c.extent(values),
            c.resample_grid(values, (7, 8, 9)),
            c.shift_with_border(values, 1, 2),
        ]
        ddf = c.to_ddf(lambda points: 2 * points, (4, 5, 6), "meta")
    assert {(result.device, result.dtype) for result in made} == {(values.device, values.dtype)}
    assert ddf.device == values.device


@pytest.mark.parametrize("shape", [(9, 21, 6), (3, 5, 13), (11, 7, 8)])
def test_resampling_a_grid_is_trilinear_interpolation(shape: tuple[int, int, int]) -> None:
    values = torch.rand(2, 3, 5, 11, 8, dtype=torch.float64, requires_grad=True)
    with pytest.raises(ValueError, match="longer"):
        c.resample_grid(values, (*shape, 1))
    factor = torch.rand(2, 3, *shape, dtype=torch.float64)
    expected = F.interpolate(values, size=shape, mode="trilinear", align_corners=True)
    for found in (c.resample_grid(values, shape), c.resample_like(values, torch.empty(1, 1, *shape))):
        torch.testing.assert_close(found, expected)
        ours, theirs = (
            torch.autograd.grad((result * factor).sum(), values, retain_graph=True)[0] for result in (found, expected)
        )
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("padding", ["border", "zeros"])
def test_sampling_in_slabs_is_sampling_at_once(batch: int, padding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(c, "_LEAST_SLAB", 1)
    values = torch.rand(batch, 2, 6, 7, 8, dtype=torch.float64, requires_grad=True)
    points = (1.4 * torch.rand(batch, 3, 11, 5, 4, dtype=torch.float64) - 0.2).requires_grad_()
    factor = torch.rand(batch, 2, 11, 5, 4, dtype=torch.float64)
    found = []
    for threads in (1, 2, 4, 16):  # 11 planes: slabs that overlap, and more threads than slabs
        monkeypatch.setattr(torch, "get_num_threads", lambda count=threads: count)
        sampled = c.sample(values, points, padding)
        found.append([sampled.detach(), *torch.autograd.grad((sampled * factor).sum(), [values, points])])
    for other in found[1:]:
        for ours, expected in zip(other, found[0], strict=True):
            torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("threads", [1, 3])
def test_points_and_values_are_not_changed_by_sampling(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(c, "_LEAST_SLAB", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    values, points = torch.rand(1, 1, 5, 6, 7), torch.rand(1, 3, 4, 4, 4)
    before = values.clone(), points.clone()
    c.sample(values, points)
    assert torch.equal(values, before[0])
    assert torch.equal(points, before[1])
