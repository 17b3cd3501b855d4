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
"""The components of a workflow that look at its options: :func:`check_options` and :func:`report_settings`.

MONAI accepts ``--fixd a.nii.gz`` silently, this bundle does not.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from monai.bundle import ReferenceResolver
from monai.utils import ensure_tuple

from scripts.callers import check_command, find_callers
from scripts.declared_options import CONFIGS, declared_options, defaults_of, groups_of
from scripts.old_names import old_names, rename
from scripts.option_checks import (
    check_types,
    complete_groups,
    declared_ids,
    first_part,
    raise_unknown,
    raise_unknown_members,
)
from scripts.utils.errors import InputError, report_plainly
from scripts.utils.tracking import check_tracking

# ids that MONAI adds to a config by itself; the second line: with --tracking
MONAI_IDS = frozenset({"_meta_", "initialize", "run", "finalize"})
TRACKING_IDS = frozenset(
    ["output_dir", "tracking_uri", "experiment_name", "run_name", "save_execute_config", "is_not_rank0"]
)
REPORTED = ("registration", "preprocessing")  # sections whose options make a result what it is


def check_options(config_files: Iterable[str] | str | None = None, also: Iterable[str] = ()) -> None:
    """Refuse options that no config file declares, and values of a wrong type; give old names their new ones.

    It stands in ``run:`` before all that is built from options, as it may change their values in the config. An option
    is known if its first part (``evaluator`` of ``evaluator::amp``) is an id of a config file in use, or if something
    in the config refers to it. On the command line, errors of input are one line from here on.

    Args:
        config_files: files that declare the options; by default those of the command, or, in a workflow of MONAI's
            class built in Python, those of the bundle's ``configs`` folder whose options it has.
        also: further names to accept.

    Raises:
        InputError: naming the unknown options and the closest known ones, or the value and what was expected.
    """
    report_plainly()
    callers = find_callers()
    arguments, config, parser = callers.arguments, callers.config, callers.parser
    if arguments is not None:
        check_command(arguments, config)
    files = callers.files() if config_files is None else [str(name) for name in ensure_tuple(config_files)]
    given = callers.options()
    defaults = defaults_of(files)
    known = declared_ids(files) | MONAI_IDS | set(also)
    if arguments is not None and arguments.get("tracking") is not None:
        known |= TRACKING_IDS
    names = list(config) if given is None else list(given)
    used = set(_referenced(config))
    raise_unknown(names, known | used | set(old_names(config)), suggestions=known - MONAI_IDS)
    raise_unknown_members(names, defaults)
    if parser is not None:
        complete_groups(parser, defaults)
        rename(parser, defaults, given or (), used)
        check_types(parser, {**{name: [o.default] for name, o in declared_options(files).items()}, **defaults})
    check_tracking(config)


def report_settings(**chosen: Any) -> dict[str, Any]:
    """Return the options of registration and preprocessing with their values, as report.json repeats them.

    A config that was exported, without comments and headings, has those of the bundle's inference.yaml.

    Args:
        chosen: values to report in their place or beside them, where the config computes them.
    """
    callers = find_callers()
    if callers.parser is None:
        raise InputError("settings: only a component of a MONAI workflow can be asked for its options")
    files = [str(CONFIGS / "inference.yaml"), *callers.files()]
    names = [o.name for o in declared_options(files).values() if o.section in REPORTED]
    groups = groups_of(names)
    ids = dict.fromkeys(name.partition("::")[0] for name in names if name in callers.parser)
    values = {name: callers.parser.get_parsed_content(name) for name in ids if name not in chosen}
    return {**{name: dict(v) if name in groups else v for name, v in values.items()}, **chosen}


def _referenced(config: Any) -> Iterator[str]:
    """Yield the first parts of the ids that strings of a config refer to (`@id`)."""
    if isinstance(config, Mapping):
        for value in config.values():
            yield from _referenced(value)
    elif isinstance(config, (list, tuple)):
        for value in config:
            yield from _referenced(value)
    elif isinstance(config, str):
        yield from (first_part(name) for name in ReferenceResolver.match_refs_pattern(config))
