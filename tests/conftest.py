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
"""Fixtures shared by all tests."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))


@pytest.fixture(scope="session")
def bundle_root() -> Path:
    """Return the folder that holds configs/, models/ and scripts/."""
    return ROOT


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Return the folder of real development pairs, or skip where it is absent (it is not part of the product)."""
    folder = Path(os.environ.get("REGISTRATION_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not (folder / "pairs.json").is_file():
        pytest.skip(f"real development pairs are not on this machine ({folder}/pairs.json)")
    return folder


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
