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
"""The inferer of one registration: network, start search, instance optimization -> displacement fields both ways."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from monai.engines.utils import PrepareBatch
from monai.inferers import Inferer
from monai.utils import convert_to_tensor
from torch import Tensor, nn

from scripts.geometry.composition import transform_on_grid
from scripts.geometry.coordinates import extent, identity_grid_like, resample_grid, sample
from scripts.geometry.image_pair import ImagePair, Registration
from scripts.inferers.field_optimization import FieldObjective, Level, optimize_field, refine_levels
from scripts.inferers.network_optimization import NetworkResult, optimize_network
from scripts.inferers.start_search import Start, search_start
from scripts.losses.gradicon import GradICONLoss
from scripts.losses.similarity import create_similarity
from scripts.networks.exported_network import ExportedNetwork, refuse_what_needs_weights
from scripts.networks.registration_network import IdentityNetwork
from scripts.utils.errors import InputError, describe_memory_error
from scripts.utils.memory import keep_freed_memory, release_freed_memory

logger = logging.getLogger(__name__)
OPTIMIZATIONS = ("off", "field", "network")


class PreparePair(PrepareBatch):
    """Hand the images of a batch to the inferer, the rest of the pair as keyword arguments."""

    def __call__(
        self,
        batchdata: dict[str, Any],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **kwargs: Any,
    ) -> tuple[Tensor, dict[str, Any], tuple[()], dict[str, Any]]:
        """Return (image (1, 2, D, H, W), no targets, (), the fields of :class:`ImagePair` beside the images)."""
        moving, fixed = batchdata["moving_image"], batchdata["fixed_image"]
        if moving.shape[0] != 1:
            raise InputError(f"batch_size must be 1, images differ in their grids; got a batch of {moving.shape[0]}")
        extras: dict[str, Any] = {
            "moving_affine": torch.as_tensor(moving.affine).reshape(4, 4).double(),
            "fixed_affine": torch.as_tensor(fixed.affine).reshape(4, 4).double(),
        }
        optional = {
            "moving_mask": "moving_loss_mask",
            "fixed_mask": "fixed_loss_mask",
            "moving_label": "moving_network_label",
            "fixed_label": "fixed_network_label",
        }
        for name, key in optional.items():
            if key in batchdata:
                extras[name] = _plain(batchdata[key]).to(device=device, non_blocking=non_blocking)
        image = torch.cat([_plain(moving), _plain(fixed)], dim=1).to(device=device, non_blocking=non_blocking)
        return image, {}, (), extras


class FieldSettings(NamedTuple):
    """Of optimization ``field``."""

    levels: Mapping[str, Sequence[Sequence[int]]] = {"default": [[32, 60], [64, 60], [96, 40]]}
    """[size, steps] of each level by preset."""
    learning_rate: float = 0.005
    """Normalized units."""
    sigma: float = 2.0
    """Window of lncc and lncc2, voxels of each level's grid."""


class NetworkSettings(NamedTuple):
    """Of optimization ``network``."""

    steps: int = 50
    learning_rate: float = 2e-5
    sigma: float = 5.0
    """Window of lncc and lncc2, and of the reported similarity, voxels of the network's grid."""


class RegistrationInferer(Inferer):
    """Register one pair: zero-shot, or with one of two instance optimizations behind the same interface.

    - ``off``: the network's transforms as they are;
    - ``field``: two displacement fields are optimized, from the network's transforms, or from another start where the
      file headers offer a better one, or there is no network (:mod:`scripts.inferers.field_optimization`,
      :mod:`scripts.inferers.start_search`);
    - ``network``: all weights are optimized for the pair and restored (:mod:`scripts.inferers.network_optimization`).

    Args:
        optimization: one of the above.
        similarity: lncc, lncc2, mind or nmi.
        lambda_gradicon: weight of the GradICON regularity.
        field: fields of :class:`FieldSettings` for ``field``; those left out have their defaults.
        preset: a key of its levels.
        resolution: voxels along each axis to which ``field`` goes on beyond the preset's last level; the images must
            have been prepared at it.
        resolution_steps: of each level that this adds.
        network_optimization: fields of :class:`NetworkSettings` for ``network``, likewise.
        mass_conservation: multiply warped intensities by the Jacobian determinant (CT of the lung).
        dice_weight: weight of the Dice loss of the labels; 0 is off.
        seed: of the noise in ``network``; ``field`` has no random part.
        inverse: False leaves out the inverse transform where it costs time of its own (``off``).
        activation_checkpointing: of ``network``: see
            :func:`scripts.networks.activation_checkpointing.choose_recomputing`.
        amp: compute one pass of the network (``off``, or the start of ``field``) in bfloat16; coordinates stay in
            float32. ``network`` does not: its steps are smaller than the rounding.
        progress: show a progress bar with the terms.
        oom_fallback: when memory runs out, return the result of the levels before (``field``), or compute activations
            twice (``network``), instead of failing.
    """

    def __init__(
        self,
        optimization: str = "field",
        similarity: str = "lncc",
        lambda_gradicon: float = 1.5,
        field: Mapping[str, Any] | None = None,
        preset: str = "default",
        resolution: int | None = None,
        resolution_steps: int = 20,
        network_optimization: Mapping[str, Any] | None = None,
        mass_conservation: bool = False,
        dice_weight: float = 0.0,
        seed: int = 0,
        inverse: bool = True,
        amp: bool = False,
        activation_checkpointing: bool | str = "auto",
        progress: bool = True,
        oom_fallback: bool = False,
    ) -> None:
        super().__init__()
        optimization = "off" if optimization is False else str(optimization)  # YAML reads a bare off as False
        if optimization not in OPTIMIZATIONS:
            raise InputError(f"optimization: expected one of {', '.join(OPTIMIZATIONS)}, got '{optimization}'")
        of_field, of_network = FieldSettings(**(field or {})), NetworkSettings(**(network_optimization or {}))
        if preset not in of_field.levels:
            raise InputError(f"preset: expected one of {', '.join(of_field.levels)}, got '{preset}'")
        if optimization == "network" and int(of_network.steps) < 1:
            raise InputError(
                f"network_optimization::steps: expected at least 1, got {of_network.steps}; optimization 'off' is"
                " zero-shot"
            )
        if lambda_gradicon < 0 or of_network.learning_rate <= 0 or of_field.learning_rate <= 0:
            raise InputError(
                "lambda_gradicon must not be negative and learning rates must be positive, got"
                f" {lambda_gradicon}, {of_network.learning_rate} and {of_field.learning_rate}"
            )
        self.optimization = optimization
        self.levels = [Level(int(size), int(count)) for size, count in of_field.levels[preset]]
        if resolution is not None:
            if optimization != "field":
                raise InputError(
                    f"resolution: only optimization 'field' refines beyond the network's grid, got '{optimization}'"
                )
            self.levels = refine_levels(self.levels, int(resolution), int(resolution_steps))
        self.field_learning_rate = of_field.learning_rate
        self.steps = int(of_network.steps)
        self.learning_rate = of_network.learning_rate
        self.seed = int(seed)
        self.inverse = inverse or optimization != "off"
        self.amp = amp
        self.activation_checkpointing = activation_checkpointing
        self.progress = progress
        self.oom_fallback = oom_fallback
        self.similarity = create_similarity(similarity, of_network.sigma)
        # at every second voxel: a quarter less time a step, the accuracy stays (docs/performance.md)
        stride = 2 if of_field.sigma >= 2 else 1
        field_similarity = create_similarity(similarity, of_field.sigma, stride, flat_correlation=1.0)
        self.field_objective = FieldObjective(field_similarity, lambda_gradicon, mass_conservation, dice_weight)
        self.loss = GradICONLoss(self.similarity, lambda_gradicon, mass_conservation, dice_weight)

    def check_network(self, network: Any) -> None:
        """Refuse a network that the optimization can't work with; a workflow calls this before it reads anything.

        Raises:
            InputError: there is none and the optimization needs one, or it is an exported one whose weights are needed.
        """
        if isinstance(network, IdentityNetwork) and self.optimization != "field":
            raise InputError(
                f"optimization '{self.optimization}' needs a network: choose --model or --ckpt_path, or"
                " --optimization field"
            )
        if isinstance(network, ExportedNetwork):
            refuse_what_needs_weights(self.optimization, self.amp)

    def __call__(self, inputs: Tensor, network: Any, *args: Any, **kwargs: Any) -> Registration:
        """Register a pair.

        Args:
            inputs: (1, 2, D, H, W) in [0, 1], channel 0 moving, channel 1 fixed.
            network: :class:`scripts.networks.registration_network.RegistrationNetwork` or its training-free stand-in.
            args: unused.
            kwargs: the fields of :class:`ImagePair` beside the images.

        Returns:
            ``forward_ddf`` (1, 3, d, h, w), voxels of its grid, fixed grid -> moving grid; ``inverse_ddf`` likewise
            with the pair swapped, if it was asked for; ``terms``: figures by name, each a list with one number or text.
            The grid of the ddfs is that of the last level for ``field``, else the network's; both span the same field
            of view (the end voxel centers coincide).
        """
        self.check_network(network)
        # the network has its own switch; coordinates and objectives would suffer from half precision
        with keep_freed_memory(), torch.autocast(inputs.device.type, enabled=False):
            return self._register(network, ImagePair(inputs[:, :1], inputs[:, 1:], **kwargs))

    def _register(self, network: Any, pair: ImagePair) -> Registration:
        began = time.perf_counter()
        terms: dict[str, Any] = {}
        if self.optimization == "network":
            *ddfs, terms = self._optimize_network(network, pair)
        else:
            start = None
            if not isinstance(network, IdentityNetwork):
                start = Start(_network_displacement(network, pair, self.inverse, self.amp), "network")
            if start is None or self.optimization == "field":
                start = search_start(
                    pair, self.field_objective, self.field_learning_rate, None if start is None else start.displacement
                )
            displacement, terms["start"] = start
            if self.optimization == "field":
                result = optimize_field(
                    pair,
                    displacement,
                    self.field_objective,
                    self.levels,
                    learning_rate=self.field_learning_rate,
                    progress=self.progress,
                    oom_fallback=self.oom_fallback,
                )
                displacement = result.displacement
                terms |= {"field_similarity": result.similarity, "regularity": result.regularity}
                if result.size < self.levels[-1].size:
                    terms["out_of_memory_beyond"] = result.size
            ddfs = list((displacement * extent(displacement)).split(1))
        terms["seconds_registration"] = time.perf_counter() - began
        terms |= self._figures(pair, ddfs[0])
        # lists of one: the engine takes batches apart
        batched = {name: [value] for name, value in terms.items()}
        found: Registration = {"forward_ddf": ddfs[0], "terms": batched}
        if len(ddfs) > 1:
            found["inverse_ddf"] = ddfs[1]
        return found

    def _optimize_network(self, network: nn.Module, pair: ImagePair) -> tuple[Tensor, Tensor, dict[str, Any]]:
        pair = _at_network_shape(network, pair)
        try:
            result = self._steps_of_network(network, pair, self.activation_checkpointing)
        except (MemoryError, RuntimeError) as error:
            if not self.oom_fallback or self.activation_checkpointing is True or describe_memory_error(error) is None:
                raise
            result = None  # what the error holds on to is only free after this block
        if result is None:
            logger.warning("out of memory: once more with activation_checkpointing True")
            release_freed_memory()
            result = self._steps_of_network(network, pair, True)
        return (
            result.forward_ddf,
            result.inverse_ddf,
            {"start": "network", "regularity": float(result.terms.regularity)},
        )

    def _steps_of_network(self, network: nn.Module, pair: ImagePair, checkpointing: bool | str) -> NetworkResult:
        return optimize_network(
            network,
            pair.moving,
            pair.fixed,
            self.loss,
            self.steps,
            self.learning_rate,
            self.seed,
            moving_mask=pair.moving_mask,
            fixed_mask=pair.fixed_mask,
            moving_label=pair.moving_label,
            fixed_label=pair.fixed_label,
            activation_checkpointing=checkpointing,
            progress=self.progress,
        )

    @torch.no_grad()
    def _figures(self, pair: ImagePair, forward_ddf: Tensor) -> dict[str, float]:
        """Return the similarity of moving and fixed, field of view onto field of view, and after the registration."""
        points = identity_grid_like(pair.fixed) + resample_grid(forward_ddf / extent(forward_ddf), pair.fixed.shape[2:])
        warped = sample(pair.moving, points, "zeros")
        compare = self.similarity.to_target(pair.fixed, pair.fixed_mask)
        return {"similarity_before": float(compare(pair.moving)), "similarity_after": float(compare(warped))}


def _at_network_shape(network: nn.Module, pair: ImagePair) -> ImagePair:
    """Return the pair on the grid that the network's weights are made for."""
    shape = tuple(network.spatial_shape)  # type: ignore[arg-type]
    return pair if shape == tuple(pair.fixed.shape[2:]) else pair.shrink(shape)


@torch.no_grad()
def _network_displacement(network: nn.Module, pair: ImagePair, inverse: bool, amp: bool) -> Tensor:
    """Return the network's displacements on its own grid, forward, then inverse if asked for.

    Returns:
        (1 or 2, 3, D, H, W), normalized units.
    """
    pair = _at_network_shape(network, pair)
    both = []
    for moving, fixed in ((pair.moving, pair.fixed), (pair.fixed, pair.moving))[: 1 + inverse]:
        with torch.autocast(moving.device.type, torch.bfloat16, enabled=amp):
            points = transform_on_grid(network.register(moving, fixed), fixed)  # type: ignore[operator]
        both.append(points.sub_(identity_grid_like(points)))
    return torch.cat(both)


def _plain(image: Tensor) -> Tensor:
    """Return a plain tensor: metadata would follow each of the many operations."""
    return convert_to_tensor(image, track_meta=False)
