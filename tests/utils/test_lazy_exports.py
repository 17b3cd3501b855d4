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
"""What packages export is there when it is asked for, and what they do not export is not."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest

PACKAGES = [
    path.parent.name for path in sorted((Path(__file__).resolve().parents[2] / "scripts").glob("*/__init__.py"))
]


@pytest.mark.parametrize("name", PACKAGES)
def test_a_package_has_what_it_says_and_nothing_else(name: str) -> None:
    package = import_module(f"scripts.{name}")
    for export in getattr(package, "__all__", ()):
        assert getattr(package, export).__name__ == export
    assert not hasattr(package, "nothing_of_that_name")
