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
"""Entries of NRRD and MetaImage headers that ITK ignores: units of length, scales, and whether there is a world."""

from __future__ import annotations

import re

from scripts.utils.errors import InputFileError

_MM = {
    **dict.fromkeys(("", "mm", "millimeter", "millimeters", "millimetre", "millimetres", "?", "???"), 1.0),
    **dict.fromkeys(("cm", "centimeter", "centimeters", "centimetre", "centimetres"), 10.0),
    **dict.fromkeys(("m", "meter", "meters", "metre", "metres"), 1000.0),
    **dict.fromkeys(
        ("um", "\u00b5m", "\u03bcm", "micron", "microns", "micrometer", "micrometers", "micrometre", "micrometres"),
        1e-3,
    ),
    **dict.fromkeys(("nm", "nanometer", "nanometers", "nanometre", "nanometres"), 1e-6),
}
_SPACES = (
    *("ras", "las", "lps", "right-anterior-superior", "left-anterior-superior", "left-posterior-superior"),
    *("rast", "last", "lpst", "right-anterior-superior-time", "left-anterior-superior-time"),
    "left-posterior-superior-time",
)


def is_text_header(path: str) -> bool:
    """Tell whether a file is NRRD or MetaImage, by its name."""
    return path.lower().endswith((".nrrd", ".nhdr", ".mha", ".mhd"))


def length_in_mm(path: str, start: bytes) -> tuple[float, str | None]:
    """Return the millimeters of the unit a header counts in, and its name if it is another one than mm.

    Args:
        path: file.
        start: its first bytes, of :func:`scripts.utils.regular_files.read_start`.

    Raises:
        InputFileError: the unit is not known, or differs from axis to axis.
    """
    header = _header(path, start)
    if path.lower().endswith((".mha", ".mhd")):
        found = re.search(r"(?im)^DistanceUnits\s*[=:]\s*(\S*)", header)
        names = [found[1]] if found else []
    else:
        line = re.search(r"(?im)^(?:space )?units:[ \t]*(.*)$", header)
        names = re.findall(r'"([^"]*)"', line[1])[:3] if line else []
    units = {name.strip().lower() for name in names}
    if not units:
        return 1.0, None
    if len({_MM.get(unit) for unit in units}) > 1 or not units <= set(_MM):
        raise InputFileError(
            f"'{path}' states lengths in {', '.join(sorted(units))} (units of its header); give it in mm"
        )
    unit = units.pop()
    return _MM[unit], None if _MM[unit] == 1 else unit


def names_no_world(path: str, start: bytes) -> bool:
    """Tell whether a header leaves open where left and right are.

    So does an NRRD header without a ``space`` of patients or without three directions, and a MetaImage header with
    neither matrix nor offset.
    """
    header = _header(path, start) if is_text_header(path) else ""
    if path.lower().endswith((".mha", ".mhd")):
        placed = "TransformMatrix|Rotation|Orientation|Offset|Position|Origin"
        return not re.search(rf"(?im)^(?:{placed})\s*[=:]", header)
    if not header:
        return False
    space = re.search(r"(?im)^space:[ \t]*(\S+)", header)
    directions = re.search(r"(?im)^space directions:(.*)$", header)
    is_whole = directions is not None and directions[1].count("(") >= 3
    return space is None or space[1].lower() not in _SPACES or not is_whole


def unscaled(path: str, start: bytes) -> list[str]:
    """Return a line if a MetaImage header scales its values, which no reader here applies."""
    found = re.search(r"(?im)^ElementToIntensityFunction(?:Slope|Offset)\s*[=:]\s*(\S+)", _header(path, start))
    if not path.lower().endswith((".mha", ".mhd")) or found is None or found[1] in ("0", "1"):
        return []
    return [f"'{path}': its header scales the values (ElementToIntensityFunction); they are used as stored, as by ITK"]


def _header(path: str, start: bytes) -> str:
    if path.lower().endswith((".nrrd", ".nhdr")):
        start = start.split(b"\n\n")[0].split(b"\r\n\r\n")[0]
    else:
        start = start.partition(b"ElementDataFile")[0]
    return start.decode("utf-8", "replace").replace("\r\n", "\n")
