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
"""Are options known, and of the type of their default? One line says what to write instead."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from monai.bundle import ConfigParser, ReferenceResolver

from scripts.declared_options import CONFIGS, groups_of
from scripts.utils.errors import InputError
from scripts.utils.suggestions import did_you_mean


def raise_unknown(options: Iterable[str], known: Iterable[str], suggestions: Iterable[str]) -> None:
    """Raise an InputError for the options whose first part is not known."""
    known, suggestions = set(known), sorted(suggestions)
    unknown = [option for option in options if first_part(option) not in known]
    if unknown:
        hints = [
            _name_of_file(option) or _other_file(option) or did_you_mean(first_part(option), suggestions)
            for option in unknown
        ]
        words = [f"--{option}{hint}" for option, hint in zip(unknown, hints, strict=True)]
        found = ", ".join(words)
        raise InputError(
            f"unknown option {found}{'' if found.endswith('?') else '.'} The config files list all options"
        )


def raise_unknown_members(options: Iterable[str], declared: Iterable[str]) -> None:
    """Raise an InputError for members that their group does not have: ``save::pgae``.

    Args:
        options: names that were given; other ids of the config may be among them.
        declared: names of all options.
    """
    groups = groups_of(declared)
    for option in options:
        name = ReferenceResolver.normalize_id(option.lstrip("+"))
        group = groups.get(name.partition("::")[0], [])
        if group and "::" in name and not any(name == known or name.startswith(f"{known}::") for known in group):
            hint = did_you_mean(name, group) or "."
            raise InputError(f"unknown option --{name}{hint} Its group has {', '.join(group)}")


def complete_groups(parser: ConfigParser, defaults: Mapping[str, Sequence[Any]]) -> None:
    """Give a group that was set as a whole, such as ``save: {page: true}``, the members that were left out.

    Args:
        parser: of a workflow of which nothing that matters has been built.
        defaults: options of the bundle's config files in use, with the values they have there; the last one counts.

    Raises:
        InputError: a group is no mapping, or has an unknown member.
    """
    for group, members in groups_of(defaults).items():
        value = parser.get(group)
        if group not in parser:
            continue
        if not isinstance(value, Mapping):
            example = f"{members[0]} {defaults[members[0]][-1]}"
            raise InputError(
                f"{group}: expected a group of options, got {value!r}; give them singly, such as --{example}"
            )
        raise_unknown_members([f"{group}::{member}" for member in value], members)
        whole = {name.partition("::")[2]: defaults[name][-1] for name in members}
        if len(value) < len(whole):
            parser[group] = {**whole, **value}


def check_types(config: ConfigParser, defaults: Mapping[str, Sequence[Any]]) -> None:
    """Refuse values of another type than their option has.

    A text where a switch is meant is refused for every entry of the config: the command line makes a text of ``false``,
    and a text counts as true. Values that the config computes are not looked at.

    Args:
        config: parser with the values in use.
        defaults: options with the values that the config files in use give them.

    Raises:
        InputError: naming the option, the value and what is expected.
    """
    values = dict(config.get()) | {name: config[name] for name in defaults if name in config}
    for option, value in values.items():
        is_text = isinstance(value, str)
        if is_text and value.startswith(("$", "@", "%")):
            continue
        known = defaults.get(option, ())
        if is_text and (value.strip().lower() in ("true", "false") or _all(known, bool)):
            raise InputError(
                f"{option}: expected True or False, got the text '{value}'; write --{option} True or --{option} False,"
                " with a capital letter"
            )
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        for kind, is_right, words in (
            ((int, float), is_number, "a number"),
            (list, isinstance(value, (list, tuple, type(None))), "a list"),  # null: in training, of the weights
            (dict, isinstance(value, Mapping), "a mapping"),
            (bool, _is_switch(value), "True or False"),
        ):
            if _all(known, kind) and not is_right:
                raise InputError(f"{option}: expected {words}, such as {known[-1]}, got {value!r}")


def _is_switch(value: Any) -> bool:
    """Tell whether a value is True or False, or a list of them, as ``invert`` takes for several transforms."""
    each = value if isinstance(value, (list, tuple)) and value else [value]
    return all(isinstance(one, int) and one in (0, 1) for one in each)


def _all(values: Sequence[Any], kind: Any) -> bool:
    """Tell whether there are values, all of a type; a switch is no number."""
    return bool(values) and all(isinstance(v, kind) and (kind is bool or not isinstance(v, bool)) for v in values)


def _name_of_file(option: str) -> str:
    """Return how to write a file's name that begins with - and was taken for an option."""
    return f" (if -{option} is a file, write ./-{option})" if "." in option else ""


def _other_file(option: str) -> str:
    """Return in which of the bundle's config files an option is that those in use do not have."""
    own = [path for path in sorted(CONFIGS.glob("*.yaml")) if first_part(option) in declared_ids([str(path)])]
    return f", of configs/{own[0].name}, which is not in use" if own else ""


def declared_ids(files: Iterable[str]) -> set[str]:
    """Return the top-level ids of config files."""
    return {first_part(key) for key in declared_values(files)}


def declared_values(files: Iterable[str]) -> dict[str, Any]:
    """Return the top-level ids of config files with their values; the later file wins."""
    return {key: value for name in files for key, value in ConfigParser.load_config_file(name).items()}


def first_part(option: str) -> str:
    """Return the id at the top of the config that an option belongs to."""
    return ReferenceResolver.split_id(str(option).lstrip("+"))[0]
