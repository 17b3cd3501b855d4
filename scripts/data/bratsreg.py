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
"""BraTS-Reg: brains with a tumor before and after treatment, with landmarks, as pairs of a list.

Its CSV files (Landmark,X,Y,Z) hold world mm, LPS: X = i, Y = j - 239, Z = k on the challenge's grid, whose origin is
(0, -239, 0). So they are read as they are.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from scripts.utils.errors import InputError

CONTRASTS = ("t1ce", "t1", "t2", "flair")
_FILE = re.compile(
    r"(?P<subject>BraTSReg_\d+)_(?P<visit>\d{2})_\d+_(?P<part>t1ce|t1|t2|flair|landmarks)(?:\.nii\.gz|\.csv)"
)


def bratsreg_entries(folder: Path, contrast: str = "t1ce") -> list[dict[str, Any]]:
    """Return the pairs, absolute paths; fixed is the scan before treatment (visit 00), as in the challenge.

    Args:
        folder: that holds ``BraTSReg_001`` and so on.
        contrast: one of :data:`CONTRASTS`.

    Raises:
        InputError: an unknown contrast, or no pair in it.
    """
    if contrast not in CONTRASTS:
        raise InputError(f"contrast: expected one of {', '.join(CONTRASTS)}, got '{contrast}'")
    found: dict[str, dict[str, Path]] = {}
    for path in sorted(Path(folder).absolute().rglob("BraTSReg_*")):
        match = _FILE.fullmatch(path.name)
        if match and match["part"] in (contrast, "landmarks"):
            side = "fixed" if match["visit"] == "00" else "moving"
            key = f"{side}_landmarks" if match["part"] == "landmarks" else side
            found.setdefault(match["subject"], {}).setdefault(key, path)
    pairs = {subject: parts for subject, parts in found.items() if {"fixed", "moving"} <= set(parts)}
    if not pairs:
        raise InputError(
            f"'{folder}' holds no pair of BraTS-Reg; expected BraTSReg_001/BraTSReg_001_00_0000_{contrast}.nii.gz and"
            f" BraTSReg_001_01_0106_{contrast}.nii.gz, landmarks in ..._landmarks.csv beside them"
        )
    both = {"fixed_modality": "mr", "moving_modality": "mr"}
    return [
        {"case": subject, "subject": subject, **{key: str(path) for key, path in parts.items()}, **both}
        for subject, parts in pairs.items()
    ]
