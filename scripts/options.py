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
"""The guard against unknown options: MONAI accepts ``--fixd a.nii.gz`` silently, this bundle does not.

:func:`check_options` stands first in a workflow's `run:` list, as a component. MONAI hands no parser to a component,
so the callers' frames are searched for it: the bundle command's own arguments if there is one (they tell the options
from the config files exactly), else the ConfigParser that is at work.
"""

from __future__ import annotations

import inspect
import itertools
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser, ConfigWorkflow, ReferenceResolver, update_kwargs
from monai.utils import ensure_tuple

from scripts.utils.errors import InputError, report_plainly
from scripts.utils.suggestions import did_you_mean
from scripts.utils.tracking import check_tracking

# arguments of MONAI's `run` and `run_workflow` themselves, not options of ours
COMMAND_ARGUMENTS = frozenset(
    (
        *("run_id", "init_id", "final_id", "meta_file", "config_file", "logging_file", "tracking", "args_file"),
        *("workflow_name", "workflow_type", "properties_path", "workflow"),
    )
)
# ids that MONAI adds to a config by itself; the second line: with --tracking
MONAI_IDS = frozenset({"_meta_", "initialize", "run", "finalize"})
TRACKING_IDS = frozenset(
    ["output_dir", "tracking_uri", "experiment_name", "run_name", "save_execute_config", "is_not_rank0"]
)

_BUNDLE_CONFIGS = Path(__file__).resolve().parents[1] / "configs"


def check_options(config_files: Iterable[str] | str | None = None, also: Iterable[str] = ()) -> None:
    """Refuse options that no config file declares, and show errors of input as one line on the command line.

    An option is known if its first part (``evaluator`` of ``evaluator::amp``) is an id of a config file in use, or if
    something in the config refers to it.

    Args:
        config_files: files that declare the options; by default those of the command, or, in a workflow built in
            Python, all of the bundle's ``configs`` folder.
        also: further names to accept.

    Raises:
        InputError: naming the unknown options and the closest known ones.
    """
    report_plainly()
    parser, workflow, arguments = find_callers()
    config: Mapping[str, Any] = parser.get() if parser is not None else {}
    if arguments is not None:
        options, files = _options_of_command(arguments, config)
    else:
        folders = {_BUNDLE_CONFIGS, workflow.config_root_path if workflow is not None else _BUNDLE_CONFIGS}
        options, files = list(config), _config_files(folders)
    if config_files is not None:
        files = [str(name) for name in ensure_tuple(config_files)]
    known = declared_ids(files) | MONAI_IDS | set(also)
    if arguments is not None and arguments.get("tracking") is not None:
        known |= TRACKING_IDS
    raise_unknown(options, known | set(_referenced(config)), suggestions=known - MONAI_IDS)
    refuse_words_for_switches(config, declared_values(files))
    check_tracking(config)


def refuse_words_for_switches(config: Mapping[str, Any], declared: Mapping[str, Any]) -> None:
    """Refuse texts where true or false is meant: the command line makes a text of ``false``, and a text counts as true.

    Args:
        config: ids and values in use.
        declared: ids and values of the config files.

    Raises:
        InputError: naming the option and how to write it.
    """
    for option, value in config.items():
        word = value.strip().lower() if isinstance(value, str) else ""
        is_switch = isinstance(declared.get(option), bool) and not word.startswith(("$", "@", "%"))
        if isinstance(value, str) and (word in ("true", "false") or is_switch):
            raise InputError(
                f"{option}: expected True or False, got the text '{value}'; write --{option} True or --{option} False,"
                " with a capital letter"
            )


def raise_unknown(options: Iterable[str], known: Iterable[str], suggestions: Iterable[str]) -> None:
    """Raise an InputError for the options whose first part is not known."""
    known, suggestions = set(known), sorted(suggestions)
    unknown = [option for option in options if _first_part(option) not in known]
    if unknown:
        hints = [
            _name_of_file(option) or _other_file(option) or did_you_mean(_first_part(option), suggestions)
            for option in unknown
        ]
        words = [f"--{option}{hint}" for option, hint in zip(unknown, hints, strict=True)]
        found = ", ".join(words)
        raise InputError(
            f"unknown option {found}{'' if found.endswith('?') else '.'} The config files list all options"
        )


def _name_of_file(option: str) -> str:
    """Return how to write a file's name that begins with - and was taken for an option."""
    return f" (if -{option} is a file, write ./-{option})" if "." in option else ""


def _other_file(option: str) -> str:
    """Return in which of the bundle's config files an option is that those in use do not have."""
    own = [path for path in sorted(_BUNDLE_CONFIGS.glob("*.yaml")) if _first_part(option) in declared_ids([str(path)])]
    return f", of configs/{own[0].name}, which is not in use" if own else ""


def declared_ids(files: Iterable[str]) -> set[str]:
    """Return the top-level ids of config files."""
    return {_first_part(key) for key in declared_values(files)}


def declared_values(files: Iterable[str]) -> dict[str, Any]:
    """Return the top-level ids of config files with their values; the later file wins."""
    return {key: value for name in files for key, value in ConfigParser.load_config_file(name).items()}


def _first_part(option: str) -> str:
    return ReferenceResolver.split_id(str(option).lstrip("+"))[0]


def find_callers() -> tuple[ConfigParser | None, ConfigWorkflow | None, dict[str, Any] | None]:
    """Return the innermost ConfigParser and ConfigWorkflow at work, and the arguments of MONAI's command, if any."""
    parser: ConfigParser | None = None
    workflow: ConfigWorkflow | None = None
    frame = inspect.currentframe()
    while frame is not None:
        caller = frame.f_locals.get("self")
        if parser is None and isinstance(caller, ConfigParser):
            parser = caller
        if workflow is None and isinstance(caller, ConfigWorkflow):
            workflow = caller
        module = frame.f_globals.get("__name__")
        if module == "monai.bundle.scripts" and frame.f_code.co_name in ("run", "run_workflow"):
            return parser, workflow, dict(frame.f_locals)
        frame = frame.f_back
    return parser, workflow, None


def _options_of_command(arguments: dict[str, Any], config: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Return the option names of a `monai.bundle run`, those of its args_file included, and its config files."""
    for name in ("init_id", "final_id"):
        value = arguments.get(name)
        if isinstance(value, str) and value not in config:
            raise InputError(f"'{value}' was given without the name of an option; write --option {value}")
    given = _of_command_line(arguments)
    _refuse_cut_values(given)
    files = given.get("config_file") or _of_args_file(arguments).get("config_file") or ()
    if isinstance(files, str) and not Path(files).is_file():
        files = files.split(",")  # as MONAI does
    return list(given_options(arguments)), [str(name) for name in ensure_tuple(files)]


def given_options(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options, with their values, of the arguments of MONAI's command, those of its args_file included."""
    merged = {**_of_args_file(arguments), **_of_command_line(arguments)}
    return {name: value for name, value in merged.items() if name not in COMMAND_ARGUMENTS}


def _of_command_line(arguments: Mapping[str, Any]) -> dict[str, Any]:
    return dict(arguments.get("override") or arguments.get("kwargs") or {})


def _of_args_file(arguments: Mapping[str, Any]) -> dict[str, Any]:
    return update_kwargs(args=arguments.get("args_file"), config_file=arguments.get("config_file"))


def _refuse_cut_values(given: Mapping[str, Any]) -> None:
    """Refuse values that the command line parser cut at '#', a comment to it: ``a#b.nii.gz`` comes as ``a``."""
    words = [part for word in sys.argv[1:] for part in (word.split("=", 1) if word.startswith("--") else [word])]
    for option, value in itertools.pairwise(words):
        name = option.removeprefix("--").replace("-", "_")
        if option.startswith("--") and "#" in value and not value.startswith("--") and given.get(name, value) != value:
            raise InputError(
                f"{name} '{value}' is cut at the '#' by the command line and came as '{given[name]}'; write the whole"
                " path (/folder/...), name the file in a datalist, or rename it"
            )


def _config_files(folders: Iterable[Path]) -> list[str]:
    """Return the config files in folders, the metadata not among them."""
    return [
        str(path)
        for folder in folders
        for path in sorted(folder.glob("*"))
        if path.suffix in (".yaml", ".yml", ".json") and path.stem != "metadata"
    ]


def _referenced(config: Any) -> Iterator[str]:
    """Yield the first parts of the ids that strings of a config refer to (`@id`)."""
    if isinstance(config, Mapping):
        for value in config.values():
            yield from _referenced(value)
    elif isinstance(config, (list, tuple)):
        for value in config:
            yield from _referenced(value)
    elif isinstance(config, str):
        yield from (_first_part(name) for name in ReferenceResolver.match_refs_pattern(config))
