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
"""The one table of a cohort, made from what lies in the cases' folders: cohort.csv and cohort.json."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scripts.data.report import ERROR_NAME
from scripts.utils.csv_tables import write_csv
from scripts.utils.errors import InputError
from scripts.utils.strict_json import write_report
from scripts.utils.versions import versions

Row = dict[str, Any]
COLUMNS = (
    *("case", "status", "verdict", "reasons", "similarity_before", "similarity_after", "folding_percent"),
    *("inconsistency_mm", "outside_percent", "displacement_p95_mm", "dice_before", "dice_after", "tre_mm_before"),
    *("tre_mm_after", "seconds", "peak_memory_mib", "warnings", "fixed", "moving", "folder", "error"),
)


def read_rows(cases: Sequence[Mapping[str, Any]]) -> list[Row]:
    """Return one row for each case, in order: ``done`` with its figures, ``failed`` with its error, or ``missing``."""
    return [_row(case) for case in cases]


def _row(case: Mapping[str, Any]) -> Row:
    folder = Path(case["case_dir"])
    row: Row = {"case": case["case"], "folder": str(folder)}
    report, failure = _load(folder / "report.json"), _load(folder / ERROR_NAME)
    if failure is not None or "error" in case:
        line = (failure or {}).get("error") or case["error"]
        return {**row, "status": "failed", "verdict": "failed", "error": line, **_images(case)}
    if report is None:
        return {**row, "status": "missing", **_images(case)}
    quality = report.get("quality") or {}
    row |= {
        "status": "done",
        "verdict": quality.get("verdict"),
        "reasons": "; ".join(quality.get("reasons", ())),
        "warnings": "; ".join(report.get("warnings", ())),
        "similarity_before": report["similarity"]["before"],
        "similarity_after": report["similarity"]["after"],
        "outside_percent": quality.get("outside_percent"),
        "displacement_p95_mm": (quality.get("displacement_mm") or {}).get("percentile_95"),
        **{key: report.get(key) for key in ("folding_percent", "inconsistency_mm", "seconds", "peak_memory_mib")},
        **{f"dice_{when}": value.get("mean") for when, value in (report.get("dice") or {}).items()},
        **{f"tre_mm_{when}": value.get("mean") for when, value in (report.get("tre_mm") or {}).items()},
        **_images(report.get("inputs", {})),
    }
    return row


def _plain_cell(value: Any) -> Any:
    """Return a cell that spreadsheets do not take for a formula."""
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t")) else value


def _images(case: Mapping[str, Any]) -> Row:
    return {key: case[key] for key in ("fixed", "moving") if key in case}


def _load(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def find_cases(folder: Path) -> list[Row]:
    """Return the cases whose results lie in a folder, or in its sub-folders, in the order of their names.

    Raises:
        InputError: there are none.
    """
    folders = [folder, *sorted(path for path in folder.iterdir() if path.is_dir())] if folder.is_dir() else []
    cases = [
        {
            "case": (_load(path / "report.json") or _load(path / ERROR_NAME) or {}).get("case") or path.name,
            "case_dir": path,
        }
        for path in folders
        if (path / "report.json").is_file() or (path / ERROR_NAME).is_file()
    ]
    if not cases:
        raise InputError(f"'{folder}' holds no results (report.json); give the output_dir of a registration or cohort")
    return cases


def write_table(cases: Sequence[Mapping[str, Any]], output_dir: str | Path, rank: int = 0) -> list[Row]:
    """Write ``cohort.csv`` and ``cohort.json`` and print how the cases ended; only the first process does.

    Args:
        cases: all of the cohort, of all processes.
        output_dir: of the cohort.
        rank: of this process.
    """
    if rank > 0:
        return []
    rows = read_rows(cases)
    folder = Path(output_dir)
    plain = [{key: _plain_cell(value) for key, value in row.items()} for row in rows]
    write_csv(folder / "cohort.csv", plain, COLUMNS)
    counts = {
        "status": dict(Counter(str(row["status"]) for row in rows)),
        "verdict": dict(Counter(str(row["verdict"]) for row in rows if row.get("verdict"))),
    }
    write_report({"cases": rows, "counts": counts, "versions": versions()}, folder / "cohort.json")
    for row in rows:
        if row["status"] != "done":
            print(f"{row['case']}: {row['status']}{': ' + row['error'] if 'error' in row else ''}")
    print(
        ", ".join(f"{count} {status}" for status, count in counts["status"].items())
        + f"; table: {folder / 'cohort.csv'}"
    )
    return rows
