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
"""How good a network is on held-out pairs, on the network's grid: similarity, Dice, HD95, TRE, folding.

Figures at native resolution, as a user gets them, are inference's; these here are quick enough for each interval.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import ignite.distributed as idist
import numpy as np
import torch
from ignite.engine import Engine, Events
from ignite.metrics import Metric
from monai.metrics import compute_hausdorff_distance
from monai.transforms import Transform
from torch import Tensor

from scripts.geometry.composition import CompositeTransform
from scripts.geometry.coordinates import extent, identity_grid_like, sample
from scripts.geometry.grid_transform import GridTransform
from scripts.metrics import registration_metrics as metrics
from scripts.utils.errors import InputError
from scripts.utils.tensors import plain

FIGURES = ("similarity", "regularity", "dice", "hd95_mm", "tre_mm", "folding_percent")
HIGHER_IS_BETTER = ("dice",)
KEY_METRICS = ("similarity", "dice", "hd95_mm", "tre_mm")


class AddPairMetricsd(Transform):
    """Add ``metrics``: a number for each of :data:`FIGURES`, NaN where the pair lacks what it needs.

    Works on one decollated pair. Dice is the mean over the labels that both images have; HD95 (mm) the mean over those
    that are left after warping, both directions of the surface distance; TRE (mm) the mean over landmarks.

    Args:
        hd95: compute it; about a second a label at 175 x 175 x 175.
    """

    def __init__(self, hd95: bool = True) -> None:
        self.hd95 = hd95

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the data with ``metrics``, and ``warped_moving`` (1, D, H, W)."""
        result = dict(data)
        fields = [plain(field)[None].float() for field in data["pred"]["forward_fields"]]
        image = plain(data["image"])[None].float()
        points = CompositeTransform(fields).on_grid(image)
        displacement = points - identity_grid_like(image)
        ddf = (displacement * extent(displacement))[0]
        affines = [plain(data[f"{side}_affine"]).double() for side in ("fixed", "moving")]
        transform = GridTransform(ddf, *affines)
        found = dict.fromkeys(FIGURES, math.nan)
        terms = data["pred"]["terms"]
        found |= {name: float(terms[name]) for name in ("similarity", "regularity")}
        found["folding_percent"] = metrics.folding(transform)
        if "fixed_landmarks" in data and "moving_landmarks" in data:
            marks = (plain(data["fixed_landmarks"]), plain(data["moving_landmarks"]))
            found["tre_mm"] = float(metrics.target_registration_error_mm(transform, *marks).mean())
        if "fixed_label" in data and "moving_label" in data:
            found |= self._overlap(plain(data["fixed_label"]), plain(data["moving_label"]), points, affines[0])
        result["metrics"] = found
        result["warped_moving"] = sample(image[:, :1], points, "zeros")[0]
        return result

    def _overlap(self, fixed: Tensor, moving: Tensor, points: Tensor, affine: Tensor) -> dict[str, float]:
        labels = metrics.common_labels(fixed.numpy(), moving.numpy())
        if not labels:
            return {}
        warped = sample(moving[None].float(), points, mode="nearest")[0].to(fixed.dtype)
        dice = metrics.dice_per_label(fixed.numpy(), warped.numpy(), labels)
        figures = {"dice": float(np.mean(list(dice.values())))}
        if self.hd95:
            spacing = torch.linalg.vector_norm(affine[:3, :3], dim=0).tolist()
            distances = [_hd95(fixed == label, warped == label, spacing) for label in labels]
            finite = [distance for distance in distances if math.isfinite(distance)]
            if finite:
                figures["hd95_mm"] = float(np.mean(finite))
        return figures


def _hd95(fixed: Tensor, warped: Tensor, spacing: list[float]) -> float:
    if not warped.any():
        return math.nan
    pair = (warped[None].float(), fixed[None].float())
    return float(compute_hausdorff_distance(*pair, include_background=True, percentile=95, spacing=spacing))


class MeanFigure(Metric):
    """The mean of one figure over all pairs and processes, pairs without it left out; NaN if none has it.

    Args:
        name: of :data:`FIGURES`, or of a term of the objective; steps without that term are left out.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        super().__init__(output_transform=lambda output: output)

    def reset(self) -> None:
        """Forget all pairs."""
        self.total, self.count = 0.0, 0

    def update(self, output: Sequence[Mapping[str, Any]]) -> None:
        """Add the pairs of an engine's (decollated) output."""
        for item in output:
            found = item["metrics"] if "metrics" in item else item["pred"]["terms"]
            value = float(found.get(self.name, math.nan))
            if math.isfinite(value):
                self.total, self.count = self.total + value, self.count + 1

    def compute(self) -> float:
        """Return the mean over all processes."""
        sums = torch.as_tensor(idist.all_reduce(torch.tensor([self.total, float(self.count)], dtype=torch.float64)))
        return float(sums[0] / sums[1]) if sums[1] > 0 else math.nan


def available_figures(dataset: Any, hd95: bool = True) -> tuple[str, ...]:
    """Return the figures that a validation data set allows."""
    needs = {"dice": dataset.has_labels, "hd95_mm": dataset.has_labels and hd95, "tre_mm": dataset.has_landmarks}
    return tuple(name for name in FIGURES if needs.get(name, True))


def mean_figures(names: Sequence[str], without: str = "", prefix: str = "") -> dict[str, MeanFigure]:
    """Return a metric for each name but ``without``, called prefix + name."""
    return {prefix + name: MeanFigure(name) for name in names if name != without}


def choose_key_metric(name: str, dataset: Any, hd95: bool = True) -> str:
    """Return the figure by which the best checkpoint is chosen.

    Args:
        name: one of :data:`KEY_METRICS`, or "auto": TRE where a validation pair has landmarks, else Dice where one has
            labels, else the similarity.
        dataset: :class:`scripts.training.pair_dataset.PairDataset` of the validation.
        hd95: whether it is computed.

    Raises:
        InputError: an unknown name, or no validation pair has what it needs.
    """
    if name not in ("auto", *KEY_METRICS):
        raise InputError(f"key_metric: expected auto or one of {', '.join(KEY_METRICS)}, got '{name}'")
    available = available_figures(dataset, hd95)
    if name == "auto":
        return next(figure for figure in ("tre_mm", "dice", "similarity") if figure in available)
    if name not in available and len(dataset):
        raise InputError(
            f"key_metric {name}: no pair of val_datalist has what it needs in both images, or --hd95 is off; use"
            " similarity, or add it"
        )
    return name


def is_better(name: str) -> Callable[[float, float], bool]:
    """Return (new, best so far) -> whether the new value of a figure is better, for MONAI's ``metric_cmp_fn``."""
    sign = 1 if name in HIGHER_IS_BETTER else -1
    return lambda new, best: sign * new > sign * best if math.isfinite(best) else math.isfinite(new)


def never_best(new: float, best: float) -> bool:
    """Return False: the means of a training epoch choose no checkpoint, so MONAI shall not announce a best one."""
    return False


class BroadcastBuffers:
    """Give all processes the batch-norm statistics of the first before an evaluation, which they share.

    Args:
        network: that is evaluated.
    """

    def __init__(self, network: torch.nn.Module) -> None:
        self.network = network

    def attach(self, engine: Engine) -> None:
        """Attach to an evaluator."""
        engine.add_event_handler(Events.STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Copy the buffers; does nothing in a single process."""
        if idist.get_world_size() > 1:
            for buffer in self.network.buffers():
                torch.distributed.broadcast(buffer, src=0)
