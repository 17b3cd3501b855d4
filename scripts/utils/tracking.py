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
"""Experiment tracking by MONAI (``--tracking mlflow``): is what it needs there?"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from typing import Any

from scripts.utils.errors import InputError


def check_tracking(config: Mapping[str, Any]) -> None:
    """Refuse a config that logs to MLflow where the package is missing, before anything heavy starts.

    Args:
        config: of the workflow, with the handlers that MONAI adds for ``--tracking``.

    Raises:
        InputError: with the command that installs the package.
    """
    uses = any(str(target).rpartition(".")[2] == "MLFlowHandler" for target in _targets(config))
    if uses and importlib.util.find_spec("mlflow") is None:
        raise InputError(
            "tracking mlflow needs the package mlflow, which is not installed; get it with: pip install mlflow, or"
            " leave out --tracking (TensorBoard's logs and metrics.csv are always written)"
        )


def _targets(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        if "_target_" in value:
            yield value["_target_"]
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from _targets(item)
