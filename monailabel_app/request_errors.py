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
"""Errors that a client sees as one line, with a status of 4xx or 5xx."""

from __future__ import annotations

import logging
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fastapi import HTTPException

from scripts.utils.errors import describe_memory_error, find_input_error

logger = logging.getLogger(__name__)

LONGEST_ID = 200


class RequestError(HTTPException):
    """A request that can't be served; FastAPI answers with the status and ``{"detail": ...}``.

    Args:
        detail: one line: what was wrong, what came, what to do.
        status_code: 400 a wrong value, 404 an unknown id, 409 something in the way.
    """

    def __init__(self, detail: str, status_code: int = 400) -> None:
        super().__init__(status_code=status_code, detail=detail)


def is_id(value: str) -> bool:
    """Return whether a text can be an id: a file's name and nothing else, and no syntax of MONAI's configs (``#``)."""
    return (
        len(value.encode(errors="replace")) <= LONGEST_ID
        and ".." not in value
        and not value.startswith((".", "~"))
        and not re.search(r"[/\\:#\x00-\x1f\x7f]|%[0-9a-fA-F]{2}", value)
    )


def check_id(option: str, value: Any) -> str:
    """Return an id of the datastore (or a tag, or a model's name) that can't be read as a path.

    Raises:
        RequestError: no text, empty, too long, hidden, or with separators, ``..`` or control characters.
    """
    if not isinstance(value, str) or not value.strip():
        raise RequestError(f"{option}: expected an id of the datastore, got {str(value)[:60]!r}")
    if not is_id(value):
        raise RequestError(
            f"{option}: {value[:60]!r} can't be an id; ids have no / \\ : # nor control characters, no '..' nor escapes"
            f" such as %2e, no leading '.' or '~' and at most {LONGEST_ID} bytes; name a study, not a file"
        )
    return value


@contextmanager
def forgotten_if_refused(*paths: Any) -> Iterator[None]:
    """Remove uploads when their request is refused: MONAI Label only removes those of good requests."""
    try:
        yield
    except Exception:
        for path in paths:
            if isinstance(path, str) and Path(path).parent == Path(tempfile.gettempdir()):
                Path(path).unlink(missing_ok=True)
        raise


@contextmanager
def plain_errors(names: Mapping[str, str]) -> Iterator[None]:
    """Turn errors of the bundle into :class:`RequestError`: wrong inputs 400, no memory 503, anything else 500.

    Args:
        names: path -> id, so that no path of the server reaches a client.
    """
    try:
        yield
    except HTTPException:
        raise
    except Exception as error:
        wrong, memory = find_input_error(error), describe_memory_error(error)
        if wrong is None and memory is None:
            logger.exception("the request failed")
            raise RequestError(f"failed ({type(error).__name__}); the server's log says more", 500) from error
        text = str(wrong) if wrong is not None else str(memory)
        for path, name in names.items():
            text = text.replace(path, name)
        logger.warning("refused: %s", text)
        raise RequestError(text, 400 if wrong is not None else 503) from error
