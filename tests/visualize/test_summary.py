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
"""The lines that end ``make demo``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scripts import cli
from scripts.visualize.summary import print_results, summarize

REPORT = {
    "outputs": ["forward_transform.h5", "overview.png"],
    "similarity": {"before": 0.8124, "after": 0.25},
    "folding_percent": 0.0125,
    "inconsistency_mm": 0.481,
    "seconds": 9.4,
    "peak_memory_mib": 1568.3,
    "weights": {"name": "none"},
}


def test_the_lines_say_where_the_results_are_and_how_good() -> None:
    scores = {
        "tre_mm": {"before": {"mean": 11.19}, "after": {"mean": 0.507}},
        "dice": {"before": {"mean": 0.4841}, "after": {"mean": 0.9559}},
    }
    text = summarize({**REPORT, **scores}, Path("out"))
    assert text.splitlines()[:4] == ["results in out:", "  forward_transform.h5", "  overview.png", "  report.json"]
    for words in ("0.812 -> 0.250", "11.19 -> 0.51 mm", "0.484 -> 0.956", "0.013 %", "0.48 mm", "9 s", "1568 MiB"):
        assert words in text


def test_scores_that_were_not_measured_are_left_out() -> None:
    text = summarize({**REPORT, "dice": {"before": {"mean": None}, "after": {"mean": None}}}, Path("out"))
    assert "landmark" not in text
    assert "Dice" not in text


def test_a_pair_is_summed_up_and_several_get_a_line_each(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cases = [{"case": name, "case_dir": str(tmp_path / name)} for name in ("one", "two", "failed")]
    similarities = ({"before": 0.5, "after": 0.25}, {"before": None, "after": None})
    for case, similarity in zip(cases[:2], similarities, strict=True):
        Path(case["case_dir"]).mkdir()
        (Path(case["case_dir"]) / "report.json").write_text(json.dumps({**REPORT, "similarity": similarity}))
    print_results(cases)
    assert capsys.readouterr().out.splitlines() == [
        f"one: done, similarity loss 0.500 -> 0.250, results in {tmp_path / 'one'}",
        f"two: done, similarity loss unknown -> unknown, results in {tmp_path / 'two'}",
    ]
    print_results(cases[:1])
    assert f"results in {tmp_path / 'one'}:" in capsys.readouterr().out


def test_the_summary_of_a_report_is_a_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "report.json").write_text(json.dumps(REPORT))
    assert cli.main(["summary", str(tmp_path / "report.json")]) == 0
    assert capsys.readouterr().out == summarize(REPORT, tmp_path) + "\n"
