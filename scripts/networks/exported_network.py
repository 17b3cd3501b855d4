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
"""Exported networks (:mod:`scripts.networks.exports`) in the network's place: TorchScript, torch.export and ONNX files.

Such a file holds code and weights for one shape of its own, and one pass is all that it can do: the optimization of
fields starts from it as from the network, the optimization of the network's weights can't.
"""

from __future__ import annotations

import json
import shlex
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn

from scripts.geometry.composition import CompositeTransform
from scripts.geometry.coordinates import extent
from scripts.networks.published_weights import ROOT, bundle_folder
from scripts.utils.errors import InputError, InputFileError
from scripts.utils.seeding import check_device

FORMATS = {".ts": "TorchScript", ".pt2": "torch.export", ".onnx": "ONNX"}
FACT_NAMES = ("match_orientation", "ct_window", "mr_percentiles")
FACTS = "registration.json"  # in the file: what an inference has to know of its weights
OPTIONS = "export_options"  # among the facts: the options of ``export`` that name the weights, as words


class Program(NamedTuple):
    """What a file of any format holds."""

    run: Callable[[Tensor], Tensor]
    """Pair (1, 2, D, H, W) in [0, 1] -> ddf (1, 3, D, H, W), voxels, as the network's own ``forward``."""
    spatial_shape: list[int]
    """(D, H, W) of the pairs it takes."""
    facts: str
    """JSON, or empty in files that other programs wrote."""


class ExportedNetwork(nn.Module):
    """A registration network of which only the pass from a pair to a ddf is known.

    Args:
        program: what computes it.
        path: its file.
    """

    def __init__(self, program: Program, path: Path) -> None:
        super().__init__()
        self.run = program.run
        self.spatial_shape = program.spatial_shape
        self.path = path
        facts = json.loads(program.facts or "{}")
        self.preprocessing = {name: value for name, value in facts.items() if name in FACT_NAMES and value is not None}
        """What the file records of the preprocessing that its weights are made for."""

    def forward(self, image: Tensor) -> Tensor:
        """Return the ddf (1, 3, D, H, W), voxels, of a pair (1, 2, D, H, W)."""
        return self.run(image)

    def train(self, mode: bool = True) -> Self:
        """Do nothing: it computes as it was exported, and a torch.export program refuses to be switched."""
        return self

    def register(self, moving: Tensor, fixed: Tensor) -> CompositeTransform:
        """Return the transform with moving(transform(x)) ~ fixed(x); both images (1, 1, D, H, W)."""
        ddf = self(torch.cat([moving, fixed], dim=1))
        return CompositeTransform([ddf / extent(ddf)])


def refuse_what_needs_weights(optimization: str | bool, amp: bool) -> None:
    """Refuse settings that an exported network has no weights for.

    Raises:
        InputError: optimization 'network', or amp.
    """
    if optimization == "network" or amp:
        raise InputError(
            "optimization 'network' and amp need the network's weights, not an exported file: choose --optimization"
            " field or off, or leave out the config of the exported file"
        )


def load_exported(
    path: str | Path | None = None,
    device: torch.device | str = "cpu",
    default: str = "model.ts",
    bundle_root: str | Path = ".",
    optimization: str | bool = "field",
    amp: bool = False,
) -> ExportedNetwork:
    """Load an exported network; the file's ending tells its form.

    TorchScript and torch.export files hold programs, and reading the latter may run any code: load what you trust.

    Args:
        path: .ts, .pt2 or .onnx; None: ``default`` in the bundle's folder models.
        device: where it computes; a .pt2 file computes where it was exported.
        default: name of that file.
        bundle_root: folder of the bundle.
        optimization: of the inference it is for, as the next one; see :func:`refuse_what_needs_weights`.
        amp: likewise.

    Raises:
        InputError: another ending, a package that is missing, a device or setting that the file can't serve.
        InputFileError: the file is not there, can't be read or is no such network.
    """
    refuse_what_needs_weights(optimization, amp)
    path = bundle_folder(bundle_root) / "models" / default if path is None else Path(path)
    device = check_device(device)
    if path.suffix not in FORMATS:
        raise InputError(f"exported: expected a file {', '.join(FORMATS)}, got '{path}'")
    if not path.is_file():
        raise InputFileError(f"exported: '{path}' is not there; make it with: {export_command(path)}")
    load = {".ts": _load_torchscript, ".pt2": _load_program, ".onnx": _load_onnx}[path.suffix]
    try:
        if path.suffix != ".onnx" and not zipfile.is_zipfile(path):
            raise ValueError("it is cut off, or something else")
        network = ExportedNetwork(load(path, device), path)
    except InputError:
        raise
    except Exception as error:  # each format has its own kinds for a broken file
        reason = str(error).strip().split("\n")[0][:200]
        raise InputFileError(
            f"exported: '{path}' can't be read as {FORMATS[path.suffix]} ({reason}); make it again with:"
            f" {export_command(path)}"
        ) from error
    if len(network.spatial_shape) != 3 or not all(isinstance(n, int) for n in network.spatial_shape):
        raise InputFileError(
            f"exported: '{path}' is no network for pairs of one shape (1, 2, D, H, W), got axes"
            f" {network.spatial_shape}; make it again with: {export_command(path)}"
        )
    return network


def export_command(path: Path, facts: str = "", device: torch.device | None = None) -> str:
    """Return the command that makes a file; it works in the folder where the user is.

    Args:
        path: the file.
        facts: what it records; where that names no weights, the command is of the default ones, and it says so.
        device: where the file is to compute; by default the CPU.
    """
    program = "-m scripts" if Path.cwd() == ROOT else shlex.quote(str(ROOT / "scripts"))
    options = json.loads(facts or "{}").get(OPTIONS, [])
    words = [str(path), *options, *(["--device", str(device)] if device else [])]
    command = f"python {program} export {shlex.join(words)}"
    return command if options else f"{command}, with --model NAME or --ckpt_path FILE if not of the default weights"


def _load_torchscript(path: Path, device: torch.device) -> Program:
    found = {FACTS: ""}
    module = torch.jit.load(path, map_location=device, _extra_files=found).eval()
    text = found[FACTS]
    return Program(module, [int(n) for n in module.spatial_shape], text.decode() if isinstance(text, bytes) else text)


def _load_program(path: Path, device: torch.device) -> Program:
    found = {FACTS: ""}
    program = torch.export.load(path, extra_files=found)
    (image,) = (node for node in program.graph.nodes if node.name in program.graph_signature.user_inputs)
    made_for, shape = image.meta["val"].device, list(image.meta["val"].shape[2:])
    if (made_for.type, made_for.index or 0) != (device.type, device.index or 0):
        raise InputError(
            f"exported: '{path}' computes on {made_for}, device is {device}; export it there with:"
            f" {export_command(path, found[FACTS], device)}"
        )
    return Program(program.module(), shape, found[FACTS])


def _load_onnx(path: Path, device: torch.device) -> Program:
    try:
        import onnxruntime
    except ImportError as error:
        raise InputError("exported: ONNX files need onnxruntime; get it with: pip install onnxruntime") from error
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = torch.get_num_threads()
    on_gpu = ("CUDAExecutionProvider", {"device_id": device.index or 0})
    providers = [on_gpu] if device.type == "cuda" else []
    session = onnxruntime.InferenceSession(str(path), settings, providers=[*providers, "CPUExecutionProvider"])
    if device.type == "cuda" and "CUDAExecutionProvider" not in session.get_providers():
        raise InputError(
            "exported: this onnxruntime does not compute on the GPU; use --device cpu, or: pip install onnxruntime-gpu"
        )
    (image,) = session.get_inputs()

    def run(pair: Tensor) -> Tensor:
        (ddf,) = session.run(None, {image.name: pair.detach().cpu().float().numpy()})
        return torch.from_numpy(ddf).to(pair)

    return Program(run, list(image.shape[2:]), session.get_modelmeta().custom_metadata_map.get(FACTS, ""))
