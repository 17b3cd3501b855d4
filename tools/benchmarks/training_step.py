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
"""One training step of the full network: seconds and peak memory, beside the published package in the same run.

    python -m tools.benchmarks.training_step [--shape 175] [--repeats 2] [--device cpu]

Each step (both directions, objective, gradients, Adam; batch 1, float32) runs in a fresh process on the same random
pair, the variants take turns. Needs `make dev`, and at 175 about 13 GB of memory.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from typing import Any

import torch

VARIANTS = ("reference", "here", "here, activation_checkpointing")


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--shape", type=int, default=175)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--variant", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.variant:
        print(json.dumps(measure(given.variant, given.shape, torch.device(given.device))))
        return
    found: dict[str, list[dict[str, float]]] = {variant: [] for variant in VARIANTS}
    for _ in range(given.repeats):
        for variant in VARIANTS:
            words = [sys.executable, "-m", "tools.benchmarks.training_step", "--variant", variant]
            words += ["--shape", str(given.shape), "--device", given.device]
            output = subprocess.run(words, check=True, capture_output=True, text=True).stdout
            found[variant].append(json.loads(output.strip().splitlines()[-1]))
            print(variant, found[variant][-1], file=sys.stderr, flush=True)
    base = {key: statistics.median(row[key] for row in found[VARIANTS[0]]) for key in ("seconds", "gigabytes")}
    print(
        f"| one step at {given.shape}^3, {given.device} | seconds | of the reference | peak memory | of the reference |"
    )
    print("| --- | --- | --- | --- | --- |")
    for variant, rows in found.items():
        seconds, memory = (statistics.median(row[key] for row in rows) for key in ("seconds", "gigabytes"))
        ratios = seconds / base["seconds"], memory / base["gigabytes"]
        print(f"| {variant} | {seconds:.0f} | {ratios[0]:.2f} | {memory:.1f} GB | {ratios[1]:.2f} |")


def measure(variant: str, size: int, device: torch.device) -> dict[str, float]:
    """Make one step; return its seconds, the peak memory (GB, of the process or of the GPU) and the loss."""
    torch.manual_seed(0)
    shape = (size, size, size)
    pair = [torch.rand(1, 1, *shape, device=device) for _ in range(2)]
    step = (
        _reference_step(shape, device) if variant == VARIANTS[0] else _own_step(variant == VARIANTS[2], shape, device)
    )
    began = time.perf_counter()
    loss = step(*pair)
    if device.type == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - began
    if device.type == "cuda":
        memory = torch.cuda.max_memory_allocated() / 1e9
    else:
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    return {"seconds": seconds, "gigabytes": memory, "loss": loss}


def _own_step(recomputing: bool, shape: tuple[int, ...], device: torch.device) -> Any:
    from scripts.losses.gradicon import GradICONLoss
    from scripts.losses.similarity import create_similarity
    from scripts.networks.registration_network import RegistrationNetwork
    from scripts.training.pair_network import PairNetwork
    from scripts.training.prepare_batch import PairInferer, total_loss

    network = PairNetwork(RegistrationNetwork(shape), activation_checkpointing=recomputing).to(device).train()
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-5)
    inferer = PairInferer(GradICONLoss(create_similarity("lncc")))

    def step(moving: torch.Tensor, fixed: torch.Tensor) -> float:
        loss = total_loss(inferer(torch.cat([moving, fixed], dim=1), network)).mean()
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return step


def _reference_step(shape: tuple[int, ...], device: torch.device) -> Any:
    import icon_registration as icon
    import unigradicon

    icon.config.device = device
    model = unigradicon.make_network([1, 1, *shape], include_last_step=True).to(device).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-5)

    def step(moving: torch.Tensor, fixed: torch.Tensor) -> float:
        loss = model(moving, fixed).all_loss
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return step


if __name__ == "__main__":
    main()
