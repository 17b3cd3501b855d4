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
"""Tag a release: python -m tools.release.tag makes the annotated tag v<version>, with the changelog's line.

Nothing is pushed. Refused: a version that the changelog or pyproject.toml do not have, that is tagged already, that is
not newer than the last tag, or a tree with changes.
"""

from __future__ import annotations

import json
import re
import subprocess
import tomllib
from pathlib import Path

from tools.release.contents import ROOT, version_of


def tag(root: Path = ROOT) -> str:
    """Make the tag of a checkout and return its name.

    Raises:
        SystemExit: see the module; says what to do.
    """
    version = version_of(root)
    metadata = json.loads((root / "configs" / "metadata.json").read_text(encoding="utf-8"))
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    cited = re.search(r"^version: (\S+)$", (root / "CITATION.cff").read_text(encoding="utf-8"), re.MULTILINE)
    if version not in metadata["changelog"]:
        raise SystemExit(f"error: version {version} has no line in the changelog of configs/metadata.json")
    others = {"pyproject.toml": project, "CITATION.cff": cited[1] if cited else None}
    for name, found in others.items():
        if found != version:
            raise SystemExit(f"error: {name} has version {found}, configs/metadata.json {version}; make them the same")
    changes = _git(root, "status", "--porcelain").splitlines()
    if changes:
        found = ", ".join(line[3:] for line in changes[:3]) + (", ..." if len(changes) > 3 else "")
        raise SystemExit(f"error: there are changes that are not committed ({found}); a tag is of what is committed")
    name = f"v{version}"
    tags = [each for each in _git(root, "tag", "--list", "v*").split() if re.fullmatch(r"v\d+\.\d+\.\d+", each)]
    newer = [each for each in tags if _numbers(each) >= _numbers(name)]
    if newer:
        raise SystemExit(f"error: {max(newer, key=_numbers)} is tagged already; raise the version above it")
    _git(root, "tag", "--annotate", name, "--message", f"{version}: {metadata['changelog'][version]}")
    return name


def _numbers(name: str) -> list[int]:
    return [int(part) for part in name.removeprefix("v").split(".")]


def _git(root: Path, *arguments: str) -> str:
    return subprocess.run(["git", "-C", str(root), *arguments], check=True, capture_output=True, text=True).stdout


if __name__ == "__main__":
    print(f"tagged {tag()}; publish it with: git push --tags")
