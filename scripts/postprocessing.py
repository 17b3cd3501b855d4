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
"""What follows the network: the case's transforms, metrics and files. The transforms of `postprocessing:`.

Each takes the case (see datasets.load_cases) with the volumes of the preprocessing and the result of the inferer, and
writes at most one kind of output into ``case_dir``; ``enabled: false`` leaves that file out.
"""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from monai.data import MetaTensor
from monai.transforms import Transform

from . import metrics
from .atomic import remove
from .datasets import OUTPUT_NAMES
from .image_pair import regrid_affine
from .landmarks import check_space, read_landmark_pair, read_landmarks, write_warped_landmarks
from .nifti import write_nifti
from .overview import draw_overview
from .report import build_report, write_report
from .resampling import warp_image
from .transform_io import GridTransform, displacement_field, plain, write_displacement_field, write_itk_transform

logger = logging.getLogger(__name__)

Case = dict[Hashable, Any]
NIFTI_TYPES = {"bool": "uint8", "float16": "float32", "float128": "float64"}  # types that NIfTI or ITK lack


class AddTransformsd(Transform):
    """Add ``forward_transform`` and ``inverse_transform`` (GridTransform), and the dense ``displacement_mm``.

    ``displacement_mm`` (3, I, J, K), RAS mm, is the forward transform on the fixed image's own grid; the outputs share
    it. A ddf's grid spans that of ``fixed_image`` and ``moving_image`` (the network's) with its own number of voxels.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> Case:
        """Return the case with transforms."""
        forward_ddf, inverse_ddf = data["forward_ddf"], data["inverse_ddf"]
        fixed_affine, moving_affine = (
            regrid_affine(plain(data[key].affine), data[key].shape[1:], forward_ddf.shape[1:])
            for key in ("fixed_image", "moving_image")
        )
        forward = GridTransform(forward_ddf, fixed_affine, moving_affine)
        inverse = GridTransform(inverse_ddf, moving_affine, fixed_affine)
        fixed = data["fixed"]
        displacement = displacement_field(forward, fixed.shape[1:], fixed.affine)
        return {
            **data,
            "forward_transform": forward,
            "inverse_transform": inverse,
            "displacement_mm": displacement,
            "written": (),
        }


class Output(Transform):
    """Base of what writes a file: knows the folder and the switch.

    Args:
        enabled: False does nothing.
    """

    def __init__(self, enabled: bool = True) -> None:
        self.enabled = enabled

    def __call__(self, data: Mapping[Hashable, Any]) -> Case:
        """Write, and return the case with the names of the files added to ``written``."""
        if not self.enabled:
            return dict(data)
        names = self.write(data, Path(data["case_dir"]))
        for name in names:
            logger.debug("wrote %s", Path(data["case_dir"]) / name)
        return {**data, "written": (*data.get("written", ()), *names)}

    def write(self, data: Mapping[Hashable, Any], folder: Path) -> tuple[str, ...]:
        """Write files into the folder and return their names."""
        raise NotImplementedError


class RemoveOldResultsd(Transform):
    """Remove an earlier run's results from the case's folder: a file of another pair must not pass for a new one."""

    def __call__(self, data: Mapping[Hashable, Any]) -> Case:
        """Return the case as it is."""
        for name in OUTPUT_NAMES:
            remove(Path(data["case_dir"]) / name)
        return dict(data)


class SaveAlld(Transform):
    """Run outputs side by side: compressing a file keeps one processor busy only.

    When one fails, the others are still finished before its error is raised.

    Args:
        outputs: they read the case and write files.
        workers: how many at a time.
    """

    def __init__(self, outputs: Sequence[Output], workers: int = 2) -> None:
        self.outputs, self.workers = tuple(outputs), workers

    def __call__(self, data: Mapping[Hashable, Any]) -> Case:
        """Return the case with the names of the files, in the order of ``outputs``, added to ``written``."""
        before = tuple(data.get("written", ()))
        with ThreadPoolExecutor(self.workers) as pool:
            running = [pool.submit(output, {**data, "written": ()}) for output in self.outputs]
        done = [future.result() for future in running]  # all have ended: none is cancelled by the error of another
        return {**data, "written": before + tuple(name for case in done for name in case["written"])}


class SaveTransformsd(Output):
    """Write both transforms for ITK and 3D Slicer: forward_transform.h5, inverse_transform.h5."""

    def write(self, data: Mapping[Hashable, Any], folder: Path) -> tuple[str, ...]:
        """Write both files."""
        for name in ("forward_transform", "inverse_transform"):
            write_itk_transform(data[name], folder / f"{name}.h5")
        return "forward_transform.h5", "inverse_transform.h5"


class SaveDisplacementd(Output):
    """Write the dense displacement field on the fixed grid: displacement.nii.gz."""

    def write(self, data: Mapping[Hashable, Any], folder: Path) -> tuple[str, ...]:
        """Write the file."""
        write_displacement_field(data["displacement_mm"], data["fixed"].affine, folder / "displacement.nii.gz")
        return ("displacement.nii.gz",)


class WarpMovingd(Output):
    """Write the moving image on the fixed grid, linear, in its type on disk: warped_moving.nii.gz."""

    def write(self, data: Mapping[Hashable, Any], folder: Path) -> tuple[str, ...]:
        """Warp and write."""
        warped = warp_onto_fixed(data, "moving", data["displacement_mm"])
        _write_volume(folder / "warped_moving.nii.gz", warped, data)
        return ("warped_moving.nii.gz",)


class WarpLabeld(Output):
    """Write the moving label on the fixed grid, exact values in its type on disk: warped_label.nii.gz."""

    def write(self, data: Mapping[Hashable, Any], folder: Path) -> tuple[str, ...]:
        """Warp and write, if there is a moving label."""
        if "moving_label" not in data:
            return ()
        warped = warp_onto_fixed(data, "moving_label", data["displacement_mm"])
        _write_volume(folder / "warped_label.nii.gz", warped, data)
        return ("warped_label.nii.gz",)


class WarpLandmarksd(Output):
    """Write the landmarks of either image carried to the other one: warped_landmarks.csv.

    Args:
        enabled: False does nothing.
        landmark_space: "LPS" or "RAS", the world of the landmark files, also of the one written.
    """

    def __init__(self, enabled: bool = True, landmark_space: str = "LPS") -> None:
        super().__init__(enabled)
        self.landmark_space = check_space(landmark_space)

    def write(self, data: Mapping[Hashable, Any], folder: Path) -> tuple[str, ...]:
        """Carry and write, if there are landmarks."""
        carriers = {"fixed": data["forward_transform"], "moving": data["inverse_transform"]}
        groups = [
            (image, read_landmarks(data[f"{image}_landmarks"], self.landmark_space), transform)
            for image, transform in carriers.items()
            if f"{image}_landmarks" in data
        ]
        if not groups:
            return ()
        write_warped_landmarks(folder / "warped_landmarks.csv", groups, self.landmark_space)
        return ("warped_landmarks.csv",)


class SaveJacobiand(Output):
    """Write the forward transform's local change of volume on the fixed grid: jacobian_determinant.nii.gz."""

    def write(self, data: Mapping[Hashable, Any], folder: Path) -> tuple[str, ...]:
        """Compute and write."""
        determinant = metrics.jacobian_determinant(data["displacement_mm"], data["fixed"].affine)
        _write_volume(folder / "jacobian_determinant.nii.gz", determinant.numpy(), data)
        return ("jacobian_determinant.nii.gz",)


class AddMetricsd(Transform):
    """Add ``metrics``: folding and inconsistency, Dice if both labels are there, TRE if both landmarks are.

    "Before" is the start of the registration: field of view onto field of view.

    Args:
        landmark_space: "LPS" or "RAS", the world of the landmark files.
    """

    def __init__(self, landmark_space: str = "LPS") -> None:
        self.landmark_space = check_space(landmark_space)

    def __call__(self, data: Mapping[Hashable, Any]) -> Case:
        """Return the case with metrics."""
        forward, inverse = data["forward_transform"], data["inverse_transform"]
        found: dict[str, Any] = {
            "folding_percent": metrics.folding(forward),
            "inverse_folding_percent": metrics.folding(inverse),
            "inconsistency_mm": metrics.inconsistency_mm(forward, inverse),
        }
        if "fixed_label" in data and "moving_label" in data:
            found["dice"] = self._dice(data)
        if "fixed_landmarks" in data and "moving_landmarks" in data:
            found["tre_mm"] = self._tre(data)
        return {**data, "metrics": found}

    def _dice(self, data: Mapping[Hashable, Any]) -> dict[str, Any]:
        fixed = plain(data["fixed_label"])[0].numpy()
        labels = metrics.common_labels(fixed, plain(data["moving_label"]).numpy())
        if not labels:
            logger.warning("fixed_label and moving_label have no label in common: no Dice")
        transforms = {"before": data["forward_transform"].without_displacement(), "after": data["displacement_mm"]}
        scores: dict[str, Any] = {}
        for when, transform in transforms.items():
            # compared as float32, the type both are loaded in, which holds labels exactly
            warped = warp_onto_fixed(data, "moving_label", transform, dtype="float32")
            per_label = metrics.dice_per_label(fixed, warped, labels)
            mean = float(np.mean(list(per_label.values()))) if labels else None
            scores[when] = {"mean": mean, "per_label": per_label}
        return scores

    def _tre(self, data: Mapping[Hashable, Any]) -> dict[str, Any]:
        fixed, moving = read_landmark_pair(data["fixed_landmarks"], data["moving_landmarks"], self.landmark_space)
        forward = data["forward_transform"]
        errors: dict[str, Any] = {}
        for when, transform in (("before", forward.without_displacement()), ("after", forward)):
            distances = metrics.target_registration_error_mm(transform, fixed.points_ras_mm, moving.points_ras_mm)
            errors[when] = {
                "mean": float(distances.mean()),
                "median": float(np.median(distances.numpy())),
                "max": float(distances.max()),
                "per_landmark": [round(value, 4) for value in distances.tolist()],
            }
        return errors


class SaveOverviewd(Output):
    """Write a picture of the registration in three planes: overview.png."""

    def write(self, data: Mapping[Hashable, Any], folder: Path) -> tuple[str, ...]:
        """Draw and write."""
        draw_overview(data, folder / "overview.png")
        return ("overview.png",)


class SaveReportd(Output):
    """Write report.json, last: it names the other files.

    Args:
        enabled: False does nothing.
        settings: options to report.
        weights: ``name`` and ``sha256`` of the network's weights.
        seed: of the random numbers.
    """

    def __init__(
        self,
        enabled: bool = True,
        settings: Mapping[str, Any] | None = None,
        weights: Mapping[str, Any] | None = None,
        seed: int | None = None,
    ) -> None:
        super().__init__(enabled)
        self.settings, self.weights, self.seed = dict(settings or {}), dict(weights or {}), seed

    def write(self, data: Mapping[Hashable, Any], folder: Path) -> tuple[str, ...]:
        """Write the file."""
        write_report(build_report(data, self.settings, self.weights, self.seed), folder / "report.json")
        return ("report.json",)


def warp_onto_fixed(
    data: Mapping[Hashable, Any], key: str, transform: Any, dtype: str | None = None, default: float = 0.0
) -> np.ndarray:
    """Warp ``moving`` (linear) or ``moving_label`` (nearest) onto the fixed grid, by default in its type on disk."""
    moving, fixed = data[key], data["fixed"]
    mode = "nearest" if key.endswith("label") else "linear"
    return warp_image(moving, transform, fixed.shape[1:], fixed.affine, mode, default, dtype or type_on_disk(moving))


def type_on_disk(volume: MetaTensor) -> str:
    """Return the numpy type a volume had in its file, or one that holds it and that NIfTI knows."""
    name = str(volume.meta.get("original_dtype", "float32"))
    return NIFTI_TYPES.get(name, name)


def _write_volume(path: Path, values: np.ndarray, data: Mapping[Hashable, Any]) -> None:
    write_nifti(path, [values], plain(data["fixed"].affine).double().numpy())
