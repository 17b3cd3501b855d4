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
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from scripts.geometry.composition import CompositeTransform, apply_displacements, transform_on_grid
from scripts.geometry.coordinates import extent, identity_grid, identity_grid_like, identity_transform, sample, to_ddf
from scripts.networks.registration_network import IdentityNetwork, RegistrationNetwork
from scripts.utils.errors import InputError
from tests.helpers.networks import SMALL, random_network, random_pair


def test_forward_is_the_registered_transform_in_voxels() -> None:
    network, (moving, fixed) = random_network(), random_pair((19, 22, 17))
    with torch.no_grad():
        ddf = network(torch.cat([moving, fixed], dim=1))
        transform = network.register(moving, fixed)
    assert ddf.shape == (1, 3, 19, 22, 17)
    assert 0.1 < ddf.abs().max() < 10
    torch.testing.assert_close(ddf, to_ddf(transform, (19, 22, 17)), atol=1e-4, rtol=0)
    on_grid = transform_on_grid(transform, moving)
    torch.testing.assert_close((on_grid - identity_grid_like(moving)) * extent(moving), ddf)


@pytest.mark.parametrize("shape", [(17, 17, 17), (32, 24, 40), (19, 26, 33)])
@pytest.mark.parametrize("stage", [1, 2])
def test_any_shape_of_the_minimum_size_works(shape: tuple[int, int, int], stage: int) -> None:
    network = random_network(stage=stage)
    fields = network.displacements(*random_pair(shape, batch=2))
    full = torch.Size(shape)
    half = torch.Size(-(-n // 2) for n in shape)
    quarter = torch.Size(-(-n // 2) for n in half)
    assert [field.shape[2:] for field in fields] == [quarter, half, full, full][: 2 + stage]


def test_samples_of_a_batch_do_not_mix() -> None:
    network, (moving, fixed) = random_network(), random_pair((18, 19, 20), batch=2)
    image = torch.cat([moving, fixed], dim=1)
    with torch.no_grad():
        together = network(image)
        torch.testing.assert_close(together[1:], network(image[1:]), atol=1e-4, rtol=0)
        # one set of points serves the whole batch
        points = torch.rand(1, 3, 4, 5, 6)
        transform = network.register(moving, fixed)
        torch.testing.assert_close(transform(points)[1:], network.register(moving[1:], fixed[1:])(points))


def test_composition_applies_the_last_field_first() -> None:
    fields = [0.05 * torch.randn(1, 3, *shape) for shape in [(5, 6, 7), (9, 9, 9)]]
    points = torch.rand(1, 3, 4, 4, 4)
    inner = points + sample(fields[1], points)
    expected = inner + sample(fields[0], inner)
    torch.testing.assert_close(CompositeTransform(fields)(points), expected)
    torch.testing.assert_close(apply_displacements(fields, points), expected)
    assert torch.equal(CompositeTransform([])(points), points)


def test_a_known_shift_goes_along_its_axis() -> None:
    network = RegistrationNetwork((17, 18, 19), **SMALL).eval()
    for axis, size in enumerate((17, 18, 19)):
        with torch.no_grad():
            network.unets[2].last.bias.zero_()[axis] = 10 * 3 / (size - 1)  # three voxels
            ddf = network(torch.rand(1, 2, 17, 18, 19))
        expected = torch.zeros(3)
        expected[axis] = 3
        torch.testing.assert_close(ddf, expected.view(1, 3, 1, 1, 1).expand_as(ddf), atol=1e-4, rtol=0)


def test_the_transform_is_differentiable_in_all_weights() -> None:
    network, pair = random_network(), random_pair((17, 18, 19))
    transform_on_grid(network.register(*pair), pair[0]).square().mean().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in network.parameters())


def test_inputs_are_not_mutated() -> None:
    network, pair = random_network(), random_pair((17, 18, 19))
    copies = [image.clone() for image in pair]
    network(torch.cat(pair, dim=1))
    network.register(*pair)(identity_grid((4, 4, 4)))
    assert all(torch.equal(image, copy) for image, copy in zip(pair, copies, strict=True))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda n: n(torch.rand(1, 2, 17, 16, 17)), r"at least 17 voxels, got \[17, 16, 17\]"),
        (lambda n: n(torch.rand(1, 1, 17, 17, 17)), r"\(B, 2, D, H, W\), moving then fixed, got \[1, 1, 17"),
        (lambda n: n.register(torch.rand(1, 1, 17, 17, 17), torch.rand(1, 1, 17, 17, 18)), "must have one shape"),
    ],
)
def test_ill_shape(call: Callable[[nn.Module], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(random_network())


def test_a_small_shape_or_an_unknown_stage_is_refused_at_the_start() -> None:
    with pytest.raises(InputError, match="at least 65 voxels"):
        RegistrationNetwork((64, 175, 175))
    with pytest.raises(InputError, match="stage must be 1"):
        RegistrationNetwork(stage=3)


def test_the_identity_network_has_the_same_interface() -> None:
    network, pair = IdentityNetwork(), random_pair((4, 5, 6), batch=2)
    ddf = network(torch.cat(pair, dim=1))
    assert ddf.shape == (2, 3, 4, 5, 6)
    assert not ddf.any()
    assert not network.displacements(*pair)[0].any()
    assert network.register(*pair) is identity_transform
    assert torch.equal(transform_on_grid(network.register(*pair), pair[0]), identity_grid((4, 5, 6)))
    assert torch.equal(torch.jit.script(network)(torch.cat(pair, dim=1)), ddf)


@pytest.fixture(scope="module")
def exported() -> tuple[RegistrationNetwork, Tensor, Tensor]:
    network, image = random_network(), torch.cat(random_pair((18, 21, 20)), dim=1)
    with torch.no_grad():
        return network, image, network(image)


def test_torch_jit_script_agrees(exported: tuple[RegistrationNetwork, Tensor, Tensor], tmp_path: Path) -> None:
    network, image, ddf = exported
    torch.jit.script(network).save(tmp_path / "network.ts")
    scripted = torch.jit.load(tmp_path / "network.ts")
    with torch.no_grad():
        torch.testing.assert_close(scripted(image), ddf)
        assert scripted(torch.rand(2, 2, 17, 25, 19)).shape == (2, 3, 17, 25, 19)
        assert len(scripted.displacements(image[:, :1], image[:, 1:])) == 4


def test_torch_export_agrees(exported: tuple[RegistrationNetwork, Tensor, Tensor]) -> None:
    network, image, ddf = exported
    with torch.no_grad():
        torch.testing.assert_close(torch.export.export(network, (image,)).module()(image), ddf)


def test_onnx_agrees(exported: tuple[RegistrationNetwork, Tensor, Tensor], tmp_path: Path) -> None:
    pytest.importorskip("onnxscript", reason="torch.onnx needs onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime", reason="runs the exported network")
    network, image, ddf = exported
    path = tmp_path / "network.onnx"
    torch.onnx.export(network, (image,), path, opset_version=20, dynamo=True)
    session = onnxruntime.InferenceSession(path)
    result = session.run(None, {session.get_inputs()[0].name: image.numpy()})[0]
    torch.testing.assert_close(torch.from_numpy(result), ddf, atol=1e-4, rtol=0)
