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
"""Instance optimization, mode ``network``: adapt all weights to one pair, take its result, put the weights back."""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from monai.utils import convert_to_tensor
from torch import Tensor, nn
from tqdm import tqdm

from scripts.geometry.composition import CompositeTransform, transform_on_grid
from scripts.geometry.coordinates import extent, identity_grid_like
from scripts.losses.gradicon import GradICONLoss, LossTerms
from scripts.networks.activation_checkpointing import choose_recomputing
from scripts.networks.registration_network import RegistrationNetwork
from scripts.networks.unet import UNet
from scripts.utils.errors import InputError
from scripts.utils.memory import release_freed_memory


class NetworkResult(NamedTuple):
    """What :func:`optimize_network` returns."""

    forward_ddf: Tensor
    """(B, 3, D, H, W), voxels, from the fixed to the moving grid."""
    inverse_ddf: Tensor
    """(B, 3, D, H, W), voxels, from the moving to the fixed grid."""
    terms: LossTerms
    """The objective with the optimized weights."""


def optimize_network(
    network: nn.Module,
    moving: Tensor,
    fixed: Tensor,
    loss: GradICONLoss,
    steps: int = 50,
    learning_rate: float = 2e-5,
    seed: int = 0,
    *,
    moving_mask: Tensor | None = None,
    fixed_mask: Tensor | None = None,
    moving_label: Tensor | None = None,
    fixed_label: Tensor | None = None,
    activation_checkpointing: bool | str = "auto",
    progress: bool = True,
) -> NetworkResult:
    """Minimize the objective of one pair over all weights of the network (Adam, batch norm in eval mode).

    The network has its former weights and mode again afterwards, also after an error or an interrupt: every pair starts
    from the same weights. The random state of the process is not touched. docs/performance.md has time and memory.

    Args:
        network: :class:`scripts.networks.registration_network.RegistrationNetwork` on the device of the images.
        moving: (B, 1, D, H, W) in [0, 1].
        fixed: same shape.
        loss: the objective.
        steps: of Adam; 0 evaluates the network as it is.
        learning_rate: of Adam.
        seed: of the noise in the regularity; the same seed gives the same result.
        moving_mask: see :class:`scripts.losses.gradicon.GradICONLoss`, as are the next three.
        fixed_mask: likewise.
        moving_label: likewise.
        fixed_label: likewise.
        activation_checkpointing: see :func:`scripts.networks.activation_checkpointing.choose_recomputing`.
        progress: show a progress bar with the terms.

    Raises:
        InputError: a network without weights, numbers out of range, or an objective that is no longer finite.
    """
    if not isinstance(network, RegistrationNetwork):
        raise InputError("optimization 'network' needs a network: choose a model or ckpt_path, or optimization field")
    if steps < 0 or learning_rate <= 0:
        raise InputError(
            f"optimization: steps must be >= 0 and learning_rate > 0, got steps {steps}, learning_rate {learning_rate}"
        )
    pair = (_plain(moving), _plain(fixed))
    extras: dict[str, Any] = {"moving_mask": moving_mask, "fixed_mask": fixed_mask}
    extras |= {"moving_label": moving_label, "fixed_label": fixed_label}
    extras = {name: _plain(value) for name, value in extras.items() if value is not None}
    generator = torch.Generator().manual_seed(seed)  # on the CPU: the same noise on every device

    weights = {name: value.detach().clone() for name, value in network.state_dict().items()}
    trained = {name: parameter.requires_grad for name, parameter in network.named_parameters()}
    was_training = network.training
    unets = [cast(UNet, unet) for unet in network.unets]
    recomputed = [unet.recomputes for unet in unets]
    recomputing = choose_recomputing(activation_checkpointing, network, pair[0].shape[2:], pair[0].device, len(pair[0]))
    try:
        network.eval().requires_grad_(True)
        for unet in unets:
            unet.recomputes = recomputing
        optimizer = torch.optim.Adam(network.parameters(), lr=learning_rate)
        # the caller may be an evaluator under no_grad
        with torch.enable_grad(), tqdm(total=steps, desc="network", disable=not progress) as bar:
            for _ in range(steps):
                terms = optimization_step(network, *pair, loss, optimizer, recomputing, generator=generator, **extras)
                _require_finite(terms, bar.n)  # the weights are restored anyway
                bar.set_postfix({name: f"{value:.4g}" for name, value in terms.as_floats().items()}, refresh=False)
                bar.update()
        optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            transforms = _register_both(network, *pair)
            terms = loss(*transforms, *pair, generator=generator, **extras)
            _require_finite(terms, steps)
            grid = identity_grid_like(pair[0])
            ddfs = [(transform_on_grid(transform, pair[0]) - grid) * extent(grid) for transform in transforms]
        return NetworkResult(ddfs[0], ddfs[1], terms)
    finally:
        network.load_state_dict(weights)
        network.train(was_training)
        for unet, before in zip(unets, recomputed, strict=True):
            unet.recomputes = before
        for name, parameter in network.named_parameters():
            parameter.requires_grad_(trained[name])
            parameter.grad = None


def optimization_step(
    network: RegistrationNetwork,
    moving: Tensor,
    fixed: Tensor,
    loss: GradICONLoss,
    optimizer: torch.optim.Optimizer,
    recomputing: bool = False,
    **arguments: Any,
) -> LossTerms:
    """Make one step of :func:`optimize_network` and return the objective before it.

    Args:
        network: whose weights the optimizer changes.
        moving: (B, 1, D, H, W) in [0, 1].
        fixed: same shape.
        loss: the objective.
        optimizer: of all weights.
        recomputing: keep little in memory; the UNets' ``recomputes`` is to be set by the caller.
        arguments: further ones of the objective.
    """
    optimizer.zero_grad(set_to_none=True)
    transforms = _register_both(network, moving, fixed)
    if recomputing:
        _keep_memory_low(transforms)
    terms = loss(*transforms, moving, fixed, recompute=recomputing, **arguments)
    terms.loss.backward()
    optimizer.step()
    return terms


Transforms = tuple[CompositeTransform, CompositeTransform]


def _register_both(network: RegistrationNetwork, moving: Tensor, fixed: Tensor) -> Transforms:
    return network.register(moving, fixed), network.register(fixed, moving)


def _keep_memory_low(transforms: Transforms) -> None:
    """Give back what the last part of a step has freed, now and when the gradients of the objective are there."""

    def release(_: Tensor) -> None:
        release_freed_memory()

    release_freed_memory()
    for transform in transforms:
        transform.fields[-1].register_hook(release)


def _plain(image: Tensor) -> Tensor:
    """Return a plain tensor: metadata would follow each of the many operations."""
    return convert_to_tensor(image, track_meta=False).detach()


def _require_finite(terms: LossTerms, step: int) -> None:
    if not torch.isfinite(terms.loss):
        raise InputError(
            f"optimization: the objective became {terms.as_floats()['loss']} at step {step};"
            " lower learning_rate or check the images"
        )
