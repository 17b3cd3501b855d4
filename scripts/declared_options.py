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
"""The options as the config files declare them: what stands above the workflow, with its comments.

An entry above the heading ``workflow`` is an option, and so is each entry of a group such as ``save``::

    # ---- outputs ----
    output_dir: output # folder of the results
    save:
      page: false # report.html

    # ---- workflow ----

Without that heading (in a file of a user's own) all entries count, and none is a group. The comment beside an entry is
its documentation, the heading above it its section, the default shows its type. The help of the command, the reference
in the documentation, the checks of names and types, and the settings of a report follow from this one declaration.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap
from ruamel.yaml.error import MantissaNoDotYAML1_1Warning

from scripts.utils.errors import InputError

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
WORKFLOW = "workflow"  # heading of what follows the options
_HEADING = re.compile(r"^# -+ (.+?) -+$")


class DeclaredOption(NamedTuple):
    """An option of a config file."""

    name: str
    """As on the command line: ``preset``, ``save::page``."""
    default: Any
    """Plain value; its type is the option's, unless it is None."""
    text: str
    """What the comment beside it says."""
    section: str
    """Heading above it, empty in files without headings."""

    @property
    def default_text(self) -> str:
        """The default as it is written in a config file."""
        if isinstance(self.default, float):
            return re.sub(r"^(-?\d+)e", r"\1.0e", repr(self.default))  # to YAML, 2e-05 is a text
        return self.default if isinstance(self.default, str) else json.dumps(self.default)


def declared_options(files: Iterable[str | Path]) -> dict[str, DeclaredOption]:
    """Return the options of config files laid over each other, by name, in the files' order.

    Where a later file declares an option again, it may leave the comment and the section to the earlier one.

    Args:
        files: paths; a bare name is a file of the bundle's ``configs``.
    """
    found: dict[str, DeclaredOption] = {}
    for option in _options(files):
        before = found.get(option.name, option)
        found[option.name] = option._replace(text=option.text or before.text, section=option.section or before.section)
    return found


def defaults_of(files: Iterable[str | Path]) -> dict[str, list[Any]]:
    """Return the options that the bundle's own files (with a workflow) declare, each with the defaults of all files."""
    found: dict[str, list[Any]] = {}
    for option in _options(path for path in map(_path, files) if _read(path)[1]):
        found.setdefault(option.name, []).append(option.default)
    return found


def groups_of(options: Iterable[str]) -> dict[str, list[str]]:
    """Return the groups among the names of options, such as ``save``, with the full names of their members."""
    groups: dict[str, list[str]] = {}
    for name in options:
        if "::" in name:
            groups.setdefault(name.partition("::")[0], []).append(name)
    return groups


def header_of(path: Path) -> str:
    """Return the comment at the beginning of a config file, up to its first empty line, as one line."""
    words = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.strip("# "):
            break
        words.append(line.strip("# "))
    return " ".join(words)


def _options(files: Iterable[str | Path]) -> Iterator[DeclaredOption]:
    for file in files:
        yield from _read(_path(file))[0]


def _path(file: str | Path) -> Path:
    return (CONFIGS / file if Path(file).name == str(file) and not Path(file).is_file() else Path(file)).resolve()


@cache
def _read(path: Path) -> tuple[tuple[DeclaredOption, ...], bool]:
    """Return the options of a file, and whether a workflow follows them."""
    lines = path.read_text(encoding="utf-8").splitlines()
    headings = {number: title[1] for number, line in enumerate(lines) if (title := _HEADING.match(line))}
    end = next((number for number, title in headings.items() if title.endswith(WORKFLOW)), len(lines))
    yaml = YAML()  # keeps comments
    yaml.version = (1, 1)  # type: ignore[assignment]  # as MONAI reads: off is False
    yaml.allow_duplicate_keys = True  # MONAI warns of them
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", MantissaNoDotYAML1_1Warning)  # of 2e-5, whose type is checked as MONAI's
            content = yaml.load("\n".join(lines[:end]))
    except Exception as error:
        raise InputError(f"'{path}' can't be read as YAML: {error}") from error
    has_workflow = end < len(lines)
    options = _options_in(content, headings, has_workflow) if isinstance(content, CommentedMap) else ()
    return tuple(options), has_workflow


def _options_in(content: CommentedMap, headings: dict[int, str], has_groups: bool) -> Iterator[DeclaredOption]:
    for key, value in content.items():
        section = next((headings[number] for number in reversed(headings) if number < content.lc.key(key)[0]), "")
        if has_groups and isinstance(value, CommentedMap) and not value.fa.flow_style():  # one in braces is a value
            for member, default in value.items():
                yield DeclaredOption(f"{key}::{member}", _plain(default), _comment(value, member), section)
        elif not str(key).startswith("+"):
            yield DeclaredOption(str(key), _plain(value), _comment(content, key), section)


def _comment(mapping: CommentedMap, key: Any) -> str:
    """Return the comment on the line of a key; ruamel.yaml keeps the lines up to the next key with it."""
    token = (mapping.ca.items.get(key) or [None] * 3)[2]
    return "" if token is None else str(token.value).split("\n", 1)[0].strip("# ")


def _plain(value: Any) -> Any:
    """Return a value without the types of ruamel.yaml."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    plain = next((kind for kind in (bool, int, float, str) if isinstance(value, kind)), None)
    return value if plain is None else plain(value)
