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
from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch.utils.data import DataLoader

from scripts.utils.errors import InputError
from scripts.utils.pipelining import InBackground, ReadAhead, run_cases

WAIT = 10  # seconds until a test that hangs fails


class Cases:
    """Three cases; the second one may be broken."""

    def __init__(self, broken: bool = False) -> None:
        self.broken = broken
        self.made = {number: threading.Event() for number in range(3)}

    def __len__(self) -> int:
        return 3

    def __getitem__(self, number: int) -> dict[str, Any]:
        if self.broken and number == 1:
            raise InputError("moving: file is cut")
        self.made[number].set()
        return {"case": number, "thread": threading.current_thread().name}


def test_the_next_item_is_made_before_it_is_asked_for() -> None:
    cases = Cases()
    ahead = ReadAhead(cases)
    assert ahead[0]["case"] == 0
    assert cases.made[1].wait(WAIT)
    assert not cases.made[2].is_set()  # one ahead, not all: they take memory
    assert ahead[1]["thread"].startswith("read-ahead")


@pytest.mark.parametrize("enabled", [False, True])
def test_items_come_in_order_and_once(enabled: bool) -> None:
    loader = DataLoader(ReadAhead(Cases(), enabled), batch_size=None)
    for _ in range(2):
        assert [item["case"] for item in loader] == [0, 1, 2]


def test_another_order_is_right_too() -> None:
    ahead = ReadAhead(Cases())
    assert [ahead[number]["case"] for number in (2, 0, 2, 1, 1)] == [2, 0, 2, 1, 1]


def test_an_error_of_reading_ahead_comes_with_its_case() -> None:
    ahead = ReadAhead(Cases(broken=True))
    assert ahead[0]["case"] == 0
    with pytest.raises(InputError, match=r"^moving: file is cut$"):
        ahead[1]
    assert ahead[2]["case"] == 2


def test_writing_goes_on_while_the_caller_computes() -> None:
    computing, written = threading.Event(), []

    def write(case: dict[str, Any]) -> dict[str, Any]:
        assert computing.wait(WAIT)
        written.append(case["case"])
        return case

    background = InBackground(write)
    background({"case": 0})
    assert written == []
    computing.set()
    background({"case": 1})
    background.finish()
    assert written == [0, 1]


def test_without_overlap_the_result_is_returned_at_once() -> None:
    assert InBackground(lambda case: {**case, "done": True}, enabled=False)({"case": 0}) == {"case": 0, "done": True}


def failing(case: dict[str, Any]) -> dict[str, Any]:
    if case["case"] == 0:
        raise InputError("output_dir: disk is full")
    return case


def test_an_error_of_writing_ends_the_run() -> None:
    background = InBackground(failing)
    background({"case": 0})
    with pytest.raises(InputError, match="disk is full"):
        background({"case": 1})
    background.finish()  # told once


def test_an_error_of_the_last_case_is_raised_at_the_end(tmp_path: Path) -> None:
    background = InBackground(failing)
    with pytest.raises(InputError, match="disk is full"):
        run_cases(SimpleNamespace(run=lambda: background({"case": 0})), background, tmp_path)


def test_a_failing_case_does_not_lose_the_one_before(tmp_path: Path) -> None:
    written, go_on = [], threading.Event()

    def write(case: dict[str, Any]) -> dict[str, Any]:
        assert go_on.wait(WAIT)
        written.append(case["case"])
        return case

    background = InBackground(write)

    def run() -> None:
        background({"case": 0})
        go_on.set()
        raise InputError("fixed: no such file")

    with pytest.raises(InputError, match="no such file"):
        run_cases(SimpleNamespace(run=run), background, tmp_path)
    assert written == [0]
