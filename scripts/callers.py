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
"""What a component of a workflow's ``run:`` list was started by: the parser, its config files, the options given.

MONAI hands no parser to a component, and ``monai.bundle run`` builds a workflow of its own class, so the frames of the
callers are searched for them. :class:`scripts.workflow.Workflow` and MONAI's command know their files and options;
MONAI's ConfigWorkflow, built in Python, does not keep them.
"""

from __future__ import annotations

import inspect
import itertools
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from monai.bundle import ConfigParser, ConfigWorkflow, update_kwargs
from monai.utils import ensure_tuple

from scripts.declared_options import CONFIGS, declared_options
from scripts.utils.errors import InputError

# arguments of MONAI's `run` and `run_workflow` themselves, not options of ours
COMMAND_ARGUMENTS = frozenset(
    (
        *("run_id", "init_id", "final_id", "meta_file", "config_file", "logging_file", "tracking", "args_file"),
        *("workflow_name", "workflow_type", "properties_path", "workflow"),
    )
)


class Callers(NamedTuple):
    """Who started a component."""

    parser: ConfigParser | None
    """The innermost at work."""
    workflow: ConfigWorkflow | None
    """Likewise."""
    arguments: dict[str, Any] | None
    """Of MONAI's command, if it is one."""

    @property
    def config(self) -> Mapping[str, Any]:
        """The config that the parser works on."""
        return {} if self.parser is None else self.parser.get()

    def files(self) -> list[str]:
        """Return the config files in use; where the workflow does not know them, those whose options are all there."""
        known = getattr(self.workflow, "config_files", None)
        if self.arguments is not None:
            known = _files_of_command(self.arguments)
        if known is not None:
            return [str(name) for name in known]
        found = _config_files({CONFIGS, CONFIGS if self.workflow is None else self.workflow.config_root_path})
        ids = set(self.config)
        return [name for name in found if {o.partition("::")[0] for o in declared_options([name])} <= ids]

    def options(self) -> dict[str, Any] | None:
        """Return the options that were given, with their values; None where they can't be told from the config."""
        if self.arguments is not None:
            return given_options(self.arguments)
        return getattr(self.workflow, "options", None)


def find_callers() -> Callers:
    """Return who started the component that calls this."""
    parser: ConfigParser | None = None
    workflow: ConfigWorkflow | None = None
    frame = inspect.currentframe()
    while frame is not None:
        caller = frame.f_locals.get("self")
        if parser is None and isinstance(caller, ConfigParser):
            parser = caller
        if workflow is None and isinstance(caller, ConfigWorkflow):
            workflow = caller
            if hasattr(workflow, "options"):
                break
        module = frame.f_globals.get("__name__")
        if module == "monai.bundle.scripts" and frame.f_code.co_name in ("run", "run_workflow"):
            return Callers(parser, workflow, dict(frame.f_locals))
        frame = frame.f_back
    return Callers(parser, workflow, None)


def check_command(arguments: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    """Refuse a value without the name of its option, and values that the command line has cut at a '#'."""
    for name in ("init_id", "final_id"):
        value = arguments.get(name)
        if isinstance(value, str) and value not in config:
            raise InputError(f"'{value}' was given without the name of an option; write --option {value}")
    _refuse_cut_values(_of_command_line(arguments))


def _files_of_command(arguments: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the config files of a `monai.bundle run`, those of its args_file included."""
    given = {**_of_args_file(arguments), **_of_command_line(arguments)}
    files = arguments.get("config_file") or given.get("config_file") or ()
    if isinstance(files, str) and not Path(files).is_file():
        files = files.split(",")  # as MONAI does
    return ensure_tuple(files)


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
