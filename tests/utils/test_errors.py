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
"""One line for what a user can act on."""

from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch

from scripts.utils.errors import InputError, describe_memory_error, find_input_error, report_plainly


def test_other_programs_keep_their_excepthook() -> None:
    before = sys.excepthook
    report_plainly()
    assert sys.excepthook is before


def test_an_input_error_is_found_under_the_errors_around_it() -> None:
    inner = InputError("fixed: missing")
    outer = RuntimeError("Failed to instantiate")
    outer.__cause__ = inner
    assert find_input_error(outer) is inner
    assert find_input_error(RuntimeError("other")) is None


@pytest.mark.parametrize(
    "allocate",
    [
        lambda: torch.empty(2**50),
        lambda: np.empty(2**50),
        lambda: _raise(torch.OutOfMemoryError("CUDA out of memory.")),
    ],
)
def test_a_lack_of_memory_names_the_settings_that_help(allocate: Callable[[], object]) -> None:
    with pytest.raises((RuntimeError, MemoryError)) as caught:
        allocate()
    outer = RuntimeError("applying transform")
    outer.__cause__ = caught.value
    line = describe_memory_error(outer)
    assert line is not None
    assert "\n" not in line
    assert line.startswith("out of memory (")
    assert "--preset fast" in line
    assert describe_memory_error(RuntimeError("other")) is None


def _raise(error: Exception) -> None:
    raise error
