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

_READ_AS = {"char": "SS", **dict.fromkeys(("long", "unsigned_long", "long_long", "unsigned_long_long"), "D")}


def readable_type(image_io: Any) -> Any:
    """Return the type to read a file as, or None for its own.

    float64 holds what the checks of labels let pass of 64-bit integers.

    Args:
        image_io: ITK's reader, with the header read.
    """
    if image_io.GetNumberOfComponents() != 1:
        return None
    return getattr(itk, _READ_AS.get(image_io.GetComponentTypeAsString(image_io.GetComponentType()), ""), None)
