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
"""The documentation without building it: links, the site's table of contents, the references made from the files."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from scripts.data.reading import read_header
from scripts.losses.similarity import create_similarity
from scripts.networks.checkpoints import find_weights
from scripts.utils.errors import InputError
from tests.helpers.docs_pages import PAGES, ROOT, anchors_of, links_of

sys.path.append(str(ROOT / "docs" / "_ext"))

import config_reference
import error_reference


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name if page.parent == ROOT else f"docs/{page.name}")
def test_every_link_leads_somewhere(page: Path) -> None:
    wrong = []
    for target in links_of(page.read_text(encoding="utf-8")):
        if re.match(r"[a-z][a-z0-9+.-]*:", target):
            wrong += [] if target.startswith("https://") else [f"{target}: not https"]
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        if not path.exists():
            wrong.append(f"{target}: no such file")
        elif ROOT not in path.parents:
            wrong.append(f"{target}: outside of the repository")
        elif anchor and anchor not in anchors_of(path.read_text(encoding="utf-8")):
            wrong.append(f"{target}: no such heading")
    assert not wrong


def test_anchors_are_githubs() -> None:
    text = "# A `b_c`, d-e: f/g?\n## Same\n## Same\n```bash\n# no heading\n```\n### [Link](x.md) 2^3\n"
    assert anchors_of(text) == {"a-b_c-d-e-fg", "same", "same-1", "link-23"}
    assert links_of("[a](b.md#c) `[d](e)` ![f](g.png)\n```bash\n[h](i)\n```\n") == ["b.md#c", "g.png"]


def test_the_site_has_every_page_once() -> None:
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    listed: list[str] = []
    for block in re.findall(r"^```\{toctree\}\n(.*?)^```", index, re.DOTALL | re.MULTILINE):
        entries = [line for line in block.splitlines() if line and not line.startswith(":")]
        listed += [re.sub(r"^.*<(.*)>$", r"\1", entry) for entry in entries]
    pages = {path.stem for folder in ("*.md", "*.ipynb") for path in (ROOT / "docs").glob(folder)} - {"index"}
    assert sorted(listed) == sorted(pages)


@pytest.mark.parametrize("name", [path.name for path in sorted((ROOT / "configs").glob("*.yaml"))])
def test_every_option_is_in_the_reference_with_its_meaning(name: str) -> None:
    """Options are the keys before the workflow's own part, and the members of the groups among them."""
    text = (ROOT / "configs" / name).read_text(encoding="utf-8")
    head = re.split(r"^# -+ (?:the )?workflow -+$", text, flags=re.MULTILINE)[0]
    values = {}
    for key, value in yaml.safe_load(head).items():
        assert "_target_" not in str(value), key
        values |= {f"{key}::{k}": v for k, v in value.items()} if isinstance(value, dict) else {key: value}
    rows = [row for section in config_reference.sections_of(name) for row in section.rows]
    assert sorted(key for key, _, _ in rows) == sorted(values)
    assert [row for row in rows if not row[1] or not row[2]] == []
    for key, default, _ in rows:  # the default that is shown is the one that holds
        assert values[key] in (yaml.safe_load(default), default)
        assert f"| `{key}` |" in config_reference.reference()


def test_sections_of_the_reference_are_those_of_the_file() -> None:
    titles = [section.title for section in config_reference.sections_of("inference.yaml")]
    assert titles == ["inputs", "registration", "preprocessing", "computing", "outputs"]
    outputs = config_reference.sections_of("inference.yaml")[-1].rows
    assert all(key == "output_dir" or key.startswith("save::") for key, _, _ in outputs)


def _broken_image(folder: Path) -> None:
    (folder / "a.nii.gz").write_bytes(b"no image")
    read_header(str(folder / "a.nii.gz"))


@pytest.mark.parametrize(
    "cause",
    [
        lambda folder: find_weights("nothing"),
        lambda folder: find_weights("none", folder / "b.pt"),
        lambda folder: create_similarity("nothing"),
        _broken_image,
    ],
)
def test_a_message_is_found_among_those_listed(cause: Callable[[Path], object], tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        cause(tmp_path)
    message = str(error.value)
    listed = [text for topic in error_reference.topics() for text in topic.messages]
    patterns = [".*".join(map(re.escape, text.split(error_reference.GAP))) for text in listed]
    assert any(re.fullmatch(pattern, message) for pattern in patterns), message


def test_every_error_is_listed() -> None:
    """The words that each call begins with, as a text search finds them, begin a message of that module's list."""
    found = {topic.module: topic for topic in error_reference.topics()}
    calls = 0
    for folder in ("scripts", "monailabel_app"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            code = path.read_text(encoding="utf-8") if "tests" not in path.parts else ""
            for begin in re.findall(r"\b(?:Input|InputFile|Request)Error\(\s*f?\"([^\"{\\\\]{12,})", code):
                messages = found[path.relative_to(ROOT).as_posix()].messages
                assert any(message.startswith(" ".join(begin.split())) for message in messages), (path.name, begin)
                calls += 1
    assert calls > 120
    for topic in found.values():
        assert len(set(topic.messages)) == len(topic.messages)
        assert topic.title[-1] != "."
    text = error_reference.reference()
    assert all(error_reference._literal(message) in text for topic in found.values() for message in topic.messages)


def test_templates_keep_the_words_and_drop_the_values() -> None:
    code = """
raise InputError(f"size: {n} of {m!r} voxels is too large; crop" + f" it{extra}")
raise InputError(str(known)) from error
raise ValueError("not for users of the command")
raise InputFileError("one"
    " and two and three")
"""
    assert error_reference.messages_of(error_reference.ast.parse(code)) == [
        "size: … of … voxels is too large; crop it…",
        "one and two and three",
    ]


def test_sources_of_the_site_carry_the_license_header() -> None:
    sources = [*(ROOT / "docs").glob("*.py"), *(ROOT / "docs" / "_ext").glob("*.py")]
    assert len(sources) > 3
    assert [path.name for path in sources if "Apache License, Version 2.0" not in path.read_text()[:600]] == []
