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
"""Lay the bundle out for the Hugging Face hub: python -m tools.release.huggingface [FOLDER].

A repository there shows README.md of its root, which is the model card (docs/README.md) with its links adjusted; the
files are those of the zip file. Upload: ``hf upload ORGANIZATION/unigradicon FOLDER``.
"""

from __future__ import annotations

import argparse
import posixpath
import re
import shutil
from pathlib import Path

from tools.release.contents import ROOT, released_files

CARD = "docs/README.md"
_LINK = re.compile(r"(\]\()(?!https?:|#|mailto:)([^)\s]+)")
_LARGE = "*.pt filter=lfs diff=lfs merge=lfs -text\n*.png filter=lfs diff=lfs merge=lfs -text\n"


def root_card(text: str) -> str:
    """Return the model card as it reads from the root: its relative links begin in docs/."""
    return _LINK.sub(lambda link: link[1] + posixpath.normpath(posixpath.join("docs", link[2])), text)


def write_folder(folder: Path, root: Path = ROOT) -> Path:
    """Copy the released files, and write what the hub reads.

    Args:
        folder: new or empty; becomes the repository's content.
        root: the bundle, a git checkout.

    Raises:
        SystemExit: the folder holds something.
    """
    if folder.exists() and any(folder.iterdir()):
        raise SystemExit(f"error: {folder} is not empty; name a new folder")
    for name in released_files(root):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(root / name, folder / name)
    (folder / "README.md").write_text(root_card((root / CARD).read_text(encoding="utf-8")), encoding="utf-8")
    (folder / ".gitattributes").write_text(_LARGE, encoding="utf-8")
    return folder


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path, nargs="?", default=ROOT / "output" / "huggingface")
    print(f"{write_folder(parser.parse_args().folder)}: ready for: hf upload ORGANIZATION/unigradicon FOLDER")


if __name__ == "__main__":
    main()
