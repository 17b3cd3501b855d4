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
"""The locks fit pyproject.toml, each other, the metadata and what is installed."""

from __future__ import annotations

import json
import re
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

LOCKS = ("requirements.lock", "requirements-cpu.lock", "requirements-dev.lock", "monailabel_app/requirements.lock")
LOCAL = re.compile(r"file:|://|(?<![\w/.:-])/(home|root|opt|tmp|usr|var)/", re.IGNORECASE)
ENTRY = re.compile(r"[a-z0-9-]+==\S+( ; [^\\]+)?( --hash=sha256:[0-9a-f]{64})+")


def entries(path: Path) -> list[str]:
    """Return the entries of a lock, each in one line."""
    text = path.read_text(encoding="utf-8").replace("\\\n", "")
    return [re.sub(r"\s+", " ", line) for line in text.splitlines() if not line.startswith("#")]


def versions(path: Path) -> dict[str, str]:
    """Return the versions of a lock; 2.13.0+cpu is a build of 2.13.0."""
    pairs = (entry.split(" ")[0].split("==") for entry in entries(path))
    return {name: version.partition("+")[0] for name, version in pairs}


@pytest.fixture(scope="module")
def project(bundle_root: Path) -> dict[str, Any]:
    return tomllib.loads((bundle_root / "pyproject.toml").read_text())


@pytest.mark.parametrize("name", LOCKS)
def test_every_entry_has_a_version_and_hashes_and_nothing_is_local(name: str, bundle_root: Path) -> None:
    found = entries(bundle_root / name)
    assert len(found) > 50
    assert [entry[:80] for entry in found if not ENTRY.fullmatch(entry)] == []
    assert not LOCAL.search((bundle_root / name).read_text())


def test_the_lock_has_what_the_project_asks_for(bundle_root: Path, project: dict[str, Any]) -> None:
    locked = versions(bundle_root / "requirements.lock")
    asked = [Requirement(line) for line in project["project"]["dependencies"]]
    assert [str(each) for each in asked if locked.get(canonicalize_name(each.name), "0") not in each.specifier] == []
    assert [str(each) for each in asked if not any(one.operator == ">=" for one in each.specifier)] == []


def test_the_metadata_names_what_the_project_asks_for(bundle_root: Path, project: dict[str, Any]) -> None:
    facts = json.loads((bundle_root / "metadata.json").read_text())
    named = {"monai", "torch", "numpy", *facts["required_packages_version"]}
    assert named == {Requirement(line).name for line in project["project"]["dependencies"]}


def test_the_locks_have_the_same_versions(bundle_root: Path, project: dict[str, Any]) -> None:
    user, cpu, dev = (versions(bundle_root / name) for name in LOCKS[:3])
    cuda = set(user) - set(cpu)
    assert all(re.fullmatch(r"nvidia-.*|cuda-.*|triton", name) for name in cuda)
    assert cpu == {name: version for name, version in user.items() if name not in cuda}
    assert {name: dev[name] for name in cpu if name != "torch"} == {name: cpu[name] for name in cpu if name != "torch"}
    assert "torch" not in dev
    assert project["dependency-groups"]["cpu"] == [f"torch=={user['torch']}+cpu"]


def test_what_is_installed_is_what_is_locked(bundle_root: Path) -> None:
    locked = versions(bundle_root / "requirements.lock")
    found = {canonicalize_name(each.name): each.version.partition("+")[0] for each in metadata.distributions()}
    installed = {name: found[name] for name in locked if name in found}
    assert {"torch", "monai", "numpy"} <= set(installed)
    assert installed == {name: locked[name] for name in installed}


def test_the_published_list_has_https_only(bundle_root: Path) -> None:
    entries = yaml.safe_load((bundle_root / "large_files.yml").read_text())["large_files"]
    assert all(entry["url"].startswith("https://") for entry in entries)
