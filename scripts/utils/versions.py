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
"""The versions of the bundle and of what it computes with."""

from __future__ import annotations

import json
import platform
from pathlib import Path

import itk
import monai
import numpy as np
import torch


def versions() -> dict[str, str]:
    """Return the versions of the bundle and of what it computes with."""
    metadata = Path(__file__).resolve().parents[2] / "configs" / "metadata.json"
    try:
        bundle = str(json.loads(metadata.read_text(encoding="utf-8"))["version"])
    except (OSError, ValueError, KeyError):
        bundle = "unknown"
    return {
        "bundle": bundle,
        "torch": str(torch.__version__),
        "monai": str(monai.__version__),
        "itk": str(itk.Version.GetITKVersion()),
        "numpy": np.__version__,
        "python": platform.python_version(),
    }
