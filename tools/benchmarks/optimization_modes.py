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
"""Compare the two instance optimizations from the same network on one pair: objective reached and time.

    python -m tools.benchmarks.optimization_modes FIXED MOVING [--ckpt FILE] [--shape 65] [--steps 50]

Without a checkpoint the network gets random weights: its result is then a wrong start, the same for both. The objective
is that of the network mode (scripts.losses.gradicon, LNCC with sigma 5 on the network's grid, one fixed noise) for
both.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch
from monai.transforms import Compose, EnsureChannelFirst, LoadImage, Resize, ScaleIntensityRangePercentiles
from torch import Tensor

from scripts.geometry.coordinates import Transform, from_ddf
from scripts.inferers.registration_inferer import RegistrationInferer
from scripts.losses.gradicon import GradICONLoss
from scripts.losses.similarity import LNCC
from scripts.networks.checkpoints import load_weights
from scripts.networks.registration_network import RegistrationNetwork

# efforts of the field mode, least first
LADDER = {"16^3": [[16, 30]], "32^3": [[32, 40]], "32^3 and 64^3": [[32, 60], [64, 60]]}


def main() -> None:
    """Print one line a mode."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("fixed")
    parser.add_argument("moving")
    parser.add_argument("--ckpt")
    parser.add_argument("--shape", type=int, default=65)
    parser.add_argument("--steps", type=int, default=50)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    network = RegistrationNetwork((arguments.shape,) * 3).eval()
    if arguments.ckpt:
        load_weights(network, "own", arguments.ckpt)
    else:
        for unet in network.unets:
            torch.nn.init.normal_(unet.last.weight, std=0.02)
    read = Compose(
        [
            LoadImage(image_only=True),
            EnsureChannelFirst(),
            ScaleIntensityRangePercentiles(0, 99, 0, 1, clip=True),
            Resize((arguments.shape,) * 3, mode="trilinear", align_corners=False),
        ]
    )
    image = torch.stack([read(arguments.moving), read(arguments.fixed)], dim=1).as_tensor()
    affine = torch.eye(4, dtype=torch.float64)
    rows: dict[str, tuple[float, float]] = {}
    for mode in ("off", "network", *LADDER):
        inferer = RegistrationInferer(
            optimization="field" if mode in LADDER else mode,
            field={"levels": {"default": LADDER.get(mode, [])}},
            network_optimization={"steps": arguments.steps},
            progress=False,
        )
        began = time.perf_counter()
        found = inferer(image, network, moving_affine=affine, fixed_affine=affine)
        seconds = time.perf_counter() - began
        rows[mode] = objective(image, from_ddf(found["forward_ddf"]), from_ddf(found["inverse_ddf"])), seconds
        print(f"{mode}: objective {rows[mode][0]:.4f}, {seconds:.1f} s", flush=True)
    reached = [mode for mode in LADDER if rows[mode][0] <= rows["network"][0]]
    if reached:
        print(f"network / field ({reached[0]}) at no worse objective: {rows['network'][1] / rows[reached[0]][1]:.0f} x")


@torch.no_grad()
def objective(image: Tensor, forward: Transform, inverse: Transform) -> float:
    """Return the network mode's objective of two transforms."""
    noise: dict[str, Any] = {"generator": torch.Generator().manual_seed(0)}
    return float(GradICONLoss(LNCC(5))(forward, inverse, image[:, :1], image[:, 1:], **noise).loss)


if __name__ == "__main__":
    main()
