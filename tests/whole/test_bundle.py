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
"""What the model zoo and MONAI's own commands ask of the bundle."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
import yaml
from monai.bundle import ConfigWorkflow, ckpt_export, onnx_export, verify_metadata, verify_net_in_out
from packaging.utils import canonicalize_name

from scripts.networks.checkpoints import PUBLISHED_FILES
from scripts.networks.registration_network import RegistrationNetwork

SHAPE = [40, 40, 40]
SMALL = {
    "model": "unigradicon",
    "image_shape": SHAPE,
    "network_def::down_channels": [2, 4, 8, 8],
    "network_def::up_channels": [4, 4, 8],
}
REQUIRED = [  # by meta_schema_20240725.json, which is not at hand offline
    *("schema", "version", "monai_version", "pytorch_version", "numpy_version", "required_packages_version"),
    *("task", "description", "authors", "copyright", "network_data_format"),
]


@pytest.fixture
def files(bundle_root: Path) -> tuple[str, str]:
    return str(bundle_root / "configs" / "metadata.json"), str(bundle_root / "configs" / "inference.yaml")


@pytest.fixture
def small_checkpoint(tmp_path: Path) -> tuple[RegistrationNetwork, str]:
    network = RegistrationNetwork(SHAPE, [2, 4, 8, 8], [4, 4, 8])
    for unet in network.unets:
        torch.nn.init.normal_(unet.last.weight, std=0.02)
    torch.save(network.state_dict(), tmp_path / "small.pt")
    return network.eval(), str(tmp_path / "small.pt")


def test_metadata_is_valid_and_the_same_at_both_places(
    bundle_root: Path, tmp_path: Path, files: tuple[str, str]
) -> None:
    assert (bundle_root / "metadata.json").read_bytes() == Path(files[0]).read_bytes()
    metadata = json.loads(Path(files[0]).read_text())
    assert set(REQUIRED) <= set(metadata)
    assert metadata["version"] in metadata["changelog"]
    assert list(metadata["network_data_format"]["inputs"]) == ["image"]
    assert list(metadata["network_data_format"]["outputs"]) == ["pred"]
    schema = tmp_path / "schema.json"
    schema.write_text(json.dumps({"type": "object", "required": REQUIRED}))
    verify_metadata(meta_file=files[0], filepath=str(schema))


def test_versions_agree_with_those_tested(bundle_root: Path, files: tuple[str, str]) -> None:
    tested = dict(re.findall(r"(?m)^([\w-]+)==(\S+)", (bundle_root / "requirements.lock").read_text()))
    metadata = json.loads(Path(files[0]).read_text())
    declared = {
        **metadata["required_packages_version"],
        "monai": metadata["monai_version"],
        "torch": metadata["pytorch_version"],
        "numpy": metadata["numpy_version"],
    }
    assert {name: tested.get(canonicalize_name(name)) for name in declared} == declared


def test_all_properties_of_an_inference_bundle_are_there(bundle_root: Path, files: tuple[str, str]) -> None:
    workflow = ConfigWorkflow(files[1], meta_file=files[0], workflow_type="inference", bundle_root=str(bundle_root))
    workflow.initialize()
    assert not workflow.check_properties()


@pytest.mark.parametrize("overrides", [SMALL, {"model": "none"}])
def test_the_network_takes_and_gives_what_metadata_says(files: tuple[str, str], overrides: dict[str, object]) -> None:
    shape = {
        f"_meta_::network_data_format::{side}::spatial_shape": SHAPE for side in ("inputs::image", "outputs::pred")
    }
    verify_net_in_out("network_def", files[0], files[1], device="cpu", **shape, **overrides)


def test_torchscript_export_gives_the_same(
    files: tuple[str, str], tmp_path: Path, small_checkpoint: tuple[RegistrationNetwork, str]
) -> None:
    network, checkpoint = small_checkpoint
    out = str(tmp_path / "model.ts")
    ckpt_export("network_def", out, ckpt_file=checkpoint, meta_file=files[0], config_file=files[1], **SMALL)
    image = torch.rand(1, 2, *SHAPE)
    with torch.no_grad():
        torch.testing.assert_close(torch.jit.load(out)(image), network(image), atol=1e-4, rtol=0)


def test_onnx_export_gives_the_same(
    files: tuple[str, str], tmp_path: Path, small_checkpoint: tuple[RegistrationNetwork, str]
) -> None:
    network, checkpoint = small_checkpoint
    out = str(tmp_path / "model.onnx")
    onnx_export(
        "network_def",
        out,
        ckpt_file=checkpoint,
        meta_file=files[0],
        config_file=files[1],
        input_shape=[1, 2, *SHAPE],
        use_trace=True,
        converter_kwargs={"opset_version": 20, "dynamo": True},  # MONAI's default fails with PyTorch 2.8
        **SMALL,
    )
    image = torch.rand(1, 2, *SHAPE)
    session = onnxruntime.InferenceSession(out, providers=["CPUExecutionProvider"])
    (ddf,) = session.run(None, {session.get_inputs()[0].name: image.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(ddf, network(image).numpy(), atol=1e-3)


def test_large_files_lists_both_published_checkpoints(bundle_root: Path) -> None:
    listed = yaml.safe_load((bundle_root / "large_files.yml").read_text())["large_files"]
    assert {entry["path"] for entry in listed} == set(PUBLISHED_FILES.values())
    assert all(entry["url"].startswith("https://github.com/uncbiag/uniGradICON/releases/") for entry in listed)


def test_every_source_file_carries_the_license_header(bundle_root: Path) -> None:
    folders = ("scripts", "tests", "tools")
    sources = [path for folder in folders for path in (bundle_root / folder).rglob("*.py")]
    assert len(sources) > 40
    without = [path.name for path in sources if "Apache License, Version 2.0" not in path.read_text()[:600]]
    assert not without
