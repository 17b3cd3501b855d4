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
"""The compatibility matrix says what ran, what was only resolved and what failed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tools.campaigns import matrix


@pytest.fixture(autouse=True)
def _logs_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matrix, "LOGS", tmp_path)


def answer_with(monkeypatch: pytest.MonkeyPatch, failing: str = "") -> list[list[str]]:
    """Replace the commands: uv writes one version, the one that has the given word fails; returns what was called."""
    called = []

    def run(command: list[str], log: Path) -> int:
        called.append(command)
        if "uv" in command:
            Path(command[command.index("--output-file") + 1]).write_text("torch==2.8.0\n")
        log.write_text("===== 3 passed in 1.00s =====\n" if "pytest" in command else "no such version\n")
        return int(failing in command) if failing else 0

    monkeypatch.setattr(matrix, "_run", run)
    monkeypatch.setattr(matrix, "site_constraints", list)
    return called


def test_a_python_that_is_not_there_is_only_resolved(monkeypatch: pytest.MonkeyPatch) -> None:
    called = answer_with(monkeypatch)
    row = matrix.check("3.14", "oldest", None)
    assert (row.versions, row.result, row.failed) == ({"torch": "2.8.0"}, "wheels exist, not run here", False)
    (command,) = called
    assert command[command.index("--resolution") + 1] == "lowest-direct"
    assert command[command.index("--python-version") + 1] == "3.14"
    assert command[command.index("--only-binary") + 1] == ":all:"


@pytest.mark.parametrize(
    ("failing", "words"), [("uv", "no wheels: no such version"), ("venv", "not installed: no such")]
)
def test_what_cannot_be_had_is_a_failure(failing: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    answer_with(monkeypatch, failing)
    row = matrix.check("3.13", "newest", sys.executable)
    assert row.failed
    assert row.result.startswith(words)


def test_the_status_and_the_table_tell_what_failed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = {"oldest": matrix.Row("3.12", "oldest", {"torch": "2.8.0"}, "ran: 3 passed (1 s)", False)}
    rows["newest"] = matrix.Row("3.12", "newest", {}, "no wheels: none", True)
    monkeypatch.setattr(matrix, "check", lambda python, choice, interpreter: rows[choice])
    assert matrix.main(["--resolve", "--only", "3.12-oldest"]) == 0
    assert matrix.main(["--resolve", "--only", "3.12-oldest", "3.12-newest"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert "| 3.12 | oldest | 2.8.0 | - | - | - | ran: 3 passed (1 s) |" in lines
    assert lines[-1] == "| 3.12 | newest | - | - | - | - | no wheels: none |"


def test_the_last_words_of_a_log_are_the_result(tmp_path: Path) -> None:
    (tmp_path / "a.log").write_text("x\n==== 2 failed, 3 passed, 1 skipped, 4 warnings in 12.30s (0:00:12) ====\n\n")
    assert matrix.last_line(tmp_path / "a.log") == "2 failed, 3 passed, 1 skipped"


def test_this_python_is_found_and_one_that_does_not_exist_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    monkeypatch.setenv("PATH", str(Path(sys.base_prefix) / "bin"))
    assert matrix.find_python(version) == str(Path(sys.base_prefix) / "bin" / f"python{version}")
    assert matrix.find_python("3.99") is None


def test_every_line_of_the_requirements_has_a_lower_bound_and_every_test_exists(bundle_root: Path) -> None:
    lines = [line for line in matrix.REQUIREMENTS.read_text().splitlines() if line and not line.startswith("#")]
    assert [line for line in lines if not any(each.operator == ">=" for each in Requirement(line).specifier)] == []
    for test in matrix.TESTS:
        path, _, name = test.partition("::")
        assert f"def {name}(" in (bundle_root / path).read_text() if name else (bundle_root / path).is_file()
