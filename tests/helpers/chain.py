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
"""The chain of configs/inference.yaml's `preprocessing:` as Python, and small volumes, for the tests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import itk
import numpy as np
from monai.transforms import Compose, Resized

from scripts.transforms.checks import CheckImagesd, CheckLabelsd, CheckMasksd
from scripts.transforms.intensity import ScaleByModalityd
from scripts.transforms.labels import CopyLabelsd
from scripts.transforms.load import LoadVolumesd
from scripts.transforms.masks import UseMasksd
from scripts.transforms.match_grid import MatchGridd
from scripts.transforms.orientation import MatchOrientationd, ReverseAxesd

SHAPE = (17, 18, 20)  # network grid (D, H, W)
REGIONS = ["fixed_mask", "moving_mask", "fixed_label", "moving_label"]
LOSS_MASKS = ["fixed_loss_mask", "moving_loss_mask"]
NETWORK_LABELS = ["fixed_network_label", "moving_network_label"]


def chain(
    network_shape: Sequence[int] = SHAPE,
    ct_window: Sequence[float] = (-1000, 1000),
    mr_percentiles: Sequence[float] = (0, 99),
    mask_use: str = "input",
    match_orientation: bool = True,
) -> Compose:
    images = ["fixed_image", "moving_image"]
    standard = ["fixed_image", "fixed_loss_mask", "fixed_network_label"]
    turned = ["moving_image", "moving_loss_mask", "moving_network_label"]
    return Compose(
        [
            LoadVolumesd(keys=["fixed", "moving", *REGIONS]),
            CheckImagesd(keys=["fixed", "moving"]),
            CheckMasksd(keys=REGIONS[:2]),
            CheckLabelsd(keys=REGIONS[2:], below=2**53),
            MatchGridd(keys=REGIONS, image_keys=["fixed", "moving", "fixed", "moving"]),
            ScaleByModalityd(
                keys=["fixed", "moving"], output_keys=images, ct_window=ct_window, mr_percentiles=mr_percentiles
            ),
            UseMasksd(keys=images, mask_keys=REGIONS[:2], loss_mask_keys=LOSS_MASKS, mask_use=mask_use),
            CopyLabelsd(keys=REGIONS[2:], output_keys=NETWORK_LABELS),
            ReverseAxesd(keys=[*images, *LOSS_MASKS, *NETWORK_LABELS]),
            MatchOrientationd(keys=standard, enabled=match_orientation),
            MatchOrientationd(keys=turned, reference_key="fixed_image", enabled=match_orientation),
            Resized(keys=images, spatial_size=network_shape, mode="trilinear", align_corners=False),
            Resized(
                keys=[*LOSS_MASKS, *NETWORK_LABELS],
                spatial_size=network_shape,
                mode="nearest-exact",
                allow_missing_keys=True,
            ),
            CheckMasksd(keys=LOSS_MASKS),
        ]
    )


def oblique(degrees: float = 14.0) -> np.ndarray:
    """Direction cosines (LPS) of an image turned about two axes."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ np.array([[1, 0, 0], [0, c, -s], [0, s, c]])


def write(
    path: Path,
    values: np.ndarray,
    spacing: Sequence[float] = (0.7, 0.8, 3.0),
    origin: Sequence[float] = (-31.0, 12.5, 140.0),
    direction: np.ndarray | None = None,
) -> str:
    """Write values (I, J, K) with ITK: spacing and origin in mm, direction in LPS, oblique by default."""
    image: Any = itk.image_from_array(np.ascontiguousarray(values.T))
    image.SetSpacing([float(value) for value in spacing])
    image.SetOrigin([float(value) for value in origin])
    image.SetDirection(itk.matrix_from_array(oblique() if direction is None else direction))
    itk.imwrite(image, str(path))
    return str(path)


def noise(shape: Sequence[int] = (19, 23, 14), low: int = -900, high: int = 900, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(low, high, shape).astype(np.int16)


def pair(folder: Path, **entries: Any) -> dict[str, Any]:
    """Return a case of two written CT volumes; entries add to it or replace."""
    case = {
        "case": "pair",
        "case_dir": str(folder / "out"),
        "fixed": write(folder / "fixed.nii.gz", noise()),
        "moving": write(folder / "moving.nii.gz", noise((16, 21, 18), seed=1), spacing=(1.1, 0.9, 2.0)),
        "fixed_modality": "ct",
        "moving_modality": "ct",
    }
    return {**case, **entries}
