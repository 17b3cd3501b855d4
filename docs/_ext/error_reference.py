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
"""The list of error messages, made from the code when the site is built.

Collected are the texts of all errors that a user can act on: of :class:`scripts.utils.errors.InputError`, of its
subclasses
and, in the server for MONAI Label, of ``RequestError``. In ``docs/troubleshooting.md`` the line ``<!-- errors -->``
stands for it.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from made_pages import fill

if TYPE_CHECKING:
    from sphinx.application import Sphinx

ROOT = Path(__file__).resolve().parents[2]
PAGE, PLACE = "troubleshooting", "<!-- errors -->"
FOLDERS = ("scripts", "monailabel_app")
KINDS = ("InputError", "InputFileError", "RequestError")
GAP = "…"  # stands for what the message is filled with


class Topic(NamedTuple):
    """The messages of one module."""

    module: str
    title: str
    """First sentence of the module's docstring."""
    messages: list[str]


def template_of(node: ast.expr) -> str:
    """Return the text of an expression, with :data:`GAP` for all that is known only when the program runs."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(template_of(value) for value in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return template_of(node.left) + template_of(node.right)
    return GAP


def messages_of(tree: ast.AST) -> list[str]:
    """Return the texts of a module's errors, in the code's order, without those that have no words of their own."""
    calls = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in KINDS and node.args
    ]
    texts = [template_of(call.args[0]) for call in sorted(calls, key=lambda call: (call.lineno, call.col_offset))]
    texts = [re.sub(f"{GAP}(\\s*{GAP})+", GAP, " ".join(text.split())) for text in texts]
    return list(dict.fromkeys(text for text in texts if len(re.findall(r"[A-Za-z]{2,}", text)) > 2))


def topics() -> list[Topic]:
    """Return the messages of all modules that have some."""
    found = []
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            if "tests" in path.parts:
                continue
            tree = ast.parse(path.read_text(encoding="utf-8"))
            messages = messages_of(tree)
            if messages:
                title = " ".join((ast.get_docstring(tree) or path.stem).split("\n\n")[0].split())
                title = re.split(r"(?<=[^.])\.(?: |$)", title)[0]
                found.append(Topic(path.relative_to(ROOT).as_posix(), title, messages))
    return found


def reference() -> str:
    """Return the Markdown of the list."""
    lines: list[str] = []
    for topic in topics():
        title = topic.title.replace("``", "`")
        lines += ["### " + title[0].upper() + title[1:], "", f"`{topic.module}`", ""]
        lines += [f"- {_literal(message)}" for message in topic.messages]
        lines.append("")
    return "\n".join(lines)


def _literal(text: str) -> str:
    """Return text as Markdown code, whatever backticks are in it."""
    fence = "`" * (1 + max((len(run) for run in re.findall(r"`+", text)), default=0))
    pad = " " if len(fence) > 1 or text != text.strip() else ""
    return f"{fence}{pad}{text}{pad}{fence}"


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the extension."""
    return fill(app, PAGE, PLACE, reference)
