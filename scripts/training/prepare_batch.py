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
"""What MONAI's stock trainer and evaluator need to know of pairs: how a batch is prepared, what a step computes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from monai.engines.utils import PrepareBatch
from monai.inferers import Inferer
from monai.transforms import Randomizable
from torch import Tensor

from scripts.geometry.composition import CompositeTransform
from scripts.losses.gradicon import GradICONLoss, LossTerms

VOLUMES = ("image", "similarity", "mask", "label")


class PrepareTrainingPair(PrepareBatch):
    """Bring a batch of :class:`scripts.training.pair_dataset.PairDataset` to the device and augment each pair there.

    Args:
        augmentation: randomizable transform of one pair; it is seeded by the pair's ``seed``, so that a resumed run and
            any number of processes do the same.
        with_labels: hand labels on to the objective.
    """

    def __init__(self, augmentation: Any = None, with_labels: bool = True) -> None:
        self.augmentation = augmentation
        self.parts = VOLUMES if with_labels else VOLUMES[:-1]

    def __call__(
        self,
        batchdata: dict[str, Any],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **kwargs: Any,
    ) -> tuple[Tensor, dict[str, Any], tuple[()], dict[str, Any]]:
        """Return (image (B, 2, D, H, W), no targets, (), what else the inferer takes)."""
        names = [f"{side}_{part}" for side in ("fixed", "moving") for part in self.parts]
        pairs = []
        for index, seed in enumerate(batchdata["seed"].tolist()):
            pair = {
                name: batchdata[name][index].to(device=device, non_blocking=non_blocking)
                for name in names
                if name in batchdata
            }
            if self.augmentation is not None:
                cast(Randomizable, self.augmentation).set_random_state(seed=seed % 2**32)
                pair = self.augmentation(pair)
            pairs.append(pair)
        stacked = {name: torch.stack([pair[name] for pair in pairs]) for name in pairs[0]}
        image = torch.cat([stacked.pop("moving_image"), stacked.pop("fixed_image")], dim=1)
        # one noise for all pairs of a batch, as the reference
        return image, {}, (), {**stacked, "seed": int(batchdata["seed"][0])}


class PairInferer(Inferer):
    """Run the network in both directions and compute the objective: one step's work but for the gradients.

    Args:
        objective: :class:`scripts.losses.gradicon.GradICONLoss`, or another with its arguments.
    """

    def __init__(self, objective: GradICONLoss) -> None:
        super().__init__()
        self.objective = objective

    def __call__(self, inputs: Tensor, network: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Register a batch and measure the result.

        Args:
            inputs: (B, 2, D, H, W) in [0, 1], channel 0 moving, channel 1 fixed.
            network: :class:`scripts.training.pair_network.PairNetwork`, also inside DistributedDataParallel.
            args: unused.
            kwargs: ``seed`` of the noise in the regularity, and by side ``*_similarity`` (images to compare instead of
                the inputs), ``*_mask``, ``*_label``.

        Returns:
            ``forward_fields`` and ``inverse_fields`` (detached), and ``terms``: the objective's terms by name, each
            (B,) with the batch's value, ``loss`` with its graph; ``dice_loss`` only where the objective has a Dice
            term and a pair of the batch has labels in common.
        """
        fields = network(inputs)
        # under autocast the network is in half precision; the objective, with its differences of 0.001, is not
        with torch.autocast(inputs.device.type, enabled=False):
            transforms = [CompositeTransform([field.float() for field in direction]) for direction in fields]
            moving = kwargs.get("moving_similarity", inputs[:, :1]).float()
            fixed = kwargs.get("fixed_similarity", inputs[:, 1:]).float()
            generator = torch.Generator(device=inputs.device).manual_seed(int(kwargs.get("seed", 0)))
            regions = {name: kwargs.get(name) for name in _REGIONS}
            terms: LossTerms = self.objective(*transforms, moving, fixed, generator=generator, **regions)
        named = terms._asdict()
        dice = named.pop("dice")  # of LossTerms: 0 also where there is none
        if getattr(self.objective, "dice_weight", 0) > 0 and _has_labels(kwargs):
            named["dice_loss"] = dice
        batch = {name: value.float().expand(len(inputs)) for name, value in named.items()}
        forward_fields, inverse_fields = ([field.detach() for field in direction] for direction in fields)
        return {"forward_fields": forward_fields, "inverse_fields": inverse_fields, "terms": batch}


_REGIONS = ("moving_mask", "fixed_mask", "moving_label", "fixed_label")


def _has_labels(kwargs: Mapping[str, Any]) -> bool:
    """Tell whether both sides of a batch have labels other than 0; training hands on those in common only."""
    labels = [kwargs.get(name) for name in ("moving_label", "fixed_label")]
    return all(label is not None and bool((label != 0).any()) for label in labels)


def total_loss(prediction: Mapping[str, Any], targets: Any = None) -> Tensor:
    """Return the loss of :class:`PairInferer`'s result, the trainer's ``loss_function``."""
    return prediction["terms"]["loss"]


def terms_of(output: Any) -> dict[str, float]:
    """Return the objective's terms of an engine's output, as plain numbers: for logs."""
    items = output if isinstance(output, (list, tuple)) else [output]
    terms = items[0]["pred"]["terms"]
    return {name: float(torch.as_tensor(value).mean()) for name, value in terms.items()}
