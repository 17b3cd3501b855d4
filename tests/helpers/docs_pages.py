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
"""What the tests of the documentation read: its pages, their headings, links and commands."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
_FENCE = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```", re.DOTALL | re.MULTILINE)
_HEADING = re.compile(r"^#{1,6} +(.+?) *#*$", re.MULTILINE)
_LINK = re.compile(r"\[[^\]]*\]\(<?([^)>\s]+)>?[^)]*\)")


class Command(NamedTuple):
    """One command of a bash block."""

    page: str
    words: tuple[str, ...]
    """As bash divides the line, without its comment."""

    @property
    def text(self) -> str:
        """The words with spaces between, as the tables of the tests name the command."""
        return " ".join(self.words)


def without_code(text: str) -> str:
    """Return Markdown without its code blocks and code spans."""
    return re.sub(r"(`+)(?!`).+?(?<!`)\1(?!`)", "", _FENCE.sub("", text), flags=re.DOTALL)


def links_of(text: str) -> list[str]:
    """Return the targets of all links and pictures of a page."""
    return _LINK.findall(without_code(text))


def anchors_of(text: str) -> set[str]:
    """Return the anchors that GitHub gives the headings of a page."""
    found: set[str] = set()
    for heading in _HEADING.findall(_FENCE.sub("", text)):
        name = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", name.strip().lower()).replace(" ", "-")
        number = 0
        while (unique := f"{slug}-{number}" if number else slug) in found:
            number += 1
        found.add(unique)
    return found


def blocks_of(page: Path, language: str) -> list[str]:
    """Return the code blocks of a page in a language, in order."""
    return [body for _, named, body in _FENCE.findall(page.read_text(encoding="utf-8")) if named == language]


def commands_of(page: Path) -> list[Command]:
    """Return the commands in the bash blocks of a page, in order."""
    found = []
    for body in blocks_of(page, "bash"):
        for line in body.replace("\\\n", " ").splitlines():
            words = tuple(shlex.split(line, comments=True))
            if words:
                found.append(Command(page.relative_to(ROOT).as_posix(), words))
    return found
