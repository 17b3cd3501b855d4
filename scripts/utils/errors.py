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
"""Errors that a user can act on: one clear line saying what was wrong, what came and what to do."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from types import TracebackType
from typing import Any

MEMORY_WORDS = ("out of memory", "can't allocate memory", "not enough memory", "failed to allocate", "bad_alloc")


class InputError(ValueError):
    """An option, a file or its content can't be used; the message, always one line, says what to do."""

    def __init__(self, message: object = "") -> None:
        text = str(message)
        if text.startswith("Caught ") and "\nOriginal Traceback" in text:  # from a process of PyTorch's DataLoader
            text = text.rstrip().splitlines()[-1].partition("Error: ")[2]
        super().__init__("\\n".join(text.splitlines()))  # file names and contents may have line ends


class InputFileError(InputError, FileNotFoundError):
    """A file is missing or can't be read; the message names the option and the path."""


def find_input_error(error: BaseException) -> InputError | None:
    """Return the :class:`InputError` among ``error`` and its causes, or None.

    MONAI wraps what a config component or a transform raises in RuntimeErrors ("Failed to instantiate ...").
    """
    return next((cause for cause in _causes(error) if isinstance(cause, InputError)), None)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield ``error``, what caused it, what caused that, ..."""
    current: BaseException | None = error
    seen: set[int] = set()
    while current is not None and id(current) not in seen:
        yield current
        seen.add(id(current))
        current = current.__cause__ or current.__context__


def describe_memory_error(error: BaseException) -> str | None:
    """Return one line on what lowers the need for memory if ``error`` or one of its causes is a lack of it, or None.

    PyTorch and ITK raise RuntimeErrors of many kinds for it, so these are known by their texts.
    """
    for current in _causes(error):
        text = str(current)
        if isinstance(current, MemoryError) or (
            isinstance(current, RuntimeError) and any(words in text.lower() for words in MEMORY_WORDS)
        ):
            reason = text.strip().splitlines()[0] if text.strip() else type(current).__name__
            return (
                f"out of memory ({reason}); use --preset fast or smaller field::levels, a smaller image_shape,"
                " --optimization field in place of network, or --oom_fallback True; in training a smaller batch_size,"
                " or --activation_checkpointing True"
            )
    return None


class _NoSecondReport(logging.Filter):
    """Leave out what MONAI's engines say of an error that ends in one line of our own."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Tell whether the record is to be written."""
        error = sys.exc_info()[1]
        if error is None or not str(record.msg).startswith(("Engine run is terminating", "Current run is terminating")):
            return True
        is_plain = find_input_error(error) is not None or describe_memory_error(error) is not None
        return not is_plain or os.environ.get("REGISTRATION_TRACEBACK") == "1"


_no_second_report = _NoSecondReport()


def quiet_engine(engine: Any) -> None:
    """Let an engine of MONAI (ignite) leave it to the raised error to say why a run ended, if that is one clear line.

    Args:
        engine: of ignite, with a ``logger``; another one is left as it is.
    """
    engine_logger = getattr(engine, "logger", None)
    if isinstance(engine_logger, logging.Logger):
        engine_logger.addFilter(_no_second_report)  # once: the same filter is not added again


def report_plainly() -> None:
    """Let an uncaught :class:`InputError` or a lack of memory end the ``monai.bundle`` command with one line.

    Only the command line is touched (a program that imports this bundle keeps its own excepthook), the exit status
    stays 1, and REGISTRATION_TRACEBACK=1 in the environment brings the traceback back.
    """
    package = getattr(sys.modules.get("__main__"), "__package__", None)
    if package != "monai.bundle" or os.environ.get("REGISTRATION_TRACEBACK") == "1":
        return

    def hook(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        line = find_input_error(error) or describe_memory_error(error)
        if line is None:
            sys.__excepthook__(kind, error, traceback)
        else:
            print(f"error: {line}", file=sys.stderr)

    sys.excepthook = hook
