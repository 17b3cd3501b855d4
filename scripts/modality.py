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
"""What an image's values tell of its modality."""

from __future__ import annotations

HU_OF_AIR = -200.0  # CT in HU has air or lung, well below it; MR and PET have nothing there


def modality_doubt(modality: str, lowest: float | None) -> str | None:
    """Return why an image can hardly be of the modality that it is said to be, or None.

    The text continues "3 of 7 images ...".

    Args:
        modality: ct or mr.
        lowest: of its values, as stored; None where it is not known.
    """
    if lowest is None:
        return None
    if modality == "ct" and lowest > HU_OF_AIR:
        return f"are said to be CT, but have no value of {HU_OF_AIR:g} HU or less (air), so are hardly CT in HU"
    if modality == "mr" and lowest <= HU_OF_AIR:
        return f"are said to be MR, but have values of {HU_OF_AIR:g} or less, as CT in HU has"
    return None
