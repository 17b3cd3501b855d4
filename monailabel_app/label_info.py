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
"""Names of label values: MONAI Label's ``label_info``, a list of ``{"name": ..., "idx": ...}`` beside each label."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from monailabel_app.label_numbers import Labelled, Names, common_numbering, folded, number_of_name, remap
from monailabel_app.request_errors import RequestError


def read_names(info: Mapping[str, Any]) -> Names:
    """Return value -> name of a label's info; entries without a usable value or name, and the background, are left out.

    A second value of the same name, but for case and blanks, gets its value appended, so that both can be told apart.
    """
    entries = info.get("label_info")
    found: Names = {}
    for entry in entries if isinstance(entries, list) else []:
        value, name = (entry.get("idx"), entry.get("name")) if isinstance(entry, Mapping) else (None, None)
        if (
            isinstance(value, int)
            and not isinstance(value, bool)
            and value > 0
            and isinstance(name, str)
            and name.strip()
        ):
            taken = {folded(other) for other in found.values()}
            found[value] = f"{name}_{value}" if folded(name) in taken else name
    return found


def repeated_name(info: Mapping[str, Any]) -> str | None:
    """Return the first name of a label's info that two values share, but for case and blanks, or None."""
    seen: dict[str, int] = {}
    entries = info.get("label_info")
    for entry in entries if isinstance(entries, list) else []:
        if isinstance(entry, Mapping) and entry.get("idx") and isinstance(entry.get("name"), str):
            name = str(entry["name"])
            if folded(name) and seen.setdefault(folded(name), entry["idx"]) != entry["idx"]:
                return name
    return None


def check_label_info(info: Mapping[str, Any]) -> None:
    """Refuse a ``label_info`` that is no list of names and whole numbers above 0.

    Raises:
        RequestError: naming the entry.
    """
    entries = info.get("label_info", [])
    if not isinstance(entries, list):
        raise RequestError(
            f'label_info: expected a list such as [{{"name": "liver", "idx": 1}}], got {str(entries)[:80]}'
        )
    seen: dict[int, str] = {}
    for entry in entries:
        value = entry.get("idx") if isinstance(entry, Mapping) else None
        name = entry.get("name") if isinstance(entry, Mapping) else None
        whole = isinstance(value, int) and not isinstance(value, bool)
        # Slicer also lists the segments without voxels, whose value is missing
        if not isinstance(name, str) or not (value is None or (whole and 0 <= value < 2**31)):
            raise RequestError(
                f'label_info: expected entries such as {{"name": "liver", "idx": 1}}, got {str(entry)[:80]}'
            )
        if value and seen.setdefault(value, name) != name:
            raise RequestError(f"label_info: value {value} has two names, '{seen[value]}' and '{name}'; give it one")


def names_of_values(values: Iterable[int], names: Names) -> dict[str, int]:
    """Return name -> value in the order of the values, with ``label_N`` for those without a name.

    3D Slicer gives these names to the segments of a result in the order of their values: so only present ones count.
    """
    return {names.get(int(value), f"label_{int(value)}"): int(value) for value in sorted(values) if int(value) != 0}


def unite(labels: Iterable[tuple[np.ndarray, Names]]) -> tuple[list[np.ndarray], Names]:
    """Give labels of several studies one numbering: see :func:`monailabel_app.label_numbers.common_numbering`.

    Args:
        labels: values on any grid, and their names.

    Returns:
        the labels renumbered, and the common names.

    Raises:
        RequestError: structures that can't be told apart or brought together.
    """
    given = list(labels)
    found = common_numbering([labelled(f"label {n}", label, own) for n, (label, own) in enumerate(given, start=1)])
    return [remap(label, numbers) for (label, _), numbers in zip(given, found.numbers, strict=True)], found.names


def labelled(study: str, label: np.ndarray, names: Names) -> Labelled:
    """Return the structures of a label.

    Args:
        study: its id.
        label: values on any grid.
        names: of its values.
    """
    return Labelled(study, frozenset(int(value) for value in np.unique(label)) - {0}, names)


def number_saved(study: str, label: np.ndarray, info: Mapping[str, Any]) -> tuple[np.ndarray, dict[str, Any]]:
    """Return a label and its info with the number N for what ``label_N`` names; 3D Slicer numbers from 1 on instead.

    Args:
        study: its id.
        label: values on any grid.
        info: of the label, checked by :func:`check_label_info`.

    Raises:
        RequestError: two structures would have the same number.
    """
    repeated = repeated_name(info)
    if repeated is not None and number_of_name(repeated) is not None:
        raise RequestError(
            f"label_info: two values have the name '{repeated}', which stands for one number; rename one"
        )
    numbers = labelled(study, label, read_names(info)).numbers()
    if all(value == number for value, number in numbers.items()):
        return label, dict(info)
    entries = [
        {**entry, "idx": numbers.get(entry["idx"], entry["idx"])} if entry.get("idx") else dict(entry)
        for entry in info["label_info"]
    ]
    return remap(label, numbers), {**info, "label_info": entries}


def conflicts(names: Mapping[str, Names]) -> str | None:
    """Return one line on a value that means different things in two studies, or None.

    Args:
        names: id of the study -> its names.
    """
    seen: dict[int, tuple[str, str]] = {}
    for study, own in names.items():
        for value, name in own.items():
            number = number_of_name(name)
            other, first = seen.setdefault(value if number is None else number, (study, name))
            same = number_of_name(first) == number if number is not None else folded(first) == folded(name)
            if not same:
                return f"label {number or value} is '{first}' in '{other}' and '{name}' in '{study}'"
    return None
