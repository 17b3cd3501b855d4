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
"""Values of options are data: code comes from config files alone.

MONAI evaluates any text that starts with ``$`` and builds any object whose ``_target_`` is named, also where a command
line, an API or a web form passed it for a plain value. :func:`refuse_code_of_command` stands first in a workflow's
``run:`` list, before an option is used (there is no ``initialize:``, where MONAI does not find this code yet);
:func:`scripts.workflow.run_workflow` calls :func:`refuse_code`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from scripts.callers import find_callers, given_options
from scripts.utils.errors import InputError, report_plainly


def refuse_code_of_command() -> None:
    """Refuse options of a ``monai.bundle`` command whose value is code; a workflow built in Python is its author's.

    Raises:
        InputError: naming the option and its value.
    """
    report_plainly()
    arguments = find_callers().arguments
    if arguments is not None:
        refuse_code(given_options(arguments))


def refuse_code(options: Mapping[str, Any]) -> None:
    """Refuse options whose value MONAI would run: expressions, objects to build, parts of other config files.

    Raises:
        InputError: naming the option and its value.
    """
    for option, value in options.items():
        # part_::_target_ would change what is built
        named = [part for part in re.split("::|#", option.lstrip("+")) if re.fullmatch(r"_\w+_", part)]
        found = f"{named[0]}: {value}" if named else next(_code(value), None)
        if found is not None:
            raise InputError(
                f"{option}: expected a plain value, got the code {found!r}, which is taken from config files only; put"
                " it into one of your own (--config_file \"['configs/inference.yaml','mine.yaml']\")"
            )


def _code(value: Any) -> Iterator[str]:
    if isinstance(value, str) and value.startswith(("$", "%")):
        yield value
    elif isinstance(value, Mapping):
        if "_target_" in value:
            yield f"_target_: {value['_target_']}"
        for item in value.values():
            yield from _code(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _code(item)
