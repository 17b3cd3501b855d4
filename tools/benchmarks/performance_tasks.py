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
"""The work that :mod:`tools.benchmarks.performance` measures, each as a function of one process."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

Work = Callable[[], Any]
REFERENCE, HERE = "reference", "here"
# variants of each task, the one to compare with first
TASKS: dict[str, tuple[str, ...]] = {
    "forward": (REFERENCE, HERE),  # network and map on the grid, forward direction only
    "register": (REFERENCE, HERE),  # both directions, the objective, both transforms for ITK: register_pair
    "io_step": (REFERENCE, HERE, "here, all kept"),  # of instance optimization of the network, never in bfloat16
    "io_50_steps": (REFERENCE, HERE),
    "training_step": (REFERENCE, HERE, "here, all kept"),
    "lncc": (REFERENCE, HERE),  # forward and backward
}
STEPS = ("io_step", "training_step", "lncc")  # the second run counts: they come in numbers


def measure(task: str, variant: str, size: int, device: str, precision: str) -> dict[str, float]:
    """Do the work once, or twice if it is a step; return seconds, CPU seconds, peak GB and page faults of the last."""
    torch.manual_seed(0)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"
    pair = [image.to(device) for image in torch.rand(2, 1, 1, size, size, size)]
    make = _reference if variant == REFERENCE else _here
    work = make(task, pair, variant, precision == "bf16")
    kept: Any = nullcontext()
    if variant != REFERENCE and task != "register":  # which does it itself
        from scripts.utils.memory import keep_freed_memory

        kept = keep_freed_memory()
    found = {}
    with kept:
        for _ in range(1 + (task in STEPS)):
            found = _timed(work, device)
    return found


def _timed(work: Work, device: str) -> dict[str, float]:
    before = resource.getrusage(resource.RUSAGE_SELF)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
        events[0].record()
        work()
        events[1].record()
        torch.cuda.synchronize()
        seconds = events[0].elapsed_time(events[1]) / 1000
    else:
        began = time.perf_counter()
        work()
        seconds = time.perf_counter() - began
    after = resource.getrusage(resource.RUSAGE_SELF)
    memory = torch.cuda.max_memory_allocated() if device == "cuda" else after.ru_maxrss * 1024
    return {
        "seconds": seconds,
        "cpu_seconds": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        "gigabytes": memory / 1e9,
        "page_faults": after.ru_minflt - before.ru_minflt,
    }


def _reference(task: str, pair: Sequence[Tensor], variant: str, amp: bool) -> Work:
    import icon_registration as icon
    import icon_registration.itk_wrapper
    import itk
    import unigradicon

    icon.config.device = pair[0].device
    if task == "lncc":
        return _similarity_step(icon.LNCC(sigma=5), pair)
    shape = tuple(pair[0].shape)
    model = unigradicon.make_network(shape, include_last_step=True).to(pair[0].device).eval()
    _randomize([module.lastConv for module in model.modules() if hasattr(module, "lastConv")])
    if task == "forward":
        model.identity_map.isIdentity = True
        return lambda: _without_gradients(lambda: model.regis_net(*pair)(model.identity_map))
    if task == "register":
        images = [itk.image_from_array(image[0, 0].cpu().numpy()) for image in pair]
        return lambda: icon.itk_wrapper.register_pair(model, *images)
    model.train(task == "training_step")
    return _repeated(_step(model, lambda: model(*pair).all_loss), task)


def _here(task: str, pair: Sequence[Tensor], variant: str, amp: bool) -> Work:
    from scripts.data.itk_transforms import to_itk
    from scripts.geometry.composition import transform_on_grid
    from scripts.geometry.grid_transform import GridTransform
    from scripts.inferers.registration_inferer import RegistrationInferer
    from scripts.losses.gradicon import GradICONLoss
    from scripts.losses.similarity import create_similarity
    from scripts.networks.activation_checkpointing import choose_recomputing
    from scripts.networks.registration_network import RegistrationNetwork
    from scripts.training.pair_network import PairNetwork
    from scripts.training.prepare_batch import PairInferer, total_loss

    lncc = create_similarity("lncc")
    if task == "lncc":
        return _similarity_step(lncc, pair)
    shape = tuple(pair[0].shape[2:])
    network = RegistrationNetwork(shape).to(pair[0].device).eval()
    _randomize([unet.last for unet in network.unets])  # type: ignore[misc]
    precision = torch.autocast(pair[0].device.type, torch.bfloat16, enabled=amp)
    if task == "forward":

        def forward() -> Any:
            with precision:
                return transform_on_grid(network.register(*pair), pair[0])

        return lambda: _without_gradients(forward)
    affine = torch.eye(4, dtype=torch.float64)
    image = torch.cat(list(pair), dim=1)
    wanted: bool | str = False if variant == "here, all kept" else "auto"
    if task == "register":
        inferer = RegistrationInferer("off", amp=amp, progress=False)

        def register() -> Any:
            found = inferer(image, network, moving_affine=affine, fixed_affine=affine)
            return [
                to_itk(GridTransform(found[name][0].cpu(), affine, affine)) for name in ("forward_ddf", "inverse_ddf")
            ]

        return lambda: _without_gradients(register)
    loss = GradICONLoss(lncc)
    if task in ("io_step", "io_50_steps"):
        from scripts.inferers.network_optimization import optimization_step

        recomputing = choose_recomputing(wanted, network, shape, pair[0].device)
        for unet in network.unets:
            unet.recomputes = recomputing  # type: ignore[assignment]
        optimizer = torch.optim.Adam(network.parameters(), lr=2e-5)
        return _repeated(lambda: optimization_step(network, pair[0], pair[1], loss, optimizer, recomputing), task)
    recomputing = choose_recomputing(wanted, network, shape, pair[0].device, batch_statistics=True)
    trained = PairNetwork(network, activation_checkpointing=recomputing, channels_last=True).train()
    training = PairInferer(loss)

    def objective() -> Tensor:
        with precision:
            return total_loss(training(image, trained)).mean()

    return _step(trained, objective)


def _randomize(layers: Sequence[Any]) -> None:
    # an untrained network is the identity, which would be cheaper to compose
    for layer in layers:
        torch.nn.init.normal_(layer.weight, std=0.02)


@torch.no_grad()
def _without_gradients(work: Work) -> Any:
    return work()


def _step(network: torch.nn.Module, objective: Callable[[], Tensor]) -> Work:
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-5)

    def work() -> None:
        optimizer.zero_grad(set_to_none=True)
        objective().backward()
        optimizer.step()

    return work


def _repeated(step: Work, task: str) -> Work:
    def steps() -> None:
        for _ in range(50):
            step()  # what it returns holds a graph, and is not kept

    return steps if task == "io_50_steps" else step


def _similarity_step(similarity: Callable[..., Any], pair: Sequence[Tensor]) -> Work:
    warped = pair[0].clone().requires_grad_()
    return lambda: similarity(warped, pair[1]).backward()
