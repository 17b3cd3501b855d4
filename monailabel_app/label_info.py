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

from monailabel_app.request_errors import RequestError

Names = dict[int, str]


def read_names(info: Mapping[str, Any]) -> Names:
    """Return value -> name of a label's info; entries without a usable value or name, and the background, are left out.

    A second value of the same name gets its value appended, so that both can be told apart.
    """
    entries = info.get("label_info")
    found: Names = {}
    for entry in entries if isinstance(entries, list) else []:
        value, name = (entry.get("idx"), entry.get("name")) if isinstance(entry, Mapping) else (None, None)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0 and isinstance(name, str) and name:
            found[value] = f"{name}_{value}" if name in found.values() else name
    return found


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
    for entry in entries:
        value = entry.get("idx") if isinstance(entry, Mapping) else None
        name = entry.get("name") if isinstance(entry, Mapping) else None
        # Slicer also lists the segments without voxels, whose value is missing
        if not isinstance(name, str) or not (value is None or (isinstance(value, int) and 0 <= value < 2**31)):
            raise RequestError(
                f'label_info: expected entries such as {{"name": "liver", "idx": 1}}, got {str(entry)[:80]}'
            )


def names_of_values(values: Iterable[int], names: Names) -> dict[str, int]:
    """Return name -> value in the order of the values, with ``label_N`` for those without a name.

    3D Slicer gives these names to the segments of a result in the order of their values: so only present ones count.
    """
    return {names.get(int(value), f"label_{int(value)}"): int(value) for value in sorted(values) if int(value) != 0}


def unite(labels: Iterable[tuple[np.ndarray, Names]]) -> tuple[list[np.ndarray], Names]:
    """Give labels of several studies one numbering: a name has the value that it has in the first study with it.

    Args:
        labels: values on any grid, and their names. Values without a name keep their number.

    Returns:
        the labels renumbered, and the common names.
    """
    united: list[np.ndarray] = []
    common: Names = {}
    labels = list(labels)
    taken = {int(value) for label, _ in labels for value in np.unique(label)} | {v for _, n in labels for v in n}
    for label, names in labels:
        result = label.copy()
        own = [(value, names.get(value)) for value in sorted({*np.unique(label).tolist(), *names} - {0})]
        for value, name in own:
            if name is None and not (names and value in common):
                continue  # without any names a label is taken to have the common numbers
            known = next((v for v, n in common.items() if n == name), None)
            if known is None:
                known = value
                if value in common:  # another structure has this value
                    known = max(taken) + 1
                    taken.add(known)
                if name is not None:
                    common[known] = name
            if known != value:
                result = result.astype(np.int32)
                result[label == value] = known
        united.append(result)
    return united, common


def conflicts(names: Mapping[str, Names]) -> str | None:
    """Return one line on a value that means different things in two studies, or None.

    Args:
        names: id of the study -> its names.
    """
    seen: dict[int, tuple[str, str]] = {}
    for study, own in names.items():
        for value, name in own.items():
            other, first = seen.setdefault(value, (study, name))
            if first != name:
                return f"label {value} is '{first}' in '{other}' and '{name}' in '{study}'"
    return None
