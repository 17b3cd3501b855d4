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
"""The 48 ways to store the voxels of one image: none of them may change a transform of the world."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import itk
import numpy as np
import pytest
import torch

from scripts.data.itk_transforms import to_itk
from scripts.transforms.postprocessing import AddTransformsd
from tests.helpers.chain import chain
from tests.helpers.networks import random_network
from tests.helpers.registered import smooth_ddf
from tests.helpers.world import ORIENTATIONS, POINTS, carry, farthest, known_images, register, store, textured_image
from tests.whole.test_properties import HEADERS_MM

SHAPE = (17, 18, 20)
PATHS = {  # options of the bundle; the last one's weights are made up
    "training-free": {"model": "none"},
    "default": {"model": "default"},
    "default, off": {"model": "default", "optimization": "off"},
    "own": {"optimization": "off", "match_orientation": True},
}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return the paths of a pair by role."""
    return dict(zip(("fixed", "moving"), known_images(tmp_path_factory.mktemp("pair")), strict=True))


@pytest.mark.parametrize("side", ["fixed", "moving"])
def test_preprocessing_and_geometry(images: dict[str, str], tmp_path: Path, side: str) -> None:
    """All 48: a network sees the same numbers, and what it answers means the same in the world."""

    def transforms(paths: dict[str, str]) -> tuple[Any, Any, Any]:
        case = {"case": "pair", "case_dir": "", "fixed_modality": "mr", "moving_modality": "mr", **paths}
        data = chain(SHAPE)(case)
        given = {"forward_ddf": smooth_ddf(SHAPE, 1.3, 2), "inverse_ddf": smooth_ddf(SHAPE, 1.3, 3)}
        result = AddTransformsd()({**data, "pred": given})["transforms"]
        seen = torch.cat([data["fixed_image"].as_tensor(), data["moving_image"].as_tensor()])
        return seen, to_itk(result.forward), to_itk(result.inverse)

    seen, *expected = transforms(images)
    there = carry(expected[0], POINTS)
    for orientation in ORIENTATIONS:
        stored = str(store(images[side], tmp_path / "stored.nii.gz", orientation))
        other, forward, inverse = transforms({**images, side: stored})
        assert torch.equal(other, seen), orientation
        assert farthest(carry(forward, POINTS), there) < HEADERS_MM, orientation
        assert farthest(carry(inverse, there), carry(expected[1], there)) < HEADERS_MM, orientation


@pytest.mark.parametrize("path", PATHS)
def test_the_whole_pipeline(images: dict[str, str], tmp_path: Path, path: str) -> None:
    """A random few, of the fixed, the moving and both images; ``python -m tools.campaigns.orientations`` runs all."""
    options = dict(PATHS[path])
    if path == "own":
        torch.save(random_network().state_dict(), tmp_path / "weights.pt")
        options["ckpt_path"] = str(tmp_path / "weights.pt")
    plain = register(tmp_path / "plain", **images, **options)
    random = np.random.default_rng(len(path))
    for sides in (("fixed",), ("moving",), ("fixed", "moving")):
        stored = {side: ORIENTATIONS[random.integers(1, 48)] for side in sides}
        changed = {side: str(store(images[side], tmp_path / f"{side}.nii.gz", code)) for side, code in stored.items()}
        result = register(tmp_path / "out", **{**images, **changed}, **options)
        there = carry(plain.forward, POINTS)
        assert farthest(carry(result.forward, POINTS), there) < HEADERS_MM, stored
        assert farthest(carry(result.inverse, there), carry(plain.inverse, there)) < HEADERS_MM, stored


@pytest.mark.parametrize("side", ["fixed", "moving"])
def test_a_start_from_the_headers(tmp_path: Path, side: str) -> None:
    """The moving image shows a half; its header, in whichever digits it is rounded, says which one."""
    paths = {"fixed": textured_image(tmp_path), "moving": str(tmp_path / "half.nii.gz")}
    whole = itk.imread(paths["fixed"])
    half = itk.region_of_interest_image_filter(whole, region_of_interest=_upper_half(whole))
    itk.imwrite(half, paths["moving"])
    plain = register(tmp_path / "plain", **paths)
    assert plain.report["terms"]["start"] == "world"
    stored = str(store(paths[side], tmp_path / "stored.nii.gz", ((1, 2, 0), (True, False, True))))
    result = register(tmp_path / "out", **{**paths, side: stored})
    assert farthest(carry(result.forward, POINTS), carry(plain.forward, POINTS)) < HEADERS_MM


def _upper_half(image: Any) -> Any:
    region = image.GetLargestPossibleRegion()
    size, index = region.GetSize(), region.GetIndex()
    index[2], size[2] = size[2] // 2, size[2] - size[2] // 2
    region.SetSize(size)
    region.SetIndex(index)
    return region
