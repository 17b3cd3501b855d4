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
"""The data sets of the paper, listed in ``configs/datasets.yaml``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from scripts.utils.errors import InputError
from scripts.utils.suggestions import did_you_mean


def choose_benchmark(benchmarks: Mapping[str, Mapping[str, Any]], name: str) -> dict[str, Any]:
    """Return the settings of one data set.

    Args:
        benchmarks: settings of each, by name.
        name: the one to evaluate on.

    Raises:
        InputError: an unknown name.
    """
    if name not in benchmarks:
        hint = did_you_mean(str(name), benchmarks)
        raise InputError(f"benchmark: expected one of {', '.join(benchmarks)}, got '{name}'{hint}")
    return dict(benchmarks[name])
