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
"""``register``: one registration from Python, in memory, by the same workflow as the bundle's command.

::

    from scripts.api import register
    result = register("moving.nii.gz", "fixed.nii.gz", preset="fast")
    result.warped_moving, result.forward_transform(points_ras_mm), result.verdict
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from monai.data import MetaTensor
from torch import Tensor

from scripts.data.case import LANDMARKS, SIDES, Case
from scripts.data.cases import frame_number
from scripts.data.itk_transforms import to_itk
from scripts.data.memory_images import is_array, volume_in_memory
from scripts.geometry.grid_transform import GridTransform
from scripts.transforms.postprocessing import warp_onto_fixed
from scripts.utils.errors import InputError
from scripts.workflow import check_not_given, run_workflow

IMAGE_OPTIONS = ("moving", "fixed", "moving_mask", "fixed_mask", "moving_label", "fixed_label")
Image = Any  # a path, a MetaTensor, a nibabel, ITK, SimpleITK or ANTs image, or an array with its affine


class PointTransform:
    """A transform of the world, by which points are carried.

    Args:
        transform: of the registration.
    """

    def __init__(self, transform: GridTransform) -> None:
        self.transform = transform

    def __call__(self, points_ras_mm: Any) -> np.ndarray:
        """Return where points go, (N, 3), RAS mm.

        Args:
            points_ras_mm: (N, 3), RAS mm; of LPS points the signs of x and y are turned first.
        """
        points = torch.as_tensor(points_ras_mm, dtype=torch.float64)
        if points.ndim != 2 or points.shape[1] != 3:
            raise InputError(f"points must have the shape (N, 3), RAS mm, got {tuple(points.shape)}")
        return self.transform(points).numpy()

    def to_itk(self) -> Any:
        """Return the transform as an ``itk.CompositeTransform``, LPS mm, for resampling and writing by ITK."""
        return to_itk(self.transform)


@dataclass(frozen=True, eq=False, repr=False)
class RegistrationResult:
    """What a registration gives."""

    warped_moving: MetaTensor
    """Moving image on the fixed grid, (1, I, J, K), in its own type, with its RAS affine."""
    warped_label: MetaTensor | None
    """Moving label on the fixed grid, if one was given."""
    displacement_mm: Tensor
    """From each voxel's center of the fixed grid to the moving point, (3, I, J, K), RAS mm."""
    forward_transform: PointTransform
    """Fixed point -> moving point; given to ITK, it resamples the moving image."""
    inverse_transform: PointTransform | None
    """Moving point -> fixed point; None with ``inverse=False`` and ``optimization="off"``."""
    metrics: dict[str, Any]
    """Folding, inconsistency; Dice and landmark errors if labels or landmarks of both images were given."""
    quality: dict[str, Any]
    """Figures that need no labels, ``verdict`` and ``reasons``; see docs/quality.md."""
    warnings: list[str]
    """What was said of the images."""
    report: dict[str, Any]
    """Content of report.json."""
    output_dir: Path | None
    """Where the files are; None if no folder was asked for."""

    def __repr__(self) -> str:
        """Return what fits a line: arrays and the report are long."""
        shape = tuple(self.warped_moving.shape[1:])
        return f"RegistrationResult(verdict={self.verdict!r}, fixed grid {shape}, output_dir={self.output_dir})"

    @property
    def verdict(self) -> str:
        """``ok``, ``check`` or ``failed``; see docs/quality.md."""
        return str(self.quality["verdict"])


def register(
    moving: Image,
    fixed: Image,
    *,
    affine: Any = None,
    moving_affine: Any = None,
    fixed_affine: Any = None,
    output_dir: str | Path | None = None,
    **options: Any,
) -> RegistrationResult:
    """Register a moving image to a fixed one.

    Args:
        moving: image to be aligned: a path, a MetaTensor (1, I, J, K), a nibabel, ITK, SimpleITK or ANTs image, or a
            numpy or torch array (I, J, K) with an affine. The options ``fixed_mask``, ``moving_mask``, ``fixed_label``
            and ``moving_label`` take the same kinds; ``fixed_landmarks`` and ``moving_landmarks`` take a path or an
            array (N, 3), whose coordinates are those of ``landmark_space`` (LPS by default).
        fixed: image to align to.
        affine: (4, 4), voxel (i, j, k) -> world RAS mm, of all arrays.
        moving_affine: of the arrays of the moving image, its mask and label, instead of ``affine``.
        fixed_affine: of the arrays of the fixed image, its mask and label, instead of ``affine``.
        output_dir: folder for all files; by default nothing is written.
        options: any scalar of configs/inference.yaml, such as ``preset="fast"`` or ``moving_modality="ct"``.

    Raises:
        InputError: an unknown option, or an input that can't be used; one line that says what to do.
    """
    check_not_given(options, ("datalist", "moving", "fixed"))
    given = {"moving": moving, "fixed": fixed, **{key: options[key] for key in IMAGE_OPTIONS[2:] if key in options}}
    affines = {"moving": moving_affine, "fixed": fixed_affine}
    for side in SIDES:
        if affines[side] is not None and not any(is_array(image) for key, image in given.items() if side in key):
            raise InputError(f"{side}_affine is for arrays, and the {side} image has its own geometry; leave it out")
    frame = None if options.get("frame") is None else frame_number("frame", options["frame"])
    for key, image in given.items():
        own = affines[key.partition("_")[0]]
        options[key] = _image(key, image, affine if own is None else own, frame)
    for key in LANDMARKS:
        if not isinstance(options.get(key), (str, Path, type(None))):
            options[key] = _points(key, options[key])
    options = {"progress": False, **options, "output_dir": False if output_dir is None else str(output_dir)}
    if output_dir is None:
        options["summary"] = False
    parser = run_workflow(("inference.yaml",), {**options, "overlap": False})  # the case comes back when all is done
    state = parser.get_parsed_content("evaluator").state
    return _result(cast(Case, {**state.batch[0], **state.output[0]}))


def _points(option: str, points: Any) -> Tensor:
    """Return landmarks in memory as a tensor; what checks the case looks at its shape."""
    try:
        return torch.as_tensor(points, dtype=torch.float64).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"{option}: expected a path or numbers of the shape (N, 3), got a {type(points).__name__}"
        ) from error


def _image(option: str, image: Image, affine: Any, frame: int | None) -> Any:
    """Return a path as text, an image in memory as a volume, and nothing as it is."""
    if image is None or isinstance(image, (str, Path)):
        return None if image is None else str(image)
    return volume_in_memory(option, image, affine, frame)


def _result(case: Case) -> RegistrationResult:
    affine, transforms, report = case["fixed"].affine, case["transforms"], case["report"]
    warped = warp_onto_fixed(case, "moving", transforms.displacement_mm)
    label = case.get("warped_label")
    return RegistrationResult(
        warped_moving=MetaTensor(torch.from_numpy(warped)[None], affine=affine),
        warped_label=None if label is None else MetaTensor(torch.from_numpy(label)[None], affine=affine),
        displacement_mm=transforms.displacement_mm,
        forward_transform=PointTransform(transforms.forward),
        inverse_transform=None if transforms.inverse is None else PointTransform(transforms.inverse),
        metrics=case["metrics"],
        quality=case["quality"],
        warnings=list(report["warnings"]),
        report=report,
        output_dir=Path(case["case_dir"]) if "case_dir" in case else None,
    )
