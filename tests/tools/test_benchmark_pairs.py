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
"""The poses of a pair that the benchmark compares: the same images in the world."""

from __future__ import annotations

import json
from pathlib import Path

import itk
import numpy as np
import pytest

from tools.benchmarks.methods import write_lists
from tools.benchmarks.pairs import VARIANTS, reorder_axes, vary


@pytest.fixture
def image_file(tmp_path: Path) -> Path:
    """An oblique, anisotropic image whose three axes differ in length."""
    values = np.random.default_rng(0).integers(0, 1000, (7, 5, 6)).astype(np.int16)
    image = itk.image_from_array(values)
    image.SetSpacing([0.8, 1.5, 2.5])
    image.SetOrigin([-11.0, 23.0, 5.0])
    rotation = itk.Euler3DTransform[itk.D].New()
    rotation.SetRotation(0.2, -0.3, 0.4)
    image.SetDirection(rotation.GetMatrix())
    itk.imwrite(image, str(tmp_path / "image.nii.gz"))
    return tmp_path / "image.nii.gz"


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_voxel_stays_where_it_was(image_file: Path, tmp_path: Path, variant: str) -> None:
    reorder_axes(image_file, tmp_path / "other.nii.gz", *VARIANTS[variant])
    before, after = (itk.imread(str(tmp_path / name)) for name in ("image.nii.gz", "other.nii.gz"))
    shape = itk.array_view_from_image(before).shape
    moved = 0
    for index in np.ndindex(*shape):
        at = [int(n) for n in index[::-1]]
        other = after.TransformPhysicalPointToIndex(before.TransformIndexToPhysicalPoint(at))
        assert after.GetPixel(other) == before.GetPixel(at)
        moved += list(other) != at
    assert moved > 0.9 * np.prod(shape)


def test_one_list_for_each_anatomy(tmp_path: Path) -> None:
    pairs: dict[str, dict[str, object]] = {
        "brain_1": {"fixed": "a.nii", "moving": "b.nii", "fixed_label": "c.nii", "moving_label": "d.nii"},
        "brain_2": {"fixed": "b.nii", "moving": "a.nii"},
        "lung": {"fixed": "e.nii", "moving": "f.nii", "fixed_modality": "ct"},
    }
    (tmp_path / "pairs.json").write_text(json.dumps(pairs))
    lists = write_lists(tmp_path, tmp_path / "lists")
    cases = {anatomy: json.loads(path.read_text()) for anatomy, path in lists.items()}
    assert [case["case"] for case in cases["brain"]] == ["brain_1", "brain_2"]
    assert cases["brain"][0]["moving_label"] == str(tmp_path / "d.nii")
    (lung,) = cases["lung"]
    assert (lung["case"], lung["fixed_modality"]) == ("lung", "ct")


def test_backwards_swaps_all_that_belongs_to_an_image(tmp_path: Path) -> None:
    given = {"fixed": "a", "moving": "b", "fixed_label": "c", "moving_label": "d", "moving_modality": "ct"}
    expected = {"moving": "a", "fixed": "b", "moving_label": "c", "fixed_label": "d", "fixed_modality": "ct"}
    assert vary(given, "backwards", tmp_path) == expected
