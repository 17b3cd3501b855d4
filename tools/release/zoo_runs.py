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
"""The checks of :mod:`tools.release.zoo_check` that run the bundle, from the zoo's root, the bundle first on the path.

Each runs in a process of its own: an import of this repository's ``scripts`` would hide what the released files lack.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tools.release.contents import NAME

UNIT_TESTS = "tools/release/unit_tests"


class FindingError(Exception):
    """What a check found wrong."""


def check_metadata_schema(zoo: Path, schema: Path) -> str:
    """Run MONAI's verify_metadata."""
    _run(zoo, f"from monai.bundle import verify_metadata\nverify_metadata(META, filepath={str(schema)!r})")
    return f"valid by {schema.name}"


def check_network(zoo: Path) -> str:
    """Run MONAI's verify_net_in_out as the zoo does."""
    _run(
        zoo,
        "from monai.bundle import verify_net_in_out\n"
        "verify_net_in_out(net_id='network_def', meta_file=META, config_file=INFERENCE, bundle_root=BUNDLE)",
    )
    return "takes and gives what the metadata say"


def check_torchscript(zoo: Path) -> str:
    """Export models/model.pt as the zoo does, and compare what the file computes."""
    return _run(
        zoo,
        "import torch\nfrom monai.bundle import ckpt_export\nout = BUNDLE + '/models/verify_model.ts'\n"
        "ckpt_export(net_id='network_def', filepath=out, ckpt_file=BUNDLE + '/models/model.pt', meta_file=META,"
        " config_file=INFERENCE, bundle_root=BUNDLE)\n"
        "from scripts.networks.architectures import create_registration_network\n"
        "from scripts.networks.checkpoints import load_weights\n"
        "network = load_weights(create_registration_network('default', bundle_root=BUNDLE), 'default',"
        " bundle_root=BUNDLE)\n"
        "pair = torch.rand(1, 2, *network.spatial_shape)\n"
        "with torch.no_grad():\n    away = float((torch.jit.load(out)(pair) - network(pair)).abs().max())\n"
        "assert away < 1e-4, f'differs by {away} voxels'\nprint(f'differs by {away:.1e} voxels')",
    )


def check_properties(zoo: Path) -> str:
    """Check the properties that programs read, of every config with what it lies over."""
    sets = config_sets(zoo / "models" / NAME)
    _run(
        zoo,
        "from monai.bundle import ConfigWorkflow\n"
        f"for kind, names, options in {sets!r}:\n"
        "    made = ConfigWorkflow(workflow_type=kind, config_file=[BUNDLE + '/configs/' + name for name in names],\n"
        "        meta_file=META, logging_file=BUNDLE + '/configs/logging.conf', bundle_root=BUNDLE, **options)\n"
        "    made.initialize()\n    found = made.check_properties()\n    assert not found, f'{names}: missing {found}'",
    )
    return f"{len(sets)} configs: {', '.join(names[-1] for _, names, _ in sets)}"


def config_sets(bundle: Path) -> list[tuple[str, list[str], dict[str, Any]]]:
    """Return every workflow's config files, those it lies over first, with its kind and the options that build it.

    Left out: apply.yaml, which is no workflow of MONAI's kinds, and the files for several processes, which are built
    where these run (the tests start two).
    """
    names = sorted(str(path.relative_to(bundle / "configs")) for path in (bundle / "configs").rglob("*.yaml"))
    sets: list[tuple[str, list[str], dict[str, Any]]] = []
    for name in names:
        if name == "apply.yaml" or name.startswith("multi_gpu_"):
            continue
        options: dict[str, Any] = {}
        if name.startswith(("train", "finetune")):
            kind, below = "train", [] if name == "train.yaml" else ["train.yaml"]
            options = {"network_shape": [65, 65, 65], "train_datalist": None, "val_datalist": None}  # no data at hand
        else:
            kind, below = "infer", [] if name == "inference.yaml" else ["inference.yaml"]
            if name == "datasets.yaml":
                below.append("evaluate.yaml")
                options["datalist"] = None  # the data are not at hand
            if name == "inference_exported.yaml":
                for ending in ("ts", "onnx"):
                    sets.append((kind, [*below, name], {"exported": f"models/{NAME}/models/model.{ending}"}))
                continue
        sets.append((kind, [*below, name], options))
    return sets


def check_exported_files(zoo: Path) -> str:
    """Make the files that inference_exported.yaml reads, by the bundle's own command."""
    for ending in ("ts", "onnx"):
        out = f"models/{NAME}/models/model.{ending}"
        _call(zoo, [sys.executable, f"models/{NAME}/scripts", "export", out], f"export of {out}")
    return "model.ts, model.onnx"


def check_unit_tests(zoo: Path) -> str:
    """Run the tests in the zoo's form, from the zoo's root."""
    command = [sys.executable, "-m", "unittest", "discover", "-s", f"models/{NAME}/{UNIT_TESTS}"]
    line = next(line for line in _call(zoo, command, "unit tests").splitlines() if line.startswith("Ran "))
    if line.startswith("Ran 0 "):
        raise FindingError(f"no unit tests in {UNIT_TESTS}")
    return line


def _run(zoo: Path, code: str, what: str = "") -> str:
    """Run code in a process of its own, from the zoo's root, the bundle first on the path as the zoo puts it."""
    names = {
        "BUNDLE": f"models/{NAME}",
        "META": f"models/{NAME}/configs/metadata.json",
        "INFERENCE": f"models/{NAME}/configs/inference.yaml",
    }
    start = "import sys\n" + "".join(f"{name} = {value!r}\n" for name, value in names.items())
    found = _call(zoo, [sys.executable, "-c", f"{start}sys.path.insert(0, BUNDLE)\n{code}"], what)
    return (found.strip().splitlines() or [""])[-1]


def _call(zoo: Path, command: list[str], what: str) -> str:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(command, cwd=zoo, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        last = [line for line in lines if "Error" in line and "component" not in line][:3] + lines[-6:]
        raise FindingError(f"{what or 'it'} fails:\n    " + "\n    ".join(last))
    return done.stdout if command[1] == "-c" else done.stdout + done.stderr
