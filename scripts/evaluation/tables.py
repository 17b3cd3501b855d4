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
"""Tables of evaluations: from reports to one row a pair, and to a summary in the layout of the paper's Table 1.

    python -m scripts tables OUT RUN [RUN ...]

puts several evaluations (their output folders) into one table, one row a method, the columns by data set.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tabulate import tabulate

from scripts.utils.atomic import replacing
from scripts.utils.csv_tables import write_csv
from scripts.utils.errors import InputError

Row = dict[str, Any]
ACCURACY = {
    "dice": ("Dice %", 100.0),
    "hd95_mm": ("HD95 mm", 1.0),
    "assd_mm": ("ASSD mm", 1.0),
    "tre_mm": ("TRE mm", 1.0),
}
COSTS = {
    "negative_percent": ("% det J <= 0", ".3f"),
    "sd_log_jacobian": ("SD log J", ".3f"),
    "inconsistency_mm": ("inverse error mm", ".2f"),
    "seconds": ("seconds", ".1f"),
    "peak_memory_mib": ("peak MiB", ".0f"),
}
PAPER_ROWS = {
    "syn": "SyN (paper)",
    "zero_shot": "uniGradICON, zero-shot (paper)",
    "with_io": "uniGradICON, instance optimization (paper)",
    "fine_tuned": "uniGradICON, fine-tuned (paper)",
    "fine_tuned_with_io": "uniGradICON, fine-tuned, instance optimization (paper)",
}


class Run(NamedTuple):
    """One method on one data set; ``summary.json``."""

    method: str
    dataset: str
    machine: str
    paper: dict[str, Any]
    pairs: list[Row]
    """One row a pair, figures by name."""
    labels: list[Row]
    """One row for each label of each pair."""
    landmarks: list[Row]
    """One row for each landmark of each pair."""
    summary: dict[str, dict[str, float | None]]
    """For each figure of the pairs: mean, std, median and number of pairs."""


def run_of_reports(
    reports: Sequence[Mapping[str, Any]], method: str, dataset: str, paper: dict[str, Any], machine: str
) -> Run:
    """Return the run of the reports of its cases.

    Args:
        reports: contents of the cases' report.json.
        method: name of what registered.
        dataset: name of the data.
        paper: figures of the paper for this data.
        machine: what it ran on.
    """
    pairs = [_pair_row(report) for report in reports]
    names = [name for name in dict.fromkeys(key for row in pairs for key in row) if name != "case"]
    summary = {name: _statistics([row.get(name) for row in pairs]) for name in names if name != "failure"}
    labels = [row for report in reports for row in _label_rows(report)]
    landmarks = [row for report in reports for row in _landmark_rows(report)]
    return Run(method, dataset, machine, paper, pairs, labels, landmarks, summary)


def _pair_row(report: Mapping[str, Any]) -> Row:
    row: Row = {"case": report["case"]}
    for name in ACCURACY:
        for when, figures in report.get(name, {}).items():
            for key in ("mean", "std", "median", "percentile_95", "max"):
                if key in figures:
                    row[f"{name}_{when}" if key == "mean" else f"{name}_{when}_{key}"] = figures[key]
    jacobian = report.get("jacobian", {})
    row["negative_percent"], row["sd_log_jacobian"] = jacobian.get("negative_percent"), jacobian.get("sd_log")
    for name in ("inconsistency_mm", "seconds", "peak_memory_mib", "peak_gpu_memory_mib"):
        row[name] = report.get(name)
    row["failure"] = report.get("terms", {}).get("failure")
    return row


def _label_rows(report: Mapping[str, Any]) -> list[Row]:
    rows: dict[str, Row] = {}
    for name in ("dice", "hd95_mm", "assd_mm"):
        for when, figures in report.get(name, {}).items():
            for label, value in figures.get("per_label", {}).items():
                row = rows.setdefault(str(label), {"case": report["case"], "label": str(label)})
                row[f"{name}_{when}"] = value
    return list(rows.values())


def _landmark_rows(report: Mapping[str, Any]) -> list[Row]:
    errors = {when: figures["per_landmark"] for when, figures in report.get("tre_mm", {}).items()}
    count = min((len(values) for values in errors.values()), default=0)
    return [
        {"case": report["case"], "landmark": n + 1, **{f"tre_mm_{when}": values[n] for when, values in errors.items()}}
        for n in range(count)
    ]


def _statistics(values: Sequence[float | None]) -> dict[str, float | None]:
    there = [float(value) for value in values if value is not None]
    if not there:
        return {"mean": None, "std": None, "median": None, "pairs": 0}
    return {
        "mean": statistics.fmean(there),
        "std": statistics.pstdev(there),
        "median": statistics.median(there),
        "pairs": len(there),
    }


def read_run(folder: Path) -> Run:
    """Return the run whose tables a folder holds.

    Raises:
        InputError: there is none.
    """
    path = Path(folder) / "summary.json"
    try:
        return Run(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"'{path}' is not the summary of an evaluation ({error}); give its output_dir") from error


def write_tables(runs: Sequence[Run], folder: Path) -> None:
    """Write ``pairs.csv``, ``labels.csv``, ``landmarks.csv`` (where there are any), ``table.md`` and ``table.tex``."""
    for name in ("pairs", "labels", "landmarks"):
        rows = [{"method": run.method, "dataset": run.dataset, **row} for run in runs for row in getattr(run, name)]
        if rows:
            write_csv(folder / f"{name}.csv", rows)
    columns, lines = summary_table(runs)
    _write(folder / "table.md", markdown(columns, lines))
    _write(folder / "table.tex", latex(columns, lines))


def summary_table(runs: Sequence[Run]) -> tuple[list[str], list[list[str]]]:
    """Return the headings and the rows of the summary: start, paper's figures, then the methods.

    As in the paper's Table 1, methods are rows, and each data set has columns: accuracy, then the share of folded
    voxels; ours add what a registration costs.
    """
    datasets = list(dict.fromkeys(run.dataset for run in runs))
    rows: dict[str, dict[str, str]] = {}
    headings: list[str] = []
    for dataset in datasets:
        those = [run._replace(method=_title(run)) for run in runs if run.dataset == dataset]
        prefix = f"{dataset}: " if len(datasets) > 1 else ""
        names = [name for name in ACCURACY if any(f"{name}_after" in run.summary for run in those)]
        headings += [prefix + ACCURACY[name][0] for name in names] + [prefix + title for title, _ in COSTS.values()]
        paper = next((run.paper for run in those if run.paper), {})
        for name in names:
            title = prefix + ACCURACY[name][0]
            start = next((run.summary[f"{name}_before"] for run in those if f"{name}_before" in run.summary), None)
            rows.setdefault("start: field of view onto field of view", {})[title] = _text(start, ACCURACY[name][1])
            if paper.get("metric") == name:
                for key, label in {"before": "start (paper)", **PAPER_ROWS}.items():
                    if paper.get(key) is not None:
                        rows.setdefault(label, {})[title] = f"{paper[key]:g}"
            for run in those:
                rows.setdefault(run.method, {})[title] = _text(run.summary.get(f"{name}_after"), ACCURACY[name][1])
        for run in those:
            for name, (title, form) in COSTS.items():
                rows.setdefault(run.method, {})[prefix + title] = _text(run.summary.get(name), 1.0, form, False)
    table = [[method, *(cells.get(heading, "") for heading in headings)] for method, cells in rows.items()]
    return ["method", *headings], table


def _title(run: Run) -> str:
    """Return the method's name, and on how many pairs it failed."""
    failures = sum(bool(row.get("failure")) for row in run.pairs)
    return f"{run.method}, failed on {failures} of {len(run.pairs)}" if failures else run.method


def _text(figures: Mapping[str, Any] | None, scale: float, form: str = ".2f", spread: bool = True) -> str:
    if figures is None or figures["mean"] is None:
        return ""
    mean = f"{scale * figures['mean']:{form}}"
    return f"{mean} \u00b1 {scale * figures['std']:{form}}" if spread and figures["pairs"] > 1 else mean


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def latex(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a LaTeX table (booktabs)."""
    table = [[cell.replace("<=", "\u2264") for cell in row] for row in (columns, *rows)]
    alignment = ["left", *["center"] * (len(columns) - 1)]
    text = tabulate(table[1:], table[0], tablefmt="latex_booktabs", disable_numparse=True, colalign=alignment)
    return text.replace("\u00b1", r"$\pm$").replace("\u2264", r"$\leq$") + "\n"


def _write(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def main(arguments: list[str] | None = None) -> None:
    """Write one table of several runs."""
    parser = argparse.ArgumentParser("python -m scripts tables", description="Put several evaluations into one table.")
    parser.add_argument("out", type=Path, help="folder for the tables")
    parser.add_argument("runs", type=Path, nargs="+", help="output_dir of each evaluation")
    given = parser.parse_args(arguments)
    try:
        write_tables([read_run(folder) for folder in given.runs], given.out)
    except InputError as error:
        sys.exit(f"error: {error}")
    print((given.out / "table.md").read_text(encoding="utf-8"), end="")
