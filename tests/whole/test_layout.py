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
"""What the import contracts can't see: the signs between LPS and RAS stand in one module, tests mirror the packages."""

from __future__ import annotations

import ast
import re
import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest

SIGNS = re.compile(r"-1(\.0)?, ?-1(\.0)?, ?1(\.0)?\b")
NO_PACKAGES = {"helpers", "whole", "tools"}  # of tests


@pytest.fixture(scope="module")
def scripts(bundle_root: Path) -> Path:
    return bundle_root / "scripts"


def test_signs_between_lps_and_ras_stand_in_one_module(scripts: Path) -> None:
    found = {
        str(path.relative_to(scripts))
        for path in scripts.rglob("*.py")
        if SIGNS.search(path.read_text(encoding="utf-8"))
    }
    assert found == {"geometry/world_axes.py"}


def test_tests_mirror_the_packages(scripts: Path) -> None:
    packages = {path.parent.name for path in scripts.glob("*/__init__.py")}
    folders = {path.parent.name for path in (scripts.parent / "tests").glob("*/__init__.py")}
    assert folders - NO_PACKAGES == packages


def test_each_package_says_what_lives_there_what_does_not_and_what_it_imports(scripts: Path) -> None:
    for path in scripts.glob("*/__init__.py"):
        text = path.read_text(encoding="utf-8").split('"""')[1]
        assert text.count(". ") + text.count(".\n") >= 3, path
        assert re.search(r"\bimports\b", text), path


def test_mutants_are_made_of_files_that_are_there(bundle_root: Path) -> None:
    settings = tomllib.loads((bundle_root / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["mutmut"]
    paths = settings["only_mutate"] + settings["pytest_add_cli_args_test_selection"]
    assert [path for path in paths if not (bundle_root / path).is_file()] == []


def test_tools_import_what_is_there(bundle_root: Path) -> None:
    for path in (bundle_root / "tools").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and str(node.module).partition(".")[0] in ("scripts", "tests", "tools"):
                assert find_spec(str(node.module)) is not None, f"{path}: {node.module}"
