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
"""The files of a case's folder that the bundle writes: what is a result, and removing those of an earlier run."""

from __future__ import annotations

import json
from fnmatch import fnmatchcase
from pathlib import Path

from scripts.data.report import ERROR_NAME, REPORT_NAME
from scripts.transforms.outputs.base import KINDS
from scripts.utils.atomic import remove, sweep


def result_patterns() -> tuple[str, ...]:
    """Return the names of all results, some with ``*``.

    The report comes first: where it lies, the others are complete.
    """
    return (REPORT_NAME, *(pattern for kind in KINDS for pattern in kind.files), ERROR_NAME)


def is_result(name: str) -> bool:
    """Tell whether a file of this name in a case's folder is, or would be overwritten by, a result."""
    return any(fnmatchcase(name, pattern) for pattern in result_patterns())


def remove_results(folder: Path) -> None:
    """Remove an earlier run's results from a case's folder: a file of another pair must not pass for a new one.

    Names with ``*`` may also be a user's: of these, the ones that the earlier run's report lists are removed. What a
    killed run left half written goes, too.

    Raises:
        InputError: a file can't be removed, naming it.
    """
    listed = reported_outputs(folder)
    for pattern in result_patterns():
        for name in [name for name in listed if fnmatchcase(name, pattern)] if "*" in pattern else [pattern]:
            remove(folder / name)
    sweep_results(folder)


def sweep_results(folder: Path) -> None:
    """Remove what killed processes left half written."""
    sweep(folder, result_patterns())


def reported_outputs(folder: Path) -> list[str]:
    """Return the names of the files that the report in a case's folder lists; none without a readable report."""
    try:
        report = json.loads((folder / REPORT_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    names = report.get("outputs") if isinstance(report, dict) else None
    return [name for name in names or () if isinstance(name, str) and Path(name).name == name]
