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
"""Checks of what the user gives: one clear error each, before heavy work.

:func:`check_header` looks at a file's header only; the transforms look at voxels that are loaded.
"""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform

from .errors import InputError
from .reading import Header, read_header, shape_text, source

logger = logging.getLogger(__name__)

MAX_EXACT = 2**24  # above it float32 can't tell integers apart


def check_header(option: str, path: str, frame: int | None = None, series: str | None = None) -> Header:
    """Check that a file is one 3-D volume of scalars with a usable geometry, reading its header only.

    Args:
        option: name of the option, for the message.
        path: file, or folder with one DICOM series.
        frame: volume to take of a 4-D file, from 0.
        series: UID of the DICOM series, where a folder holds several.

    Raises:
        InputError: the message names option and path and says what to do.
    """
    try:
        header = read_header(path, series)
    except InputError as error:
        raise type(error)(f"{option}: {error}") from error
    named = f"{option}: '{path}'"
    if header.components > 1:
        raise InputError(
            f"{named} has {header.components} values per voxel (a color or vector image);"
            " give an image with one value per voxel"
        )
    dimensions = len(header.shape)
    if dimensions == 4:
        frames = header.shape[3]
        if frame is None:
            raise InputError(f"{named} is 4-D with {frames} frames; select one with --frame N (0 to {frames - 1})")
        if frame >= frames:
            raise InputError(f"{named} has {frames} frames, but frame is {frame}; give 0 to {frames - 1}")
    elif dimensions != 3:
        raise InputError(f"{named} is {dimensions}-D ({shape_text(header.shape)}); give a 3-D volume")
    if min(header.shape[:3]) < 2:
        raise InputError(
            f"{named} is a single slice ({shape_text(header.shape[:3])}), so 2-D; give a 3-D volume"
            " (for DICOM the folder with the series)"
        )
    spacing = np.array(header.spacing[:3])
    if not np.all(np.isfinite(spacing)) or np.any(spacing <= 0):
        raise InputError(f"{named} has the spacing {shape_text_mm(spacing)}; it must be above zero: repair the header")
    if not abs(np.linalg.det(header.direction[:3, :3])) >= 1e-6:
        raise InputError(f"{named} has axes that do not span space (non-invertible affine); repair the header")
    return header


def shape_text_mm(spacing: np.ndarray) -> str:
    """Return a spacing in mm as people write it."""
    return " x ".join(f"{value:g}" for value in spacing) + " mm"


class CheckImagesd(MapTransform):
    """Refuse images that can't be registered: NaN or Inf voxels, a constant image, a non-invertible affine.

    A CT (case entry ``<key>_modality`` is "ct") whose values all lie within [0, 1] can't be in HU: a warning.

    Args:
        keys: loaded images (1, I, J, K).
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the data unchanged."""
        for key in self.key_iterator(dict(data)):
            image = data[key]
            check_volume(str(key), image)
            lowest, highest = float(image.min()), float(image.max())
            image.meta["lowest_value"] = lowest  # training counts the images whose values do not fit their modality
            if lowest == highest:
                raise InputError(f"{key}: {source(image)} is constant (all voxels are {lowest:g}); nothing to register")
            if data.get(f"{key}_modality") == "ct" and lowest >= 0 and highest <= 1:
                logger.warning(
                    "%s: %s is said to be CT, but its values lie in [%g, %g] and can't be HU; give the image in HU,"
                    " or --%s_modality mr",
                    *(key, source(image), lowest, highest, key),
                )
        return dict(data)


class CheckMasksd(MapTransform):
    """Refuse an empty mask, and make masks 0/1: above zero is inside, as in the reference.

    Args:
        keys: loaded masks (1, I, J, K); masks that a case lacks are skipped.
    """

    def __init__(self, keys: KeysCollection) -> None:
        super().__init__(keys, allow_missing_keys=True)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the data with 0/1 masks."""
        result = dict(data)
        for key in self.key_iterator(result):
            mask = result[key]
            check_volume(str(key), mask)
            result[key] = (mask > 0).to(torch.float32)
            if not bool(torch.any(result[key])):
                raise InputError(
                    f"{key}: {source(mask)} is empty on a grid of {shape_text(mask.shape[1:])} (no voxel above 0);"
                    " give a mask with the region in it, or none"
                )
        return result


class CheckLabelsd(MapTransform):
    """Refuse label images whose values are not integers that float32 holds exactly.

    Args:
        keys: loaded label images (1, I, J, K); those that a case lacks are skipped.
    """

    def __init__(self, keys: KeysCollection) -> None:
        super().__init__(keys, allow_missing_keys=True)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the data unchanged."""
        for key in self.key_iterator(dict(data)):
            label = data[key]
            check_volume(str(key), label)
            wrong = label != torch.round(label)
            count = int(wrong.sum())
            if count:
                example = float(label[wrong].flatten()[0])
                raise InputError(
                    f"{key}: {source(label)} has {count} voxels whose values are not integers, such as {example:g};"
                    " give a label image, not probabilities or an interpolated one"
                )
            if float(label.abs().max()) > MAX_EXACT:
                raise InputError(
                    f"{key}: {source(label)} has label values above {MAX_EXACT}, which would be rounded; renumber them"
                )
        return dict(data)


def check_volume(key: str, volume: MetaTensor) -> None:
    """Refuse voxels that are NaN or infinite, and an affine that has no inverse."""
    count = int((~torch.isfinite(volume.as_tensor())).sum()) + int(volume.meta.get("hidden_non_finite", 0))
    if count:
        raise InputError(
            f"{key}: {source(volume)} has {count} of {volume.numel()} voxels that are NaN or infinite;"
            " replace them (for instance by the background value)"
        )
    affine = affine_of(volume)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    volume_ratio = abs(np.linalg.det(affine[:3, :3])) / max(float(np.prod(spacing)), 1e-30)
    if not np.all(np.isfinite(affine)) or np.any(spacing <= 0) or volume_ratio < 1e-6:
        raise InputError(f"{key}: {source(volume)} has an affine without inverse: {affine.tolist()}; repair the header")


def affine_of(volume: MetaTensor) -> np.ndarray:
    """Return the 4 x 4 affine (voxel -> RAS mm) as float64."""
    return np.asarray(volume.affine, dtype=np.float64)
