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
"""Run the inference config in this process, as MONAI Label and notebooks do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from monai.bundle import ConfigWorkflow

ROOT = Path(__file__).resolve().parents[2]


def run_inference(output_dir: Path, **options: Any) -> dict[str, Any]:
    """Run configs/inference.yaml with options, training-free unless ``model`` or ``ckpt_path`` says otherwise.

    Returns:
        the report of a single pair, {} for a datalist.
    """
    workflow = ConfigWorkflow(
        config_file=str(ROOT / "configs" / "inference.yaml"),
        workflow_type="inference",
        bundle_root=str(ROOT),
        output_dir=str(output_dir),
        progress=False,
        device="cpu",
        **{"model": "none", **options},
    )
    workflow.initialize()
    workflow.run()
    report = output_dir / "report.json"
    return json.loads(report.read_text()) if report.is_file() else {}
