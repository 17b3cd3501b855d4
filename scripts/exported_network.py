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
"""Exported networks (:mod:`scripts.exports`) in the network's place: TorchScript, torch.export and ONNX files.

Such a file holds code and weights for one shape of its own, and one pass is all that it can do: the optimization of
fields starts from it as from the network, the optimization of the network's weights can't.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn

from .coordinates import extent
from .errors import InputError, InputFileError
from .network import CompositeTransform
from .seeding import check_device

FORMATS = {".ts": "TorchScript", ".pt2": "torch.export", ".onnx": "ONNX"}


class ExportedNetwork(nn.Module):
    """A registration network of which only the pass from a pair to a ddf is known.

    Args:
        run: pair (1, 2, D, H, W) in [0, 1] -> ddf (1, 3, D, H, W), voxels, as the network's own ``forward``.
        spatial_shape: (D, H, W) of the pairs it takes.
    """

    def __init__(self, run: Callable[[Tensor], Tensor], spatial_shape: list[int]) -> None:
        super().__init__()
        self.run = run
        self.spatial_shape = spatial_shape

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


def load_exported(path: str | Path, device: torch.device | str = "cpu") -> ExportedNetwork:
    """Load an exported network; the file's ending tells its form.

    TorchScript and torch.export files hold programs: load those that you trust.

    Args:
        path: .ts, .pt2 or .onnx.
        device: where it computes; a .pt2 file computes where it was exported.

    Raises:
        InputError: another ending, or a package that is missing.
        InputFileError: the file is not there, can't be read or is no such network.
    """
    path, device = Path(path), check_device(device)
    if path.suffix not in FORMATS:
        raise InputError(f"exported: expected a file {', '.join(FORMATS)}, got '{path}'")
    if not path.is_file():
        raise InputFileError(f"exported: '{path}' is not there; make it with: python -m scripts export {path}")
    load = {".ts": _load_torchscript, ".pt2": _load_program, ".onnx": _load_onnx}[path.suffix]
    try:
        run, shape = load(path, device)
    except (InputError, ImportError):
        raise
    except Exception as error:  # each format has its own kinds for a broken file
        reason = str(error).strip().split("\n")[0][:200]
        raise InputFileError(
            f"exported: '{path}' can't be read as {FORMATS[path.suffix]} ({reason}); make it again with:"
            f" python -m scripts export {path}"
        ) from error
    if len(shape) != 3 or not all(isinstance(n, int) for n in shape):
        raise InputFileError(
            f"exported: '{path}' is no network for pairs of one shape (1, 2, D, H, W), got axes {shape}; make it again"
            f" with: python -m scripts export {path}"
        )
    return ExportedNetwork(run, list(shape))


def _load_torchscript(path: Path, device: torch.device) -> tuple[Callable[[Tensor], Tensor], list[int]]:
    module = torch.jit.load(path, map_location=device).eval()
    return module, [int(n) for n in module.spatial_shape]


def _load_program(path: Path, device: torch.device) -> tuple[Callable[[Tensor], Tensor], list[int]]:
    program = torch.export.load(path)
    (image,) = (node for node in program.graph.nodes if node.name in program.graph_signature.user_inputs)
    found = image.meta["val"]
    if found.device.type != device.type:
        raise InputError(
            f"exported: '{path}' computes on {found.device.type}, device is {device.type}; export it there with: python"
            f" -m scripts export {path} --device {device.type}"
        )
    return program.module(), list(found.shape[2:])


def _load_onnx(path: Path, device: torch.device) -> tuple[Callable[[Tensor], Tensor], list[int]]:
    try:
        import onnxruntime
    except ImportError as error:
        raise InputError("exported: ONNX files need onnxruntime; get it with: pip install onnxruntime") from error
    providers = ["CPUExecutionProvider"]
    if device.type == "cuda":
        providers.insert(0, "CUDAExecutionProvider")
        if providers[0] not in onnxruntime.get_available_providers():
            raise InputError(
                "exported: this onnxruntime does not compute on GPUs; use --device cpu, or: pip install onnxruntime-gpu"
            )
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), settings, providers=providers)
    (image,) = session.get_inputs()

    def run(pair: Tensor) -> Tensor:
        (ddf,) = session.run(None, {image.name: pair.detach().cpu().float().numpy()})
        return torch.from_numpy(ddf).to(pair)

    return run, list(image.shape[2:])
