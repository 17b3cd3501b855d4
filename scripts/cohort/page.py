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
"""``cohort.html``: the table of a cohort as one web page, which links the pages of its pairs."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from scripts.cohort.table import find_cases, read_rows, write_table
from scripts.data.report import without_folders
from scripts.utils.versions import versions
from scripts.visualize.html_report import PAIR_PAGE, write_page

COHORT_PAGE = "cohort.html"


def write_cohort_page(cases: Sequence[Mapping[str, Any]], output_dir: str | Path, rank: int = 0) -> Path | None:
    """Write the page with the table of a cohort, which links the pairs' own pages; only the first process does.

    Args:
        cases: all of the cohort.
        output_dir: of the cohort.
        rank: of this process.
    """
    if rank > 0:
        return None
    folder = Path(output_dir)
    rows = read_rows(cases)
    for row in rows:
        row["warnings"] = without_folders(row.get("warnings", ""))
        page = Path(row["folder"]) / PAIR_PAGE
        if page.is_file():
            row["page"] = quote(os.path.relpath(page, folder).replace(os.sep, "/"))
    verdicts = [str(row.get("verdict") or row["status"]) for row in rows]
    counts = ", ".join(f"{verdicts.count(name)} {name}" for name in sorted(set(verdicts)))
    used = ", ".join(f"{name} {version}" for name, version in versions().items())
    path = folder / COHORT_PAGE
    write_page("cohort.html", path, {"rows": rows}, counts=f"{len(rows)} pairs: {counts}", versions=used)
    return path


def write_report_page(output_dir: str | Path) -> Path | None:
    """Make table and page anew from the results that lie in a folder: ``python -m scripts report FOLDER``.

    Raises:
        InputError: the folder holds no results.
    """
    cases = find_cases(Path(output_dir))
    write_table(cases, output_dir)
    path = write_cohort_page(cases, output_dir)
    print(f"page: {path}")
    return path
