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
"""Running a config of this bundle from Python, as the ``monai.bundle`` command does."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser, ConfigWorkflow

from scripts.option_safety import refuse_code
from scripts.utils.errors import InputError, find_input_error

BUNDLE_ROOT = Path(__file__).resolve().parents[1]


class Workflow(ConfigWorkflow):
    """MONAI's workflow that keeps what it was made of, so that its options can be checked (``scripts.callers``).

    Args:
        config_files: paths; later files override earlier ones.
        options: values for ids of the configs.
        arguments: of MONAI's ConfigWorkflow.
    """

    def __init__(self, config_files: Sequence[str | Path], options: Mapping[str, Any], **arguments: Any) -> None:
        self.properties: dict[str, Any] = {}  # MONAI's attributes look into it
        self.config_files, self.options = [str(path) for path in config_files], dict(options)
        super().__init__(config_file=self.config_files, **arguments, **options)


def run_workflow(configs: Sequence[str], options: Mapping[str, Any], logging: bool = False) -> ConfigParser:
    """Run configs laid over each other, with options, and return the parser, from which results can be taken.

    Args:
        configs: names in the bundle's configs folder, such as ``inference.yaml``.
        options: as on the command line; an option that the configs do not know is refused.
        logging: set up MONAI's logging by configs/logging.conf.

    Raises:
        InputError: an option or a file can't be used.
    """
    refuse_code(options)
    path = list(sys.path)
    try:
        workflow = Workflow(
            [BUNDLE_ROOT / "configs" / name for name in configs],
            {"bundle_root": str(BUNDLE_ROOT), **options},
            workflow_type="inference",
            logging_file=None if logging else False,
        )
        workflow.initialize()
        workflow.run()
        return workflow.parser
    except Exception as error:
        known = find_input_error(error)
        if known is None or known is error:
            raise
        raise type(known)(str(known)) from error  # MONAI wraps it
    finally:
        sys.path[:] = path  # MONAI adds the bundle to it once more at each run


def check_not_given(options: Mapping[str, Any], names: Sequence[str]) -> None:
    """Refuse options that a caller sets itself."""
    for name in names:
        if name in options:
            raise InputError(f"{name} can't be given here")
