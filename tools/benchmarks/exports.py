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
"""Exports and reduced precision on a CPU: how far each form's ddf is from the network's, and how long a pass takes.

    python -m tools.benchmarks.exports [--weights default published] [--shape 175] [--repeats 5]

``published`` is a network of the published size with random weights. Seconds are medians of passes that take turns; a
form's ratio is to the network itself in float32, as the bundle runs it. int8: onnxruntime's static quantization of all
convolutions (QDQ), calibrated on pairs of the kind that is compared; up to 96 voxels, as it takes 35 GB at 175.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from scripts.networks.architectures import create_registration_network
from scripts.networks.checkpoints import load_weights
from scripts.networks.exported_network import FORMATS, load_exported
from scripts.networks.exports import example_pair, export_network
from scripts.networks.registration_network import RegistrationNetwork
from scripts.utils.memory import keep_freed_memory

_LARGEST_INT8 = 96  # voxels


def published_size(shape: tuple[int, int, int]) -> RegistrationNetwork:
    """Return a network of the published size with random weights: displacements up to 5 voxels.

    (Of larger random weights the fields jump by 20 voxels between neighbors, which enlarges all rounding.)
    """
    torch.manual_seed(0)
    network = RegistrationNetwork(shape)
    for unet in network.unets:
        torch.nn.init.normal_(unet.last.weight, std=0.01)
    return network.eval()


def default_network() -> RegistrationNetwork:
    """Return the network of the default weights."""
    return load_weights(create_registration_network("default"), "default")


def in_bfloat16(network: RegistrationNetwork) -> Callable[[Tensor], Tensor]:
    """Return the network under autocast, as ``--amp True`` runs it."""

    def run(image: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return network(image).float()

    return run


def in_int8(onnx_file: Path, folder: Path, shape: tuple[int, ...]) -> Callable[[Tensor], Tensor]:
    """Return the ONNX file with its convolutions in int8."""
    import onnxruntime
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static

    class Pairs(CalibrationDataReader):
        def __init__(self) -> None:
            self.left = [{"image": example_pair(shape, seed=seed).numpy()} for seed in (1, 2)]

        def get_next(self) -> dict | None:
            return self.left.pop() if self.left else None

    out = folder / "int8.onnx"
    quantize_static(
        onnx_file,
        out,
        Pairs(),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=["Conv", "ConvTranspose"],
        per_channel=True,
    )
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(out), settings, providers=["CPUExecutionProvider"])
    return lambda image: torch.from_numpy(session.run(None, {"image": image.numpy()})[0])


@torch.no_grad()
def measure(name: str, network: RegistrationNetwork, repeats: int) -> None:
    """Print a row for each form of one network."""
    shape = tuple(network.spatial_shape)
    image = example_pair(shape)
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        forms: dict[str, Callable[[Tensor], Tensor]] = {"network": network}
        for ending, form in FORMATS.items():
            export_network(network, folder / f"model{ending}")
            forms[form] = load_exported(folder / f"model{ending}")
        forms["bfloat16"] = in_bfloat16(network)
        if shape[0] <= _LARGEST_INT8:
            forms["ONNX, int8"] = in_int8(folder / "model.onnx", folder, shape)
        expected = network(image)
        seconds: dict[str, list[float]] = {form: [] for form in forms}
        found: dict[str, Tensor] = {}
        with keep_freed_memory():  # as in the inferer
            for _ in range(repeats):
                for form, run in forms.items():
                    began = time.perf_counter()
                    found[form] = run(image)
                    seconds[form].append(time.perf_counter() - began)
        base = statistics.median(seconds["network"])
        for form in forms:
            away = (found[form] - expected).abs()
            print(
                f"| {name} {shape[0]} | {form} | {away.max():.1e} | {away.mean():.1e} |"
                f" {statistics.median(seconds[form]) / base:.2f} |",
                flush=True,
            )
        print(f"(displacements up to {expected.abs().max():.1f} voxels; the network takes {base:.2f} s)", flush=True)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--weights", nargs="*", default=["default", "published"], choices=["default", "published"])
    parser.add_argument("--shape", type=int, default=175, help="voxels of each axis for published")
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    print(
        "| weights, voxels | form | max difference, voxels | mean | time / network's |\n| --- | --- | --- | --- | --- |"
    )
    for weights in given.weights:
        network = published_size((given.shape,) * 3) if weights == "published" else default_network()
        measure(weights, network, given.repeats)


if __name__ == "__main__":
    main()
