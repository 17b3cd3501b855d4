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
"""Lists as CSV, as spreadsheets write them: commas, semicolons or tabs, blank rows, a byte order mark."""

from __future__ import annotations

import csv
from pathlib import Path

from scripts.utils.errors import InputError

SEPARATORS = (",", ";", "\t")
_NAMES = {",": "commas", ";": "semicolons", "\t": "tabs"}


def read_text(path: str) -> str:
    """Return a text file's content.

    Raises:
        InputError: it is not UTF-8.
    """
    content = Path(path).read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"'{path}' is not UTF-8 text (byte {content[error.start]:#04x} at {error.start}); save it as UTF-8, in a"
            " spreadsheet as 'CSV UTF-8'"
        ) from error


def read_csv(path: str) -> list[dict[str, str]]:
    """Return the rows of a CSV file with a header, by column; rows and columns without any content are left out.

    The separator is the one of comma, semicolon and tab that parts the header into the most columns, or the one that a
    first line ``sep=;`` names.

    Args:
        path: UTF-8 text.

    Raises:
        InputError: a row that does not fit the header, or the same column twice.
    """
    lines = read_text(path).splitlines()
    separator = None
    if lines and lines[0].strip().strip('"').lower().startswith("sep="):
        separator = lines.pop(0).strip().strip('"')[4:] or "\t"
    while lines and not lines[0].strip(" ,;\t"):
        lines.pop(0)
    if not lines:
        return []
    if separator not in SEPARATORS:
        separator = max(SEPARATORS, key=lambda one: len(next(csv.reader([lines[0]], delimiter=one), [])))
    table = [
        [cell.strip() for cell in row]
        for row in csv.reader(lines, delimiter=separator, skipinitialspace=True)
        if any(cell.strip() for cell in row)
    ]
    header = table[0]
    while header and not header[-1]:
        header.pop()
    twice = next((name for name in header if name and header.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"'{path}' has the column '{twice}' twice; name each column once")
    return [_row(path, number, row, header, separator) for number, row in enumerate(table[1:], start=1)]


def _row(path: str, number: int, cells: list[str], header: list[str], separator: str) -> dict[str, str]:
    """Return the cells of a row by column."""
    while len(cells) > len(header) and not cells[-1]:
        cells.pop()
    if len(cells) > len(header):
        raise InputError(
            f"'{path}', row {number} has more cells ({len(cells)}) than the header ({len(header)}, separated by"
            f" {_NAMES[separator]}); put cells that contain a separator in double quotes"
        )
    other = next((one for one in SEPARATORS if one != separator and one in cells[0]), None)
    if other is not None and len(header) > 1 and not any(cells[1:]):
        raise InputError(
            f"'{path}', row {number} is separated by {_NAMES[other]}, but the header by {_NAMES[separator]}; use one of"
            " them throughout"
        )
    return {name: cell for name, cell in zip(header, cells, strict=False) if name or cell}
