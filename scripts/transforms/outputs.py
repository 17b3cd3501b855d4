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
"""The files of a case: each transform writes at most one kind of output into ``case_dir``.

``enabled: false`` leaves that file out. They take the case as :mod:`scripts.transforms.postprocessing` leaves it.
"""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from monai.transforms import Transform

from scripts.data.cases import OUTPUT_NAMES
from scripts.data.itk_transforms import write_displacement_field, write_itk_transform
from scripts.data.landmarks import case_landmarks, check_space, write_warped_landmarks
from scripts.data.nifti_writing import write_nifti
from scripts.data.report import build_report
from scripts.geometry.warping import on_grid
from scripts.metrics.registration_metrics import jacobian_determinant
from scripts.transforms.postprocessing import Case, warp_onto_fixed
from scripts.utils.atomic import remove, sweep
from scripts.utils.strict_json import write_report
from scripts.utils.tensors import plain
from scripts.visualize.html_report import write_pair_page
from scripts.visualize.overview import draw_overview

logger = logging.getLogger(__name__)


class Output(Transform):
    """Base of what writes a file: knows the folder and the switch.

    Args:
        enabled: False does nothing.
    """

    runs_alone = False  # True: nothing else may take the room on the disk that it has found

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
    """Remove an earlier run's results from the case's folder: a file of another pair must not pass for a new one.

    What a killed run left half written goes, too.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> Case:
        """Return the case as it is."""
        for name in OUTPUT_NAMES:
            remove(Path(data["case_dir"]) / name)
        sweep(data["case_dir"], OUTPUT_NAMES)
        return dict(data)


class SaveAlld(Transform):
    """Run outputs side by side: compressing a file keeps one processor busy only. Those that run alone go first.

    When one fails, the others are still finished before its error is raised.

    Args:
        outputs: they read the case and write files.
        workers: how many at a time.
    """

    def __init__(self, outputs: Sequence[Output], workers: int = 2) -> None:
        self.outputs, self.workers = tuple(outputs), workers

    def __call__(self, data: Mapping[Hashable, Any]) -> Case:
        """Return the case with the names of the files, in the order of ``outputs``, added to ``written``."""
        data = {**data, "written": tuple(data.get("written", ()))}
        first = [output for output in self.outputs if output.runs_alone]
        for output in first:
            data = output(data)
        before, others = data["written"], [output for output in self.outputs if not output.runs_alone]
        with ThreadPoolExecutor(self.workers) as pool:
            running = [pool.submit(output, {**data, "written": ()}) for output in others]
        done = [future.result() for future in running]  # all have ended: none is cancelled by the error of another
        return {**data, "written": before + tuple(name for case in done for name in case["written"])}


class SaveTransformsd(Output):
    """Write the transforms for ITK and 3D Slicer: forward_transform.h5, and inverse_transform.h5 if there is one."""

    runs_alone = True

    def write(self, data: Mapping[Hashable, Any], folder: Path) -> tuple[str, ...]:
        """Write the files."""
        names = [name for name in ("forward_transform", "inverse_transform") if data.get(name) is not None]
        for name in names:
            write_itk_transform(data[name], folder / f"{name}.h5")
        return tuple(f"{name}.h5" for name in names)


class SaveDisplacementd(Output):
    """Write the dense displacement field on the fixed grid: displacement.nii.gz."""

    def write(self, data: Mapping[Hashable, Any], folder: Path) -> tuple[str, ...]:
        """Write the file."""
        fixed, path = data["fixed"], folder / "displacement.nii.gz"
        write_displacement_field(data["displacement_mm"], fixed.affine, path, _xform_code(fixed))
        return ("displacement.nii.gz",)


class WarpMovingd(Output):
    """Write the moving image on the fixed grid, linear, in its type on disk: warped_moving.nii.gz."""

    def write(self, data: Mapping[Hashable, Any], folder: Path) -> tuple[str, ...]:
        """Warp and write."""
        warped = warp_onto_fixed(data, "moving", data["displacement_mm"])
        _write_volume(folder / "warped_moving.nii.gz", warped, data)
        return ("warped_moving.nii.gz",)


class SaveWarpedLabeld(Output):
    """Write the warped label on the fixed grid, exact values in its type on disk: warped_label.nii.gz."""

    def write(self, data: Mapping[Hashable, Any], folder: Path) -> tuple[str, ...]:
        """Write, if there is a warped label."""
        if "warped_label" not in data:
            return ()
        _write_volume(folder / "warped_label.nii.gz", data["warped_label"], data)
        return ("warped_label.nii.gz",)


class WarpLandmarksd(Output):
    """Write the landmarks of either image carried to the other one: warped_landmarks.csv.

    Args:
        enabled: False does nothing.
        landmark_space: of cases that do not say: "LPS" or "RAS", the world of the landmark files, also of the one
            written, or "voxel" (written as LPS).
    """

    def __init__(self, enabled: bool = True, landmark_space: str = "LPS") -> None:
        super().__init__(enabled)
        self.landmark_space = check_space(landmark_space)

    def write(self, data: Mapping[Hashable, Any], folder: Path) -> tuple[str, ...]:
        """Carry and write, if there are landmarks."""
        space = data.get("landmark_space", self.landmark_space)
        carriers = {"fixed": data["forward_transform"], "moving": data.get("inverse_transform")}
        groups = [
            (image, case_landmarks(data, f"{image}_landmarks", space).landmarks(data[image].affine), transform)
            for image, transform in carriers.items()
            if f"{image}_landmarks" in data and transform is not None
        ]
        if not groups:
            return ()
        write_warped_landmarks(folder / "warped_landmarks.csv", groups, space)
        return ("warped_landmarks.csv",)


class SaveJacobiand(Output):
    """Write the forward transform's local change of volume on the fixed grid: jacobian_determinant.nii.gz."""

    def write(self, data: Mapping[Hashable, Any], folder: Path) -> tuple[str, ...]:
        """Compute and write."""
        determinant = jacobian_determinant(data["displacement_mm"], data["fixed"].affine)
        _write_volume(folder / "jacobian_determinant.nii.gz", determinant.numpy(), data)
        return ("jacobian_determinant.nii.gz",)


class SaveConfidenced(Output):
    """Write on the fixed grid where the registration can be trusted, 0 to 1: confidence.nii.gz."""

    def write(self, data: Mapping[Hashable, Any], folder: Path) -> tuple[str, ...]:
        """Write, if the quality was measured."""
        if "quality_maps" not in data:
            return ()
        maps, fixed = data["quality_maps"], data["fixed"]
        values = on_grid(maps.confidence, maps.affine, fixed.shape[1:], plain(fixed.affine))
        _write_volume(folder / "confidence.nii.gz", values, data)
        return ("confidence.nii.gz",)


class SaveInconsistencyd(Output):
    """Write on the fixed grid the distance of inverse(forward(x)) from x in mm: inconsistency_mm.nii.gz."""

    def write(self, data: Mapping[Hashable, Any], folder: Path) -> tuple[str, ...]:
        """Write, if the quality was measured; NaN where forward leaves the moving image, and outside a crop."""
        if "quality_maps" not in data or data.get("inverse_transform") is None:
            return ()
        maps, fixed = data["quality_maps"], data["fixed"]
        values = on_grid(maps.inconsistency_mm, maps.affine, fixed.shape[1:], plain(fixed.affine), float("nan"))
        _write_volume(folder / "inconsistency_mm.nii.gz", values, data)
        return ("inconsistency_mm.nii.gz",)


class SaveOverviewd(Output):
    """Write a picture of the registration in three planes: overview.png."""

    def write(self, data: Mapping[Hashable, Any], folder: Path) -> tuple[str, ...]:
        """Draw and write."""
        draw_overview(data, folder / "overview.png")
        return ("overview.png",)


class SavePaged(Output):
    """Write a web page of the registration that opens from the disk: report.html."""

    def write(self, data: Mapping[Hashable, Any], folder: Path) -> tuple[str, ...]:
        """Draw and write."""
        write_pair_page(data, folder / "report.html")
        return ("report.html",)


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


def _write_volume(path: Path, values: np.ndarray, data: Mapping[Hashable, Any]) -> None:
    fixed = data["fixed"]
    write_nifti(path, [values], plain(fixed.affine).double().numpy(), xform_code=_xform_code(fixed))


def _xform_code(volume: Any) -> int:
    """Return NIfTI's code of the world a loaded volume lies in, which results on its grid share."""
    return int(volume.meta.get("xform_code", 1))
