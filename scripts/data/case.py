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
"""The case: one pair on its way through a workflow, from the paths of its files to the report.

MONAI's transforms and engines pass mappings on, so a case is a typed dictionary: mypy refuses a wrong key or type.
:class:`CaseFiles` is what a list of cases holds, :class:`Case` what ``scripts.transforms.LoadVolumesd`` makes
of it and every later step adds to. A transform whose ``keys`` come from a config works on any mapping, as MONAI's do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypedDict

import numpy as np
from monai.data import MetaTensor
from torch import Tensor

from scripts.data.opened_files import Kept
from scripts.geometry.grid_transform import GridTransform
from scripts.geometry.image_pair import Registration

Modality = Literal["ct", "mr"]
Side = Literal["fixed", "moving"]
SIDES: tuple[Side, ...] = ("fixed", "moving")
RegionKey = Literal["fixed_mask", "moving_mask", "fixed_label", "moving_label"]
LandmarkKey = Literal["fixed_landmarks", "moving_landmarks"]
LANDMARKS: tuple[LandmarkKey, ...] = ("fixed_landmarks", "moving_landmarks")
PathKey = Literal[Side, RegionKey, LandmarkKey]
ModalityKey = Literal["fixed_modality", "moving_modality"]
SeriesKey = Literal["fixed_series", "moving_series"]
FrameKey = Literal["frame", "fixed_frame", "moving_frame"]
NetworkImage = Literal["fixed_image", "moving_image"]
NETWORK_IMAGES: tuple[NetworkImage, ...] = ("fixed_image", "moving_image")
NetworkRegion = Literal["fixed_loss_mask", "moving_loss_mask", "fixed_network_label", "moving_network_label"]
FIXED_REGIONS: tuple[NetworkRegion, ...] = ("fixed_loss_mask", "fixed_network_label")
MOVING_REGIONS: tuple[NetworkRegion, ...] = ("moving_loss_mask", "moving_network_label")


@dataclass(frozen=True, eq=False)
class WorldTransforms:
    """The result of a registration in the world, RAS mm."""

    forward: GridTransform
    """Fixed point -> moving point, over the whole fixed image; it resamples the moving image."""
    inverse: GridTransform | None
    """Moving point -> fixed point, over the whole moving image; None if the method has none."""
    network_forward: GridTransform
    """``forward`` over what the network saw, which a crop may have left."""
    network_inverse: GridTransform | None
    """``inverse`` over what the network saw."""
    displacement_mm: Tensor
    """``forward(x) - x`` on the fixed image's own grid, (3, I, J, K); the outputs share it."""


@dataclass(frozen=True, eq=False)
class QualityMaps:
    """Maps on a coarse grid over the fixed field of view, (1, 1, D, H, W)."""

    inconsistency_mm: Tensor
    """Distance of inverse(forward(x)) from x; NaN without an inverse, or where forward leaves the moving image."""
    confidence: Tensor
    """0 to 1."""
    affine: Tensor
    """(4, 4), voxel (d, h, w) -> world RAS mm."""


class _Pair(TypedDict, total=False):
    """What names a pair and tells how to read it: the same before and after its files are loaded."""

    case: str
    """Name; also that of its folder, of a list."""
    case_dir: str
    """Folder of the results; absent if no files are written."""
    fixed_modality: Modality
    moving_modality: Modality
    frame: int
    """Volume to take of 4-D files, from 0."""
    fixed_frame: int
    """Volume to take of the fixed image alone."""
    moving_frame: int
    fixed_series: str
    """UID of the DICOM series to take of a folder."""
    moving_series: str
    fixed_landmarks: str | Tensor
    """Path of a file of points, or the points (N, 3)."""
    moving_landmarks: str | Tensor
    opened: dict[str, Kept]
    """Files whose headers were read when the case was checked, by their keys."""
    landmark_space: str
    """RAS or VOXEL: the coordinates of landmarks whose file does not state them; LPS if absent."""


class CaseFiles(_Pair, total=False):
    """A pair before it is loaded: an image is a path, or a volume in memory as :class:`Case` has it."""

    fixed: str | MetaTensor
    moving: str | MetaTensor
    fixed_mask: str | MetaTensor
    moving_mask: str | MetaTensor
    fixed_label: str | MetaTensor
    moving_label: str | MetaTensor
    error: str
    """Why the pair of a cohort can't be registered."""


class Case(_Pair, total=False):
    """A pair that was loaded, and what has been computed for it so far; all volumes carry their RAS affine."""

    # on the files' own grids, (1, I, J, K)
    fixed: MetaTensor
    moving: MetaTensor
    fixed_mask: MetaTensor
    """0 or 1, on the fixed image's grid."""
    moving_mask: MetaTensor
    fixed_label: MetaTensor
    """Integers, on the fixed image's grid."""
    moving_label: MetaTensor

    # for the network, (1, D, H, W)
    fixed_image: MetaTensor
    """Intensities in [0, 1]."""
    moving_image: MetaTensor
    fixed_loss_mask: MetaTensor
    """Where the similarity counts, 0 or 1."""
    moving_loss_mask: MetaTensor
    fixed_network_label: MetaTensor
    """Copy of the label that follows its image onto the network's grid."""
    moving_network_label: MetaTensor
    prealign: str
    """What ``scripts.transforms.Prealignd`` found and did, in words."""

    # results
    pred: Registration
    """What the inferer returned, without its batch axis."""
    transforms: WorldTransforms
    warped_label: np.ndarray
    """Moving label on the fixed grid, (I, J, K), in its type on disk."""
    metrics: dict[str, Any]
    """Folding, inconsistency, Dice, landmark errors, as in report.json."""
    quality: dict[str, Any]
    """Figures without labels, verdict, reasons, as in report.json."""
    quality_maps: QualityMaps
    written: tuple[str, ...]
    """Names of the files in ``case_dir``."""
    report: dict[str, Any]
    """Content of report.json."""


def frame_of(case: CaseFiles | Case, key: Side | RegionKey) -> int | None:
    """Return the frame to take of the file of a case entry, of a 4-D file."""
    own = case.get("fixed_frame") if key.startswith("fixed") else case.get("moving_frame")
    return case.get("frame") if own is None else own


def series_of(case: CaseFiles | Case, key: Side | RegionKey) -> str | None:
    """Return the UID of the DICOM series to take of an image's folder; masks and labels have none."""
    return case.get("fixed_series") if key == "fixed" else case.get("moving_series") if key == "moving" else None
