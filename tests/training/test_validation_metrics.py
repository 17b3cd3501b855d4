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
"""Figures of validation pairs: known answers, MONAI's own, and how they are averaged and compared."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from monai.metrics import compute_dice

from scripts.data.synthetic import SyntheticPairs
from scripts.geometry.coordinates import extent
from scripts.training.validation_metrics import (
    AddPairMetricsd,
    MeanFigure,
    available_figures,
    choose_key_metric,
    is_better,
    mean_figures,
)
from scripts.utils.errors import InputError

SHAPE = (20, 22, 24)
SHIFT = (2, -3, 1)  # voxels, from fixed to moving


def item(shift: tuple[int, int, int], **entries: Any) -> dict[str, Any]:
    """Return a decollated validation pair registered by a shift."""
    field = torch.tensor(shift).view(1, 3, 1, 1, 1).expand(1, 3, *SHAPE).float()
    moving = torch.rand(1, *SHAPE)
    return {
        "image": torch.cat([moving, torch.roll(moving, [-s for s in SHIFT], (1, 2, 3))]),
        "pred": {"forward_fields": [(field / extent(field))[0]], "terms": {"similarity": 0.25, "regularity": 0.5}},
        "fixed_affine": torch.diag(torch.tensor([2.0, 3.0, 4.0, 1.0])),
        "moving_affine": torch.diag(torch.tensor([2.0, 3.0, 4.0, 1.0])),
        **entries,
    }


def test_a_known_shift_has_known_errors() -> None:
    fixed = torch.tensor([[10.0, 20.0, 30.0], [14.0, 24.0, 40.0]])
    moving = fixed + torch.tensor(SHIFT) * torch.tensor([2.0, 3.0, 4.0])
    marks = {"fixed_landmarks": fixed, "moving_landmarks": moving}
    assert AddPairMetricsd()(item(SHIFT, **marks))["metrics"]["tre_mm"] == pytest.approx(0, abs=1e-4)
    before = AddPairMetricsd()(item((0, 0, 0), **marks))["metrics"]
    assert before["tre_mm"] == pytest.approx(math.sqrt(4**2 + 9**2 + 4**2), rel=1e-5)
    assert before["folding_percent"] == 0
    assert (before["similarity"], before["regularity"]) == (0.25, 0.5)
    assert math.isnan(before["dice"])


def boxes() -> tuple[torch.Tensor, torch.Tensor]:
    moving = torch.zeros(1, *SHAPE, dtype=torch.int32)
    moving[:, 6:12, 6:12, 6:12] = 1
    moving[:, 12:15, 6:12, 6:12] = 7
    return moving, torch.roll(moving, [-s for s in SHIFT], (1, 2, 3))


def test_labels_that_match_have_dice_one_and_distance_zero() -> None:
    moving, fixed = boxes()
    found = AddPairMetricsd()(item(SHIFT, moving_label=moving, fixed_label=fixed))["metrics"]
    assert found["dice"] == 1
    assert found["hd95_mm"] == 0


def test_dice_is_that_of_monai_and_hd95_a_known_distance() -> None:
    moving, _ = boxes()
    fixed = torch.roll(moving, 2, 3)  # by two voxels of 4 mm
    found = AddPairMetricsd()(item((0, 0, 0), moving_label=moving, fixed_label=fixed))["metrics"]
    one_hot = [torch.stack([(label == value)[0] for value in (1, 7)])[None] for label in (moving, fixed)]
    assert found["dice"] == pytest.approx(float(compute_dice(*one_hot).mean()))
    assert found["hd95_mm"] == pytest.approx(8.0)
    without = AddPairMetricsd(hd95=False)(item((0, 0, 0), moving_label=moving, fixed_label=fixed))["metrics"]
    assert math.isnan(without["hd95_mm"])


def test_the_exact_transform_of_a_synthetic_pair_has_no_error() -> None:
    """The inverse map is known exactly; with the roles exchanged it is a forward transform."""
    pair = SyntheticPairs(SHAPE, corruption=0.0)(4)
    ddf = pair.inverse_ddf[None]
    swapped = {
        **item((0, 0, 0)),
        "image": torch.cat([pair.fixed, pair.moving]),
        "pred": {"forward_fields": [(ddf / extent(ddf))[0]], "terms": {"similarity": 0.0, "regularity": 0.0}},
        "fixed_landmarks": pair.moving_points * torch.tensor([2.0, 3.0, 4.0]),
        "moving_landmarks": pair.fixed_points * torch.tensor([2.0, 3.0, 4.0]),
        "fixed_label": pair.moving_label.int(),
        "moving_label": pair.fixed_label.int(),
    }
    found = AddPairMetricsd(hd95=False)(swapped)["metrics"]
    assert found["tre_mm"] < 0.1
    assert found["dice"] > 0.7


def test_the_warped_image_is_the_fixed_one_after_a_known_shift() -> None:
    result = AddPairMetricsd()(item(SHIFT))
    inner = (slice(0, 1), *(slice(4, -4),) * 3)
    torch.testing.assert_close(result["warped_moving"][inner], result["image"][1:][inner], atol=1e-4, rtol=0)


def test_the_mean_leaves_out_what_is_missing() -> None:
    metric = MeanFigure("dice")
    metric.update([{"metrics": {"dice": 0.5}}, {"metrics": {"dice": math.nan}}])
    metric.update([{"metrics": {"dice": 0.7}}])
    assert metric.compute() == pytest.approx(0.6)
    metric.reset()
    assert math.isnan(metric.compute())
    metric.update([{"pred": {"terms": {"dice": 2.0}}}])
    assert metric.compute() == 2.0


def test_names_of_metrics() -> None:
    assert list(mean_figures(("dice", "tre_mm"), without="dice", prefix="val_")) == ["val_tre_mm"]


@pytest.mark.parametrize(
    ("name", "new", "best", "expected"),
    [
        ("dice", 0.8, 0.7, True),
        ("dice", 0.6, 0.7, False),
        ("tre_mm", 1.0, 2.0, True),
        ("tre_mm", 3.0, 2.0, False),
        ("tre_mm", 3.0, math.nan, True),
        ("tre_mm", math.nan, 2.0, False),
    ],
)
def test_better_is_higher_for_dice_and_lower_for_errors(name: str, new: float, best: float, expected: bool) -> None:
    assert is_better(name)(new, best) is expected


class Held(SimpleNamespace):
    def __len__(self) -> int:
        return 1


def test_the_key_metric_is_what_the_data_allow() -> None:
    landmarks = Held(has_landmarks=True, has_labels=True)
    labels, nothing = Held(has_landmarks=False, has_labels=True), Held(has_landmarks=False, has_labels=False)
    assert [choose_key_metric("auto", data) for data in (landmarks, labels, nothing)] == [
        "tre_mm",
        "dice",
        "similarity",
    ]
    assert choose_key_metric("hd95_mm", labels) == "hd95_mm"
    assert available_figures(nothing) == ("similarity", "regularity", "folding_percent")
    with pytest.raises(InputError, match="no pair of val_datalist"):
        choose_key_metric("dice", nothing)
    with pytest.raises(InputError, match="expected auto"):
        choose_key_metric("accuracy", labels)
