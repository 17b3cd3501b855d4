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
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from made_pages import fill

from scripts.declared_options import CONFIGS, DeclaredOption, declared_options, header_of

if TYPE_CHECKING:
    from sphinx.application import Sphinx

PAGE, PLACE = "configs", "<!-- options -->"
# what a file is laid over (train.yaml: what it shares names with): where it gives no meaning of its own, theirs holds
LAYERS: dict[str, tuple[str, ...]] = {
    "inference.yaml": (),
    "cohort.yaml": ("inference.yaml",),
    "evaluate.yaml": ("inference.yaml",),
    "datasets.yaml": ("inference.yaml", "evaluate.yaml"),
    "inference_exported.yaml": ("inference.yaml",),
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
    own, known = declared_options((name,)), declared_options((*LAYERS[name], name))
    sections: list[Section] = []
    for option in own.values():
        if not sections or option.section != sections[-1].title:
            sections.append(Section(option.section, []))
        text = known[option.name].text or _as_of_fixed(option.name, known)
        sections[-1].rows.append((option.name, option.default_text, text))
    return sections


def _as_of_fixed(name: str, known: Mapping[str, DeclaredOption]) -> str:
    """Return the meaning of an option of the moving image whose comment stands beside that of the fixed one."""
    partner = name.replace("moving_", "fixed_", 1)
    return f"the same of the moving image, see {partner}" if partner != name and partner in known else ""


def reference() -> str:
    """Return the Markdown of all tables."""
    lines: list[str] = []
    for name in LAYERS:
        lines += [f"## {name}", "", re.split(r"(?<=\.) ", header_of(CONFIGS / name))[0], ""]
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
