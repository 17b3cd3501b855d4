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
"""Export the network: TorchScript, torch.export or ONNX, as the file's ending says, compared before it gets its name.

python -m scripts export models/model.ts [--model unigradicon | --ckpt_path FILE]
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from monai.networks.utils import convert_to_onnx, convert_to_torchscript
from torch import Tensor

from scripts.geometry.coordinates import resample_grid
from scripts.networks.architectures import create_registration_network
from scripts.networks.checkpoints import load_weights
from scripts.networks.exported_network import FACTS, FORMATS, OPTIONS, load_exported
from scripts.networks.registration_network import RegistrationNetwork
from scripts.networks.weights_preprocessing import recorded_preprocessing
from scripts.utils.atomic import replacing
from scripts.utils.errors import InputError

OPSET = 20  # the first one of ONNX whose GridSample takes volumes
TOLERANCE = 1e-2  # voxels; rounding in another order is 1e-5 to 1e-3 (docs/exports.md), a wrong operator far more


class Exported(NamedTuple):
    """What :func:`export_network` returns."""

    path: Path
    difference: float
    """Largest difference of the file's ddf from the network's, voxels."""
    size: float
    """Largest component of that ddf, voxels."""


def example_pair(shape: Sequence[int], device: torch.device | str = "cpu", seed: int = 0) -> Tensor:
    """Return a smooth random pair (1, 2, D, H, W) in [0, 1]."""
    coarse = torch.rand(1, 2, *(-(-n // 8) for n in shape), generator=torch.Generator().manual_seed(seed))
    pair = resample_grid(coarse, tuple(shape))
    return pair.to(device)


@torch.no_grad()
def export_network(
    network: RegistrationNetwork,
    out: str | Path,
    preprocessing: Mapping[str, Any] | None = None,
    options: Sequence[str] = (),
) -> Exported:
    """Write a network for pairs of its own ``spatial_shape`` and compare what the file computes with it.

    Args:
        network: with its weights, in eval mode, on the device where the file is to compute.
        out: .ts, .pt2 or .onnx; appears when it is whole and was compared.
        preprocessing: that the weights are made for, fields of
            :class:`~scripts.networks.weights_preprocessing.Preprocessing`; noted in the file, an inference follows it.
        options: of the command ``export`` that name the weights; noted in the file, for errors that say how to make it.

    Raises:
        InputError: another ending, or packages that are missing.
        RuntimeError: the file's ddf differs by more than 0.01 voxels; nothing is written.
    """
    out = Path(out)
    _check_ending(out)
    device = next(network.parameters()).device
    image = example_pair(network.spatial_shape, device)
    expected = network(image)
    facts = json.dumps({**(preprocessing or {}), OPTIONS: list(options)})
    with replacing(out) as temporary:
        _write(network, image, facts, temporary)
        difference = float((load_exported(temporary, device)(image) - expected).abs().max())
        if not difference <= TOLERANCE:
            raise RuntimeError(f"export: {out} differs from the network by {difference:.2g} voxels; it was not written")
    return Exported(out, difference, float(expected.abs().max()))


def _check_ending(out: Path) -> None:
    if out.suffix not in FORMATS:
        raise InputError(f"export: expected a file {', '.join(FORMATS)}, got '{out}'")
    needed = ("onnx", "onnxscript", "onnxruntime") if out.suffix == ".onnx" else ()
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(f"export: ONNX needs further packages; get them with: pip install {' '.join(missing)}")


def _write(network: RegistrationNetwork, image: Tensor, facts: str, path: Path) -> None:
    if path.suffix == ".ts":
        convert_to_torchscript(network).save(str(path), _extra_files={FACTS: facts})
    elif path.suffix == ".pt2":
        torch.export.save(torch.export.export(network, (image,)), path, extra_files={FACTS: facts})
    else:
        import onnx

        model = convert_to_onnx(
            network,
            [image],
            input_names=["image"],
            output_names=["pred"],
            opset_version=OPSET,
            filename=str(path),
            dynamo=True,
            external_data=False,  # one file
            verbose=False,
        )
        onnx.helper.set_model_props(model, {FACTS: facts})
        onnx.save(model, str(path))


def export(
    out: str | Path,
    model: str = "default",
    ckpt_path: str | Path | None = None,
    network_shape: Sequence[int] | None = None,
    device: str = "cpu",
    bundle_root: str | Path = ".",
) -> Exported:
    """Export the network of a file of weights; prints how far the written file is from it.

    Args:
        out: see :func:`export_network`.
        model: see :func:`scripts.networks.checkpoints.find_weights`, as the next one.
        ckpt_path: likewise.
        network_shape: (D, H, W) of the pairs; by default what the weights are made for.
        device: where the file is to compute.
        bundle_root: folder that holds models/.

    Raises:
        InputError: see :func:`scripts.networks.checkpoints.load_weights` and :func:`export_network`.
    """
    _check_ending(Path(out))  # before any heavy work
    network = create_registration_network(model, ckpt_path, bundle_root, network_shape)
    network = load_weights(network, model, ckpt_path, bundle_root, device)
    # the name alone: folders may be named after patients, and exported files are passed on
    options = ["--ckpt_path", Path(ckpt_path).name] if ckpt_path else ["--model", model]
    if network_shape:
        options += ["--network_shape", *map(str, network_shape)]
    done = export_network(network, out, recorded_preprocessing(model, ckpt_path, bundle_root), options)
    print(
        f"{done.path}: {FORMATS[done.path.suffix]} for pairs of {network.spatial_shape} voxels; its displacements,"
        f" up to {done.size:.1f} voxels, differ from the network's by {done.difference:.1e} voxels at most"
    )
    return done
