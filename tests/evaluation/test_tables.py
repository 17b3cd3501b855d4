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
"""Tables: the arithmetic of summaries, the layout, several runs in one."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from scripts.evaluation.plots import draw_box_plots
from scripts.evaluation.tables import Run, latex, main, markdown, read_run, run_of_reports, summary_table
from scripts.utils.errors import InputError


def report(case: str, dice: float, error: float, **more: Any) -> dict[str, Any]:
    return {
        "case": case,
        "dice": {"before": {"mean": 0.25, "per_label": {"3": 0.25}}, "after": {"mean": dice, "per_label": {"3": dice}}},
        "tre_mm": {
            "before": {"mean": 5.0, "std": 0.0, "per_landmark": [5.0, 5.0]},
            "after": {"mean": error, "std": 1.0, "per_landmark": [error - 1, error + 1]},
        },
        "jacobian": {"negative_percent": 0.5, "sd_log": 0.1},
        "inconsistency_mm": 0.2,
        "seconds": 4.0,
        "peak_memory_mib": 900.0,
        **more,
    }


def run(method: str = "ours", dataset: str = "brain", **more: Any) -> Run:
    reports = [report("a", 0.5, 1.0, **more), report("b", 0.7, 3.0, **more)]
    return run_of_reports(reports, method, dataset, {"metric": "dice", "before": 20.0, "zero_shot": 61.5}, "a machine")


def test_means_and_spreads_are_those_of_the_pairs() -> None:
    figures = run().summary
    assert figures["dice_after"] == pytest.approx({"mean": 0.6, "std": 0.1, "median": 0.6, "pairs": 2})
    assert figures["tre_mm_after"] == pytest.approx({"mean": 2.0, "std": 1.0, "median": 2.0, "pairs": 2})
    assert run(inconsistency_mm=None).summary["inconsistency_mm"]["mean"] is None
    assert run().labels[0] == {"case": "a", "label": "3", "dice_before": 0.25, "dice_after": 0.5}
    assert run().landmarks[1] == {"case": "a", "landmark": 2, "tre_mm_before": 5.0, "tre_mm_after": 2.0}


def test_rows_are_methods_and_the_papers_figures_stand_beside() -> None:
    columns, rows = summary_table([run()])
    assert columns[:4] == ["method", "Dice %", "TRE mm", "% det J <= 0"]
    cells = {row[0]: row[1:] for row in rows}
    assert cells["start: field of view onto field of view"][:2] == ["25.00 \u00b1 0.00", "5.00 \u00b1 0.00"]
    assert cells["start (paper)"][0] == "20"
    assert cells["uniGradICON, zero-shot (paper)"][:2] == ["61.5", ""]
    assert cells["ours"] == ["60.00 \u00b1 10.00", "2.00 \u00b1 1.00", "0.500", "0.100", "0.20", "4.0", "900"]


def test_data_sets_are_columns_and_methods_of_one_name_share_a_row() -> None:
    columns, rows = summary_table([run(), run("syn"), run(dataset="lung")])
    assert columns[1] == "brain: Dice %"
    assert "lung: TRE mm" in columns
    cells = {row[0]: dict(zip(columns[1:], row[1:], strict=True)) for row in rows}
    assert cells["ours"]["lung: Dice %"] == cells["ours"]["brain: Dice %"] == "60.00 \u00b1 10.00"
    assert cells["syn"]["lung: Dice %"] == ""


def test_failures_are_named() -> None:
    _, rows = summary_table([run("syn", terms={"failure": "no overlap"})])
    assert rows[-1][0] == "syn, failed on 2 of 2"


def test_markdown_and_latex_hold_the_same_cells() -> None:
    columns, rows = summary_table([run()])
    lines = markdown(columns, rows).splitlines()
    assert lines[0].count("|") == len(columns) + 1
    assert lines[1] == "| " + " | ".join(["---"] * len(columns)) + " |"
    text = latex(columns, rows)
    assert text.count(r"\\") == len(rows) + 1
    assert r"\% det J $\leq$ 0" in text
    assert r"60.00 $\pm$ 10.00" in text
    assert text.startswith(r"\begin{tabular}{l" + "c" * (len(columns) - 1) + "}")


def test_several_runs_become_one_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("ours", "syn"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "summary.json").write_text(json.dumps(run(name)._asdict()))
    main([str(tmp_path / "all"), str(tmp_path / "ours"), str(tmp_path / "syn")])
    assert capsys.readouterr().out == (tmp_path / "all" / "table.md").read_text()
    rows = list(csv.DictReader((tmp_path / "all" / "pairs.csv").open()))
    assert [(row["method"], row["case"]) for row in rows] == [(m, c) for m in ("ours", "syn") for c in "ab"]
    draw_box_plots([read_run(tmp_path / name) for name in ("ours", "syn")], tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_a_folder_without_a_summary_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"is not the summary of an evaluation"):
        read_run(tmp_path)
    with pytest.raises(SystemExit, match="error: "):
        main([str(tmp_path / "all"), str(tmp_path)])
