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
"""Types of voxels that ITK for Python has no images of, and what they are read as."""

from __future__ import annotations

from typing import Any

import itk
import numpy as np

_READ_AS = {"char": "SS", **dict.fromkeys(("long", "unsigned_long", "long_long", "unsigned_long_long"), "D")}
_ITK = {
    **{"unsigned_char": "UC", "unsigned_short": "US", "short": "SS", "unsigned_int": "UI", "int": "SI"},
    **{"float": "F", "double": "D"},
}
_NUMPY = {
    **{
        "unsigned_char": "uint8",
        "char": "int8",
        "unsigned_short": "uint16",
        "short": "int16",
        "unsigned_int": "uint32",
    },
    **{
        "int": "int32",
        "unsigned_long": "uint64",
        "long": "int64",
        "unsigned_long_long": "uint64",
        "long_long": "int64",
    },
    **{"float": "float32", "double": "float64"},
}
_LACKING = {"int8": np.int16, "int64": np.float64, "uint64": np.float64}


def readable_type(component: str) -> Any:
    """Return the type of voxels to read a component type of ITK's readers as, or None where ITK has to choose.

    float64 holds what the checks of labels let pass of 64-bit integers.
    """
    return getattr(itk, {**_ITK, **_READ_AS}.get(component, ""), None)


def numpy_type_name(component: str) -> str:
    """Return numpy's name of a component type of ITK's readers, or an empty text."""
    return _NUMPY.get(component, "")


def to_itk_type(values: np.ndarray) -> np.ndarray:
    """Return values in a type that ITK for Python has images of, see :func:`readable_type`."""
    return values.astype(_LACKING.get(values.dtype.name, values.dtype), copy=False)
