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
"""What intensities tell of their modality: whether they can be what they are said to be, and what lies outside."""

from __future__ import annotations

from typing import Any

import numpy as np

AIR_HU = -1000.0
CLEARLY_NEGATIVE = -200.0  # HU; fat is above: what reaches down to here is CT in HU, perhaps cut off
SAMPLE = 500_000  # voxels that are looked at


def outside_value(values: Any, modality: str | None) -> float:
    """Return the value that stands for "nothing there" around an image.

    For CT that is air: -1000 HU, or the image's lowest value where that is higher (CT stored as HU + 1024, in 8 bit or
    scaled to [0, 1]). Values below -1000 are the scanner's padding outside its round field of view (-1024, -2000,
    -3024): they are no intensities, and linear interpolation would smear them into the air, so they are never used.

    Args:
        values: of the image, array or tensor of any shape.
        modality: "ct"; "mr", which is 0; None where it is not known: CT if the values look like HU (some near air, many
            near 0, hardly any below air but padding), else 0.
    """
    if modality not in ("ct", None):
        return 0.0
    finite = _numbers(values)
    lowest = float(finite.min()) if finite.size else 0.0
    if modality is None and not _is_in_hu(_sample(finite), lowest, least_air=0.005, least_soft=0.01):
        return 0.0
    return max(AIR_HU, lowest)


def modality_warning(values: Any, modality: str, option: str = "the modality") -> str | None:
    """Return what speaks against an image's modality and what to do, to follow its name in a line; None if nothing.

    A guess from the histogram: values are never changed by it.

    Args:
        values: of the image as loaded (not scaled to [0, 1] by the preprocessing), array or tensor of any shape.
        modality: "ct" (values should be HU) or "mr" (anything else).
        option: what the user sets it by, for the line.
    """
    whole = _numbers(values)
    if not whole.size:
        return None
    sample = _sample(whole)
    lowest, highest = float(whole.min()), float(whole.max())
    if modality != "ct":
        return _hu_as_other(sample, lowest, option)
    given = f"is said to be CT, but its values lie in [{lowest:g}, {highest:g}] and can't be HU"
    if highest - lowest <= 20:
        return f"{given}; give the image in HU, or {option} mr"
    if lowest >= 0 and highest <= 255:
        return (
            f"{given}: they look like gray values of 8 bit; give the image in HU, or {option} mr, which scales by"
            " percentiles"
        )
    body, lowest_of_body = _without_padding(sample, lowest)
    if lowest_of_body <= CLEARLY_NEGATIVE:
        return None
    dense = float(np.mean((body >= 800) & (body < 1400)))  # in HU only hard bone: soft tissue, shifted by 1024
    high = float(np.percentile(body, 99.5))
    background = float(np.mean(body <= lowest_of_body + max(1.0, 0.03 * (high - lowest_of_body))))
    air_elsewhere = background >= 0.05 and (lowest_of_body >= 0 or (lowest_of_body >= -100 and dense >= 0.05))
    if not air_elsewhere and float(np.median(body)) < 500:
        return None  # in HU: with air, cut off above it, or a crop of soft tissue
    return (
        f"is said to be CT, but no value from {lowest_of_body:g} to {highest:g} is that of air in HU (-1000): if it is"
        " stored as HU + 1024, the window is wrong by that; subtract the offset from the file, or, if it holds for both"
        f" images, give --ct_window '[24, 2024]'; if it is not CT, give {option} mr"
    )


def _numbers(values: Any) -> np.ndarray:
    """Return the finite values as a flat array."""
    flat = np.asarray(values).ravel(order="K")
    if flat.dtype.kind != "f":
        return flat
    finite = np.isfinite(flat)
    return flat if finite.all() else flat[finite]


def _without_padding(sample: np.ndarray, lowest: float) -> tuple[np.ndarray, float]:
    """Return the values without a scanner's padding, one value far below all others, and the lowest of what is left.

    -1000 and -1024 are how air in HU is often written, and not left out.
    """
    rest = sample[sample > lowest + 0.5]
    if lowest >= CLEARLY_NEGATIVE or lowest in (AIR_HU, -1024.0) or not rest.size or rest.size > 0.98 * sample.size:
        return sample, lowest
    above = float(rest.min())
    return (rest, above) if above - lowest > 500 else (sample, lowest)


def _sample(values: np.ndarray) -> np.ndarray:
    return values[:: max(1, values.size // SAMPLE)].astype(np.float64)


def _shares(sample: np.ndarray, lowest: float) -> tuple[float, float, float]:
    """Return the shares of air and of soft tissue in HU, and of what lies below air but is no padding."""
    air = float(np.mean((sample >= -1100) & (sample <= -850)))
    soft = float(np.mean(np.abs(sample) <= 200))
    return air, soft, float(np.mean((sample < -1100) & (sample > lowest)))  # of phase and field maps


def _is_in_hu(sample: np.ndarray, lowest: float, least_air: float, least_soft: float) -> bool:
    """Tell whether values have the histogram of CT in HU."""
    air, soft, below = _shares(sample, lowest)
    return lowest <= CLEARLY_NEGATIVE and air >= least_air and soft >= least_soft and below <= 0.01


def _hu_as_other(sample: np.ndarray, lowest: float, option: str) -> str | None:
    """Return the line on an image that is not said to be CT, but has the histogram of CT in HU."""
    if not _is_in_hu(sample, lowest, least_air=0.05, least_soft=0.05):
        return None
    air, soft, _ = _shares(sample, lowest)
    return (
        f"has the values of CT in HU ({air:.0%} of the voxels near -1000, {soft:.0%} near 0), but the modality mr,"
        f" which scales by percentiles; give {option} ct if it is CT"
    )
