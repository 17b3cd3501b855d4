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
"""Which files a release holds, under which name and version."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NAME = "unigradicon"
LEFT_OUT = (".ci/", ".gitignore")


def version_of(root: Path = ROOT) -> str:
    """Return the version that the metadata of a bundle tells."""
    return str(json.loads((root / "configs" / "metadata.json").read_text(encoding="utf-8"))["version"])


def released_files(root: Path = ROOT) -> list[str]:
    """Return the files of a release, sorted, relative to the bundle's folder: what git knows, less :data:`LEFT_OUT`.

    Raises:
        SystemExit: the folder is no git checkout, or a file of it is missing.
    """
    if not (root / ".git").exists():
        raise SystemExit(f"error: {root} is no git checkout, and a release is made of what git knows")
    command = ["git", "-C", str(root), "ls-files", "-z"]
    known = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split("\0")
    names = sorted(name for name in known if name and not name.startswith(LEFT_OUT))
    missing = [name for name in names if not (root / name).is_file()]
    if missing:
        raise SystemExit(f"error: files that git knows are not there: {', '.join(missing[:3])}; restore or remove them")
    return names
