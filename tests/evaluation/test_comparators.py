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
"""Other methods in the bundle's harness: a known shift between oblique grids, its sign, and the reference package."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from scripts.evaluation.comparators import METHODS, describe_method
from scripts.networks.unet import DOWN_CHANNELS, UP_CHANNELS
from scripts.utils.errors import InputError
from tests.helpers.known_pair import evaluate, write_known_pair
from tests.helpers.networks import published_state, random_network

PACKAGES = {"affine": "itk-elastix", "bspline": "itk-elastix", "syn": "antspyx", "convexadam": "convexAdam"}
NEEDED = {"affine": "itk.itkElastixRegistrationMethodPython", "syn": "ants", "convexadam": "convexAdam"}
LIGHT = {"surface_distances": False, "dataset_name": "known"}


@pytest.mark.parametrize(
    ("method", "bound_mm"), [("affine", 0.6), ("bspline", 1.5), ("syn", 1.5), ("convexadam", 2.0), ("bundle", 1.0)]
)
def test_a_known_shift_is_found_with_its_sign_by_each_method(tmp_path: Path, method: str, bound_mm: float) -> None:
    pytest.importorskip(
        NEEDED.get("affine" if method == "bspline" else method, "itk"),
        reason=f"{PACKAGES.get(method)} is not installed",
    )
    summary = evaluate(tmp_path / "out", method=method, **write_known_pair(tmp_path / "pair"), **LIGHT)
    (pair,) = summary["pairs"]
    assert pair["failure"] is None
    # where the fields of view lie on each other is not where the headers agree
    assert pair["tre_mm_before"] > 4
    assert pair["tre_mm_after"] < bound_mm
    assert pair["dice_after"] > 0.8 > 0.7 > pair["dice_before"]
    assert pair["negative_percent"] < 0.1
    assert summary["method"].startswith(method)
    if method in ("syn", "bundle"):
        assert pair["inconsistency_mm"] < 1.0
    elif method != "identity":
        assert pair["inconsistency_mm"] is None


def test_the_identity_is_the_start(tmp_path: Path) -> None:
    summary = evaluate(tmp_path / "out", method="identity", **write_known_pair(tmp_path / "pair"), **LIGHT)
    (pair,) = summary["pairs"]
    assert pair["tre_mm_after"] == pytest.approx(pair["tre_mm_before"], abs=1e-4)
    assert pair["dice_after"] == pair["dice_before"]
    assert pair["sd_log_jacobian"] == pytest.approx(0, abs=1e-3)
    assert pair["inconsistency_mm"] == pytest.approx(0, abs=1e-3)


def test_the_reference_package_gives_what_the_bundle_gives_with_its_weights(tmp_path: Path) -> None:
    pytest.importorskip("unigradicon", reason="the reference package unigradicon is not installed")
    weights = published_state(
        random_network(down_channels=DOWN_CHANNELS, up_channels=UP_CHANNELS, spatial_shape=(65, 65, 65))
    )
    torch.save(weights, tmp_path / "Step_2_final.trch")
    pair = write_known_pair(tmp_path / "pair")
    options = {"ckpt_path": str(tmp_path / "Step_2_final.trch"), "optimization": "off", "image_shape": [65, 65, 65]}
    found = [
        evaluate(tmp_path / method, method=method, **pair, **LIGHT, **options)["pairs"][0]
        for method in ("bundle", "unigradicon")
    ]
    assert abs(found[0]["tre_mm_after"] - found[0]["tre_mm_before"]) > 0.5  # the weights do something
    for name in ("tre_mm_before", "dice_before"):
        assert found[1][name] == pytest.approx(found[0][name], abs=1e-3)
    # random weights make a rough field, which is sampled on the coarser fixed grid before landmarks are carried
    assert found[1]["tre_mm_after"] == pytest.approx(found[0]["tre_mm_after"], abs=0.1)
    assert found[1]["dice_after"] == pytest.approx(found[0]["dice_after"], abs=0.005)


def test_a_method_that_fails_leaves_its_pair_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from scripts.evaluation import comparators

    def fail(*_: object) -> object:
        raise RuntimeError("first line\nthe images do not overlap")

    monkeypatch.setitem(comparators.COMPARATORS, "affine", comparators.Comparator(fail, "itk"))  # type: ignore[arg-type]
    summary = evaluate(tmp_path / "out", method="affine", **write_known_pair(tmp_path / "pair"), **LIGHT)
    (pair,) = summary["pairs"]
    assert pair["failure"] == "the images do not overlap"
    assert pair["tre_mm_after"] == pytest.approx(pair["tre_mm_before"], abs=1e-4)
    assert "failed on 1 of 1" in (tmp_path / "out" / "table.md").read_text()


def test_displacements_that_are_not_finite_are_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from scripts.evaluation import comparators
    from scripts.evaluation.comparator_methods import Displacements

    def broken(moving: object, fixed: comparators.Volume, options: object) -> Displacements:
        return Displacements(torch.full((3, *fixed.values.shape), np.nan), None)

    monkeypatch.setitem(comparators.COMPARATORS, "affine", comparators.Comparator(broken, "itk"))
    summary = evaluate(tmp_path / "out", method="affine", **write_known_pair(tmp_path / "pair"), **LIGHT)
    assert "not finite" in summary["pairs"][0]["failure"]


def test_errors_of_the_choice_say_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from scripts.evaluation import comparators

    with pytest.raises(InputError, match=r"expected one of bundle, .*got 'ants'"):
        describe_method("ants")
    missing = comparators.Comparator(comparators.COMPARATORS["syn"].register, "no-such-package")
    monkeypatch.setitem(comparators.COMPARATORS, "syn", missing)
    with pytest.raises(InputError, match=r"needs the package no-such-package.*pip install .* requirements-dev"):
        describe_method("syn")
    with pytest.raises(InputError, match=r"unigradicon needs published weights: give --ckpt_path"):
        comparators.MethodInferer("unigradicon", None)  # type: ignore[arg-type]
    assert set(comparators.COMPARATORS) < set(METHODS)
