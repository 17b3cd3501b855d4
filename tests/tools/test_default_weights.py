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
"""The weights that come with the bundle: what a fresh clone registers with."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigWorkflow, verify_net_in_out

from scripts.data.synthetic import SyntheticPairs
from scripts.inferers.registration_inferer import RegistrationInferer
from scripts.networks.architectures import create_network, read_architecture
from scripts.networks.checkpoints import CHECKSUMS, MODEL_FILES, load_weights
from scripts.networks.registration_network import RegistrationNetwork
from tests.helpers.training_run import synthetic_list


@pytest.fixture(scope="module")
def network() -> RegistrationNetwork:
    root = Path(__file__).resolve().parents[2]
    return load_weights(create_network("default", bundle_root=root), "default", bundle_root=root)  # type: ignore[return-value]


def test_the_file_is_small_and_the_one_that_is_listed_and_described(bundle_root: Path) -> None:
    path = bundle_root / MODEL_FILES["default"]
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    assert path.stat().st_size < 25 * 2**20
    assert (path.parent / CHECKSUMS).read_text() == f"{sha256}  model.pt\n"
    assert sha256 in (bundle_root / "docs" / "default_weights.md").read_text()


def test_metadata_tells_its_shape_and_the_network_gives_it(bundle_root: Path) -> None:
    files = [str(bundle_root / "configs" / name) for name in ("metadata.json", "inference.yaml")]
    formats = json.loads(Path(files[0]).read_text())["network_data_format"]
    shape = read_architecture(bundle_root / MODEL_FILES["default"]).spatial_shape
    assert formats["inputs"]["image"]["spatial_shape"] == formats["outputs"]["pred"]["spatial_shape"] == shape
    verify_net_in_out("network_def", *files, device="cpu", bundle_root=str(bundle_root))


def test_its_training_config_makes_the_same_network(bundle_root: Path, tmp_path: Path) -> None:
    configs = [str(bundle_root / "configs" / name) for name in ("train.yaml", "train_default.yaml")]
    given = {"train_datalist": synthetic_list(tmp_path), "ckpt_dir": str(tmp_path / "run"), "device": "cpu"}
    workflow = ConfigWorkflow(configs, workflow_type="train", bundle_root=str(bundle_root), num_workers=0, **given)
    workflow.initialize()
    assert not workflow.check_properties()
    made, shipped = workflow.parser.get_parsed_content("network_def"), create_network("default", None, bundle_root)
    assert made.spatial_shape == shipped.spatial_shape
    shapes = [{key: value.shape for key, value in net.state_dict().items()} for net in (made, shipped)]
    assert shapes[0] == shapes[1]


def test_its_synthetic_sets_have_options_that_the_generator_knows(bundle_root: Path) -> None:
    sets = json.loads((bundle_root / "configs" / "train_default_data.json").read_text())["datasets"]
    synthetic = [item["synthetic"] for item in sets if "synthetic" in item]
    assert len(synthetic) == len(sets) - 1
    for options in synthetic:
        assert SyntheticPairs((16, 16, 16), **options)(0).moving.shape == (1, 16, 16, 16)


def test_unseen_pairs_are_aligned_in_one_pass(network: RegistrationNetwork) -> None:
    """Pairs of seeds that training does not use: it derives its own from the set's name and the epoch."""
    shape = tuple(network.spatial_shape)
    pairs = SyntheticPairs(shape, same_contrast=1, partial_view=0, affine=0.05)
    inferer, before, after = RegistrationInferer(optimization="off", progress=False), 0.0, 0.0
    affine = torch.eye(4, dtype=torch.float64)
    for seed in range(4):
        pair = pairs(10**12 + seed)
        image = torch.stack([pair.moving, pair.fixed], dim=1)
        found = inferer(image, network, moving_affine=affine, fixed_affine=affine)
        index = [axis.round().long() for axis in pair.fixed_points.T]
        moved = pair.fixed_points + found["forward_ddf"][0][:, index[0], index[1], index[2]].T
        before += float((pair.fixed_points - pair.moving_points).norm(dim=1).mean())
        after += float((moved - pair.moving_points).norm(dim=1).mean())
    assert after < 0.7 * before
