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
"""Which number a structure has in all labels: label values of several studies are given one numbering, or refused.

3D Slicer numbers the segments that it saves from 1 on, and keeps only their names. A label map without names reaches it
as ``label_4`` (from this server) or ``Segment_4`` (read from a file), so such a name stands for the number 4.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from monailabel_app.request_errors import RequestError

Names = dict[int, str]
_NUMBER_NAME = re.compile(r"(?:label|segment)[ _]*0*(\d{1,10})")
_TYPES = ("uint8", "int16", "uint16", "int32")  # narrowest first
MOST_NUMBER = 2**31 - 1  # of the widest type that labels are written in


def folded(name: str) -> str:
    """Return what two spellings of a name have in common: case, blanks and underscores do not count."""
    return " ".join(name.replace("_", " ").casefold().split())


def number_of_name(name: str) -> int | None:
    """Return N of ``label_N`` and ``Segment_N``, or None for a name that says what the structure is."""
    found = _NUMBER_NAME.fullmatch(folded(name))
    return int(found[1]) if found else None


def remap(label: np.ndarray, numbers: Mapping[int, int]) -> np.ndarray:
    """Return a label whose values are replaced all at once, so that they may also be exchanged.

    Args:
        label: whole numbers in any shape and type.
        numbers: value -> new value; values that are not in it stay.

    Returns:
        the same array if nothing changes, else a new one of the same shape, int32.
    """
    if all(value == number for value, number in numbers.items()):
        return label
    values, index = np.unique(label, return_inverse=True)
    new = np.array([numbers.get(int(value), int(value)) for value in values], dtype=np.int32)
    return new[index].reshape(label.shape)


def label_type(values: np.ndarray, wanted: str | None, present: np.dtype | type) -> np.dtype:
    """Return the type of a label file: the wanted one, else the present one, else the narrowest that holds the values.

    Args:
        values: those that occur.
        wanted: of the request.
        present: of the label as it is.
    """
    named = str(np.dtype(wanted or present))
    for name in (named, *_TYPES):
        kind = np.dtype(name)
        if name in _TYPES and values.min() >= np.iinfo(kind).min and values.max() <= np.iinfo(kind).max:
            return kind
    return np.dtype("int32")


@dataclass(frozen=True)
class Labelled:
    """The structures of one label."""

    id: str
    """Of the study, for messages."""
    values: frozenset[int]
    """Those that occur, without 0."""
    names: Names
    """Value -> name; values without a name are missing."""

    def numbers(self) -> dict[int, int]:
        """Return value -> number of the structures that only a number tells apart: no name, or ``label_N``.

        Raises:
            RequestError: two values would have one number, or ``label_N`` names one value while N has another name.
        """
        told = {value: number_of_name(name) for value, name in self.names.items()}
        found: dict[int, int] = {}
        owner: dict[int, int] = {value: value for value, number in told.items() if number is None}
        for value in sorted({*self.values, *told} - owner.keys()):
            number = told.get(value) or value
            if value in told and not 0 < (told[value] or 0) <= MOST_NUMBER:
                raise RequestError(
                    f"'{self.id}': '{self.names[value]}' of value {value} is no number from 1 to {MOST_NUMBER};"
                    " rename it"
                )
            other = owner.setdefault(number, value)
            if other != value:
                raise RequestError(
                    f"'{self.id}': value {value} is {self._text(value)}, and value {other} is {self._text(other)}, so"
                    f" both would be number {number}; rename one of them"
                )
            found[value] = number
        return found

    def named(self) -> Names:
        """Return value -> name of the structures whose name says what they are."""
        return {value: name for value, name in self.names.items() if number_of_name(name) is None}

    def _text(self, value: int) -> str:
        return f"named '{self.names[value]}'" if value in self.names else "without a name"


@dataclass(frozen=True)
class Numbering:
    """What :func:`common_numbering` returns."""

    numbers: list[dict[int, int]]
    """Of each label: value -> number."""
    names: Names
    """Number -> name, of the structures that have one."""
    remarks: tuple[str, ...]
    """What was taken for granted, one line each."""


def common_numbering(labels: Sequence[Labelled]) -> Numbering:
    """Return one numbering for all labels: a name has the number that it has in the first label with it.

    A structure without a name, or named ``label_N``, keeps its number, and is another one than all that have names.
    Only a label without any names is taken to have the common numbers, which a remark says.

    Raises:
        RequestError: one line on the first structures that can't be told apart or brought together.
    """
    numbered, named = [label.numbers() for label in labels], [label.named() for label in labels]
    _refuse_twice(labels, named)
    spellings: dict[int, dict[str, tuple[str, str]]] = {}  # number -> folded name -> (name, study)
    for label, real in zip(labels, named, strict=True):
        for value, name in real.items():
            spellings.setdefault(value, {}).setdefault(folded(name), (name, label.id))
    remarks: dict[str, str] = {}
    assumed: list[dict[int, str]] = []  # of each label: value -> folded name that its number has elsewhere
    for label, own in zip(labels, numbered, strict=True):
        assumed.append({})
        for value, number in own.items():
            if number in spellings:
                name, other = _only_name(label, value, number, spellings)
                assumed[-1][value] = folded(name)
                remarks.setdefault(
                    label.id,
                    f"the label of '{label.id}' has no names: its value {number} was taken for '{name}', as in"
                    f" '{other}'",
                )
    fixed = {
        number
        for own, guess in zip(numbered, assumed, strict=True)
        for value, number in own.items()
        if value not in guess
    }
    taken = fixed | {value for label in labels for value in (*label.values, *label.names)}
    common: dict[str, int] = {}
    names: Names = {}
    result = []
    for own, real, guess in zip(numbered, named, assumed, strict=True):
        numbers = {value: number for value, number in own.items() if value not in guess}
        for value, name in sorted({**real, **guess}.items()):
            key = folded(name)
            if key not in common:
                # a number that another structure has is replaced by one that no label uses
                free = value not in fixed and value not in common.values()
                common[key] = value if free else max(taken) + 1
                taken.add(common[key])
            if value in real:
                names.setdefault(common[key], name)
            numbers[value] = common[key]
        result.append(numbers)
    return Numbering(result, names, tuple(remarks.values()))


def _refuse_twice(labels: Sequence[Labelled], named: Sequence[Names]) -> None:
    for label, own in zip(labels, named, strict=True):
        seen: dict[str, int] = {}
        for value, name in own.items():
            other = seen.setdefault(folded(name), value)
            if other != value:
                raise RequestError(
                    f"'{label.id}': the values {other} and {value} are both named '{name}'; give each structure a"
                    " name of its own"
                )


def _only_name(
    label: Labelled, value: int, number: int, spellings: Mapping[int, Mapping[str, tuple[str, str]]]
) -> tuple[str, str]:
    """Return the one name that a number has in the other labels, and a study with it.

    Raises:
        RequestError: the label has names, of which this structure has none; or the number has several names, or the
            name several numbers.
    """
    found = spellings[number]
    name, other = next(iter(found.values()))
    own = f"'{label.names[value]}'" if value in label.names else "without a name"
    if label.names:
        raise RequestError(
            f"number {number} is {own} in '{label.id}' and '{name}' in '{other}'; give the structure the same name in"
            " both"
        )
    if len(found) > 1:
        second, third = list(found.values())[1]
        raise RequestError(
            f"number {number} is without a name in '{label.id}', '{name}' in '{other}' and '{second}' in '{third}';"
            f" name the structures of '{label.id}'"
        )
    numbers = sorted(number for number, names in spellings.items() if folded(name) in names)
    if len(numbers) > 1:
        raise RequestError(
            f"'{name}' has the numbers {numbers[0]} and {numbers[1]}, and '{label.id}' has no names, so its value"
            f" {number} may be another structure; name the structures of '{label.id}'"
        )
    return name, other
