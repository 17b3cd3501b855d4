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
"""The whole way, from two files to a world transform, against the reference packages with the same weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import itk
import numpy as np
import pytest
import torch

from scripts.geometry.smoothing import gaussian_blur
from scripts.networks.unet import DOWN_CHANNELS, UP_CHANNELS
from tests.helpers.inference import run_inference
from tests.helpers.networks import published_state, random_network

SHAPE = (65, 71, 68)


def write_image(path: Path, size: tuple[int, int, int], spacing: tuple[float, ...], angles: tuple[float, ...]) -> None:
    """Write a smooth random image on an oblique grid; ``size`` in array order (k, j, i)."""
    seed = sum(size)
    values = gaussian_blur(torch.randn(1, 1, *size, generator=torch.Generator().manual_seed(seed)), 3)[0, 0]
    image = itk.image_from_array((1000 * values).round().numpy().astype(np.int16))
    image.SetSpacing(spacing)
    image.SetOrigin([17.0 * seed % 50, -31.0, 12.5])
    rotation = itk.Euler3DTransform[itk.D].New()
    rotation.SetRotation(*angles)
    image.SetDirection(rotation.GetMatrix())
    itk.imwrite(image, str(path))


@pytest.mark.parametrize(("modality", "reference_modality"), [("ct", "ct"), ("mr", "mri")])
def test_world_points_are_those_of_the_reference(tmp_path: Path, modality: str, reference_modality: str) -> None:
    unigradicon: Any = pytest.importorskip("unigradicon", reason="the reference package unigradicon is not installed")
    itk_wrapper: Any = pytest.importorskip("icon_registration.itk_wrapper", reason="icon_registration is not installed")

    network = random_network(down_channels=DOWN_CHANNELS, up_channels=UP_CHANNELS, spatial_shape=SHAPE)
    weights = published_state(network)
    torch.save(weights, tmp_path / "Step_2_final.trch")
    files = {name: tmp_path / f"{name}.nii.gz" for name in ("fixed", "moving")}
    write_image(files["fixed"], (31, 90, 84), (0.7, 0.7, 3.0), (0.1, -0.2, 0.3))
    write_image(files["moving"], (60, 55, 64), (1.1, 0.9, 1.6), (-0.3, 0.1, 0.2))

    run_inference(
        tmp_path / "out",
        fixed=str(files["fixed"]),
        moving=str(files["moving"]),
        fixed_modality=modality,
        moving_modality=modality,
        ckpt_path=str(tmp_path / "Step_2_final.trch"),
        image_shape=list(SHAPE),
        optimization="off",
        **{"save::overview": False},
    )

    reference = unigradicon.make_network([1, 1, *SHAPE], include_last_step=True)
    reference.regis_net.load_state_dict(weights)
    reference.eval()
    moving, fixed = (
        unigradicon.preprocess(itk.imread(str(files[name])), modality=reference_modality)
        for name in ("moving", "fixed")
    )
    expected = itk_wrapper.register_pair(reference, moving, fixed)
    generator = np.random.default_rng(0)
    for name, image, transform in (
        ("forward", fixed, expected[0]),
        ("inverse", moving, expected[1]),
    ):
        ours = itk.transformread(str(tmp_path / "out" / f"{name}_transform.h5"))[0]
        to_world = itk.array_from_matrix(image.GetDirection()) * np.array(image.GetSpacing())
        corner = np.array(itk.size(image), dtype=float) - 1
        largest = 0.0
        for index in generator.uniform(0, 1, (1000, 3)) * corner:
            point = (np.array(image.GetOrigin()) + to_world @ index).tolist()
            moved = np.array(transform.TransformPoint(point))
            largest = max(largest, float(np.abs(moved - np.array(ours.TransformPoint(point))).max()))
            assert np.linalg.norm(moved - np.array(point)) > 0
        assert largest < 0.01, f"{name}: {largest} mm"
