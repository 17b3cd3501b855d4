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
"""What follows the network: the case's transforms of the world, its warped label, and its metrics.

Each takes the case with the volumes of the preprocessing and the inferer's result, and adds to it.
:mod:`scripts.transforms.outputs` writes the files.
"""

from __future__ import annotations

import logging
from typing import Any, Literal

import numpy as np
from monai.data import MetaTensor
from monai.transforms import Transform

from scripts.data.case import LANDMARKS, SIDES, Case, WorldTransforms
from scripts.data.landmarks import case_landmarks, check_same_points
from scripts.data.modality import outside_value
from scripts.geometry.extension import extend
from scripts.geometry.grid_transform import GridTransform, displacement_field
from scripts.geometry.image_pair import regrid_affine
from scripts.geometry.warping import NIFTI_TYPES, warp_image
from scripts.metrics import registration_metrics as metrics
from scripts.utils.tensors import plain

logger = logging.getLogger(__name__)


class AddTransformsd(Transform):
    """Add ``transforms``: the ddfs of ``pred`` as transforms of the world.

    A ddf's grid spans that of ``fixed_image`` and ``moving_image`` (the network's) with its own number of voxels.
    """

    def __call__(self, data: Case) -> Case:
        """Return the case with transforms."""
        forward_ddf, inverse_ddf = data["pred"]["forward_ddf"], data["pred"].get("inverse_ddf")
        fixed_affine, moving_affine = (
            regrid_affine(plain(image.affine), image.shape[1:], forward_ddf.shape[1:])
            for image in (data["fixed_image"], data["moving_image"])
        )
        forward = GridTransform(forward_ddf, fixed_affine, moving_affine)
        inverse = None if inverse_ddf is None else GridTransform(inverse_ddf, moving_affine, fixed_affine)
        fixed = data["fixed"]
        whole = extend(forward, fixed)  # where the images were cropped
        transforms = WorldTransforms(
            forward=whole,
            inverse=None if inverse is None else extend(inverse, data["moving"]),
            network_forward=forward,
            network_inverse=inverse,
            displacement_mm=displacement_field(whole, fixed.shape[1:], fixed.affine),
        )
        return {**data, "transforms": transforms}


class AddWarpedLabeld(Transform):
    """Add ``warped_label`` (I, J, K) on the fixed grid, in its type on disk, if there is a moving label."""

    def __call__(self, data: Case) -> Case:
        """Return the case with the warped label."""
        if "moving_label" not in data:
            return data
        return {**data, "warped_label": warp_onto_fixed(data, "moving_label", data["transforms"].displacement_mm)}


class AddMetricsd(Transform):
    """Add ``metrics``: folding and inconsistency, Dice if both labels are there, TRE if both landmarks are.

    Dice needs ``warped_label`` of :class:`AddWarpedLabeld`.
    "Before" is the start of the registration: field of view onto field of view.
    """

    def __call__(self, data: Case) -> Case:
        """Return the case with metrics."""
        forward, inverse = data["transforms"].forward, data["transforms"].inverse
        found: dict[str, Any] = {"folding_percent": metrics.folding(forward)}
        if inverse is not None:  # not every method that is compared has one
            found["inverse_folding_percent"] = metrics.folding(inverse)
            found["inconsistency_mm"] = metrics.inconsistency_mm(forward, inverse)
        if "fixed_label" in data and "moving_label" in data:
            found["dice"] = self._dice(data)
        if "fixed_landmarks" in data and "moving_landmarks" in data:
            found["tre_mm"] = self._tre(data)
        return {**data, "metrics": found}

    def _dice(self, data: Case) -> dict[str, Any]:
        fixed = plain(data["fixed_label"])[0].numpy()
        labels = metrics.common_labels(fixed, plain(data["moving_label"]).numpy())
        if not labels:
            logger.warning("fixed_label and moving_label have no label in common: no Dice")
        before = warp_onto_fixed(data, "moving_label", data["transforms"].forward.without_displacement())
        scores: dict[str, Any] = {}
        for when, warped in (("before", before), ("after", data["warped_label"])):
            per_label = metrics.dice_per_label(fixed, warped, labels)
            mean = float(np.mean(list(per_label.values()))) if labels else None
            scores[when] = {"mean": mean, "per_label": per_label}
        return scores

    def _tre(self, data: Case) -> dict[str, Any]:
        space = data.get("landmark_space", "LPS")
        files = [case_landmarks(data, key, space) for key in LANDMARKS]
        check_same_points(*files)
        fixed, moving = (file.landmarks(plain(data[side].affine)) for file, side in zip(files, SIDES, strict=True))
        forward = data["transforms"].forward
        errors: dict[str, Any] = {}
        for when, transform in (("before", forward.without_displacement()), ("after", forward)):
            distances = metrics.target_registration_error_mm(transform, fixed.points_ras_mm, moving.points_ras_mm)
            errors[when] = {
                "mean": float(distances.mean()),
                "std": float(distances.std(correction=0)),
                "median": float(np.median(distances.numpy())),
                "percentile_95": float(np.percentile(distances.numpy(), 95)),
                "max": float(distances.max()),
                "per_landmark": [round(value, 4) for value in distances.tolist()],
            }
        return errors


def warp_onto_fixed(
    data: Case, key: Literal["moving", "moving_label"], transform: Any, dtype: str | None = None
) -> np.ndarray:
    """Warp ``moving`` (linear) or ``moving_label`` (nearest) onto the fixed grid, by default in its type on disk.

    Outside the moving image lies air if it is CT (see :func:`scripts.data.modality.outside_value`), and 0 otherwise.
    """
    moving, fixed = data[key], data["fixed"]
    is_label = key == "moving_label"
    outside = 0.0 if is_label else outside_value(plain(moving), data.get("moving_modality", "mr"))
    return warp_image(
        moving,
        transform,
        fixed.shape[1:],
        fixed.affine,
        "nearest" if is_label else "linear",
        default=outside,
        dtype=dtype or type_on_disk(moving),
    )


def type_on_disk(volume: MetaTensor) -> str:
    """Return the numpy type a volume had in its file, or one that holds it and that NIfTI knows."""
    name = str(volume.meta.get("original_dtype", "float32"))
    return NIFTI_TYPES.get(name, name)
