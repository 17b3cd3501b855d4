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
"""The reference of the config files: one table a section, made from the files themselves when the site is built.

The comment beside a key is its documentation. In ``docs/configs.md`` the line ``<!-- options -->`` stands for the
tables.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from made_pages import fill

from scripts.cli import CONFIGS, Option, options_of

if TYPE_CHECKING:
    from sphinx.application import Sphinx

PAGE, PLACE = "configs", "<!-- options -->"
# what a file is laid over (train.yaml: what it shares names with): where it gives no meaning of its own, theirs holds
LAYERS: dict[str, tuple[str, ...]] = {
    "inference.yaml": (),
    "cohort.yaml": ("inference.yaml",),
    "evaluate.yaml": ("inference.yaml",),
    "datasets.yaml": ("inference.yaml", "evaluate.yaml"),
    "inference_ts.yaml": ("inference.yaml",),
    "inference_onnx.yaml": ("inference.yaml",),
    "inference_trt.yaml": ("inference.yaml",),
    "apply.yaml": (),
    "train.yaml": ("inference.yaml",),
    "finetune.yaml": ("inference.yaml", "train.yaml"),
    "train_default.yaml": ("inference.yaml", "train.yaml"),
    "train_voxelmorph.yaml": ("inference.yaml", "train.yaml"),
    "multi_gpu_cohort.yaml": ("inference.yaml", "cohort.yaml"),
    "multi_gpu_evaluate.yaml": ("inference.yaml", "evaluate.yaml"),
    "multi_gpu_train.yaml": ("inference.yaml", "train.yaml"),
}
# keys that are no options: of the workflow, or set for the processes that torchrun starts
INTERNAL = {
    *("wait", "network", "weights", "begin", "finalize", "run", "network_def", "objective", "benchmarks"),
    "benchmark_settings",
}
_SECTION = re.compile(r"^# -+ (.+?) -+$")
_KEY = re.compile(r"^(\w+):(?!:)(.*)$")


class Section(NamedTuple):
    """A part of a config file."""

    title: str
    """As in the file; empty where the file has no sections."""
    rows: list[tuple[str, str, str]]
    """Key, default, meaning."""


def sections_of(name: str) -> list[Section]:
    """Return the options of a config file by section.

    Args:
        name: of a file in ``configs/``, a key of :data:`LAYERS`.
    """
    own, known = options_of((name,)), options_of((*LAYERS[name], name))
    lines = (CONFIGS / name).read_text(encoding="utf-8").splitlines()
    sections = [Section("", [])]
    for number, line in enumerate(lines):
        if (title := _SECTION.match(line)) and title[1] != "the workflow":
            sections.append(Section(title[1], []))
        key = _KEY.match(line)
        if key and key[1] in own and key[1] not in INTERNAL:
            option = known[key[1]]
            default = own[key[1]].default or _nested(lines[number + 1 :])
            sections[-1].rows.append((option.name, default, option.text or _as_of_fixed(option.name, known)))
    return [section for section in sections if section.rows]


def _as_of_fixed(name: str, known: Mapping[str, Option]) -> str:
    """Return the meaning of an option of the moving image whose comment stands beside that of the fixed one."""
    partner = name.replace("moving_", "fixed_", 1)
    return f"the same of the moving image, see {partner}" if partner != name and partner in known else ""


def _nested(lines: Iterable[str]) -> str:
    """Return the indented lines that follow a key, as one."""
    found = []
    for line in lines:
        if not line.startswith(" "):
            break
        found.append(line.strip())
    return ", ".join(found)


def header_of(path: Path) -> str:
    """Return the first sentence of a config file's comment."""
    comment: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.strip("# ") == "" or not line.startswith("#"):
            break
        comment.append(line.strip("# "))
    return re.split(r"(?<=\.) ", " ".join(comment))[0]


def reference() -> str:
    """Return the Markdown of all tables."""
    lines: list[str] = []
    for name in LAYERS:
        lines += [f"## {name}", "", header_of(CONFIGS / name), ""]
        for section in sections_of(name):
            if section.title:
                lines += [f"### {section.title[0].upper()}{section.title[1:]}", ""]
            lines += ["| key | default | meaning |", "| --- | --- | --- |"]
            lines += [f"| `{key}` | {_code(default)} | {_text(text)} |" for key, default, text in section.rows]
            lines.append("")
    return "\n".join(lines)


def _code(default: str) -> str:
    if default.startswith("$"):  # an expression of MONAI's: computed when the config is read
        default = default.removeprefix("$")
    return f"`{default}`".replace("|", r"\|") if default else ""


def _text(text: str) -> str:
    """Escape what Markdown would take for its own."""
    return re.sub(r"([*_<|$\[\]])", r"\\\1", text)


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the extension."""
    return fill(app, PAGE, PLACE, reference)
