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
"""An affine stage before the network, by ITK: for images that are turned, shifted or of other fields of view.

Candidates are the file headers' world, and the 24 turns by right angles about the centers of mass; the best ones by
mutual information are refined (rigid, similarity, affine) from coarse to fine. The moving image is then resampled
once, for the network alone: the affine of that grid carries the stage into the written transforms, exactly.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import itk
import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Transform
from torch import Tensor

from .errors import InputError
from .image_pair import regrid_affine, shrink_image
from .itk_images import Volume, to_itk_image
from .preprocessing import with_affine
from .resampling import on_grid, warp_image
from .transform_io import LPS_RAS, plain

logger = logging.getLogger(__name__)

MODES = ("off", "auto", "rigid", "similarity", "affine")
LONGEST = 40  # voxels along the longest axis of the images that are aligned
REFINED = 3  # candidates
LEAST_OVERLAP = 0.25
WITHOUT_DEGREES = 15.0  # auto: smaller turns are left to the registration
ITERATIONS = 120


class Prealignment(NamedTuple):
    """Result of :func:`prealign`."""

    matrix_ras: Tensor
    """(4, 4) float64, fixed world -> moving world, RAS mm."""
    description: str
    """What was done and why, for people."""


class Prealignd(Transform):
    """Align moving to fixed by a linear transform before the network sees them.

    Adds ``prealign`` (text for the report) when something was done.

    Args:
        mode: "off"; "rigid", "similarity" or "affine"; "auto" decides from overlap and moments whether the starts that
            the registration tries anyway are enough, and aligns (affine) if they are not.
        fixed_key: image (1, D, H, W) in [0, 1].
        moving_key: likewise.
        region_keys: masks and labels of the moving image, resampled with it (nearest).
    """

    def __init__(
        self,
        mode: str | bool = "off",
        fixed_key: str = "fixed_image",
        moving_key: str = "moving_image",
        region_keys: tuple[str, ...] = ("moving_loss_mask", "moving_network_label"),
    ) -> None:
        mode = "off" if mode is False else mode  # YAML reads a bare off as False
        if mode not in MODES:
            raise InputError(f"prealign: expected one of {', '.join(MODES)}, got '{mode}'")
        self.mode = str(mode)
        self.fixed_key, self.moving_key, self.region_keys = fixed_key, moving_key, tuple(region_keys)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the data with the moving volumes resampled onto the fixed grid, or as they are."""
        result = dict(data)
        if self.mode == "off":
            return result
        fixed, moving = result[self.fixed_key], result[self.moving_key]
        found = prealign(moving, fixed, self.mode)
        result["prealign"] = "off" if found is None else found.description
        if found is None:
            return result
        affine = found.matrix_ras @ plain(fixed.affine).double()
        shape = fixed.shape[1:]
        values = on_grid(plain(moving)[None], plain(moving.affine).double(), shape, affine)
        for key in self.region_keys:
            if key in result:
                region = result[key]
                nowhere = torch.zeros(()).expand(3, *(int(n) for n in shape))
                warped = warp_image(region, nowhere, shape, affine, "nearest")
                result[key] = with_affine(torch.from_numpy(np.ascontiguousarray(warped))[None], affine, region)
        result[self.moving_key] = with_affine(torch.from_numpy(np.ascontiguousarray(values))[None], affine, moving)
        return result


def prealign(moving: MetaTensor, fixed: MetaTensor, mode: str) -> Prealignment | None:
    """Return the linear transform between two images, or None if ``auto`` finds that none is needed.

    Args:
        moving: (1, D, H, W) in [0, 1] with its RAS affine.
        fixed: likewise.
        mode: auto, rigid, similarity or affine.
    """
    small = [_small(image) for image in (fixed, moving)]
    images = [to_itk_image(volume) for volume in small]
    masses = [_center_of_mass(volume) for volume in small]
    candidates = _candidates(*masses)
    scores = {name: _information(images, matrix) for name, matrix in candidates.items()}
    ranked = sorted(scores, key=lambda name: -scores[name])
    overlap = _overlap(small[0], small[1])
    best: tuple[float, str, Any] | None = None
    for name in ranked[:REFINED]:
        transform = _refine(images, _rigid(candidates[name], masses[0]), levels=((2, 2.0), (1, 1.0)), first_step=1.0)
        score = _information(images, _matrix(transform))
        if best is None or score > best[0]:
            best = (score, name, transform)
    assert best is not None
    _, name, transform = best
    degrees = _turn_degrees(_matrix(transform))
    reason = (
        f"overlap by the headers {overlap:.0%}, centers of mass {_distance(masses):.0f} mm apart, turned {degrees:.0f}°"
    )
    if mode == "auto":
        if degrees < WITHOUT_DEGREES:
            logger.info("prealign auto: %s; the registration's own starts are enough", reason)
            return None
        mode = "affine"
    for kind in {"rigid": ("rigid",), "similarity": ("similarity",), "affine": ("similarity", "affine")}[mode]:
        for first_step in (1.0, 0.2):  # steps that are too long lead away and are taken back
            transform = _refine(images, _wider(transform, kind), levels=((2, 1.0), (1, 0.5)), first_step=first_step)
    matrix_lps = torch.from_numpy(_matrix(transform))
    description = f"{mode} from {name} ({reason})"
    logger.info("prealign: %s", description)
    return Prealignment(LPS_RAS @ matrix_lps @ LPS_RAS, description)


def _small(image: MetaTensor) -> Volume:
    """Return an image on a coarse grid of nearly cubic voxels over the same field of view."""
    values, affine = plain(image)[None].float(), plain(image.affine).double()
    spacing = torch.linalg.vector_norm(affine[:3, :3], dim=0)
    size_mm = spacing * torch.tensor(values.shape[2:], dtype=torch.float64)
    target = float(size_mm.max()) / LONGEST
    shape = tuple(
        max(4, min(int(n), round(float(mm) / target))) for n, mm in zip(values.shape[2:], size_mm, strict=True)
    )
    small = shrink_image(values, shape)  # type: ignore[arg-type]
    return Volume(small[0, 0], regrid_affine(affine, values.shape[2:], shape))


def _points(volume: Volume) -> Tensor:
    """Return the world points (D, H, W, 3), LPS mm."""
    grid = torch.stack(torch.meshgrid(*(torch.arange(n).double() for n in volume.values.shape), indexing="ij"), dim=-1)
    affine = LPS_RAS @ volume.affine_ras
    return grid @ affine[:3, :3].T + affine[:3, 3]


def _center_of_mass(volume: Volume) -> np.ndarray:
    weight = volume.values.double().clamp_min(0)
    weight = weight / weight.sum().clamp_min(1e-9)
    return (_points(volume) * weight[..., None]).sum(dim=(0, 1, 2)).numpy()


def _overlap(fixed: Volume, moving: Volume) -> float:
    """Return the share of the fixed image's intensity that lies in the moving image's field of view, by the headers."""
    affine = torch.linalg.inv(LPS_RAS @ moving.affine_ras)
    voxels = _points(fixed) @ affine[:3, :3].T + affine[:3, 3]
    inside = ((voxels >= -0.5) & (voxels <= torch.tensor(moving.values.shape) - 0.5)).all(dim=-1)
    weight = fixed.values.double().clamp_min(0)
    return float((weight * inside).sum() / weight.sum().clamp_min(1e-9))


def _candidates(fixed_center: np.ndarray, moving_center: np.ndarray) -> dict[str, np.ndarray]:
    """Return (4, 4) matrices, fixed -> moving, LPS mm: the world, and all turns about the centers of mass."""
    found = {"world": np.eye(4)}
    for turn in right_angle_turns():
        matrix = np.eye(4)
        matrix[:3, :3] = turn
        matrix[:3, 3] = moving_center - turn @ fixed_center
        name = "center of mass" if _turn_degrees(turn) < 1 else f"center of mass, turned {turn_text(turn)}"
        found[name] = matrix
    return found


def turn_text(turn: np.ndarray) -> str:
    """Return where the axes left, posterior, superior go, such as "L>P P>R S>S"."""
    ends = ("L", "P", "S"), ("R", "A", "I")
    targets = (int(np.argmax(np.abs(turn[:, axis]))) for axis in range(3))
    return " ".join(f"{ends[0][axis]}>{ends[0 if turn[to, axis] > 0 else 1][to]}" for axis, to in enumerate(targets))


def right_angle_turns() -> list[np.ndarray]:
    """Return the 24 rotations (3, 3) that carry axes onto axes, the identity first."""
    turns = []
    for order in itertools.permutations(range(3)):
        for signs in itertools.product((1.0, -1.0), repeat=3):
            matrix = np.zeros((3, 3))
            matrix[list(order), range(3)] = signs
            if np.linalg.det(matrix) > 0:
                turns.append(matrix)
    return sorted(turns, key=lambda turn: -np.trace(turn))


def _metric(images: list[Any]) -> Any:
    metric = itk.MattesMutualInformationImageToImageMetricv4[type(images[0]), type(images[1])].New()
    metric.SetNumberOfHistogramBins(32)
    metric.SetMaximumNumberOfWorkUnits(1)  # sums in one order: the same result each time
    return metric


def _information(images: list[Any], matrix: np.ndarray) -> float:
    """Return the mutual information of the images where they overlap; less where they hardly do."""
    metric = _metric(images)
    metric.SetFixedImage(images[0])
    metric.SetMovingImage(images[1])
    metric.SetVirtualDomainFromImage(images[0])
    metric.SetMovingTransform(_affine(matrix))
    try:
        metric.Initialize()
        value = -float(metric.GetValue())
    except RuntimeError:  # no overlap at all
        return 0.0
    size = np.prod(itk.size(images[0]))
    return value * min(1.0, metric.GetNumberOfValidPoints() / size / LEAST_OVERLAP)


def _turn_degrees(matrix: np.ndarray) -> float:
    return float(np.degrees(np.arccos(np.clip((np.trace(matrix[:3, :3]) - 1) / 2, -1, 1))))


def _distance(points: Sequence[np.ndarray]) -> float:
    return float(np.linalg.norm(points[0] - points[1]))


def _affine(matrix: np.ndarray, center: np.ndarray | None = None, kind: Any = None) -> Any:
    transform = (kind or itk.AffineTransform[itk.D, 3]).New()
    middle = np.zeros(3) if center is None else center
    transform.SetCenter([float(v) for v in middle])
    transform.SetMatrix(itk.matrix_from_array(np.ascontiguousarray(matrix[:3, :3])))
    offset = matrix[:3, 3] - middle + matrix[:3, :3] @ middle
    transform.SetTranslation([float(v) for v in offset])
    return transform


def _rigid(matrix: np.ndarray, center: np.ndarray) -> Any:
    return _affine(matrix, center, itk.VersorRigid3DTransform[itk.D])


def _wider(transform: Any, kind: str) -> Any:
    """Return a copy of a transform, as one with more freedom if asked for."""
    targets = {
        "rigid": itk.VersorRigid3DTransform[itk.D],
        "similarity": itk.Similarity3DTransform[itk.D],
        "affine": itk.AffineTransform[itk.D, 3],
    }
    return _affine(_matrix(transform), np.array(list(transform.GetCenter())), targets[kind])


def _matrix(transform: Any) -> np.ndarray:
    """Return a linear ITK transform as (4, 4)."""
    matrix = np.eye(4)
    matrix[:3, :3] = itk.array_from_matrix(transform.GetMatrix())
    matrix[:3, 3] = list(transform.GetOffset())
    return matrix


def _refine(images: list[Any], transform: Any, levels: tuple[tuple[int, float], ...], first_step: float) -> Any:
    """Return a transform optimized for mutual information, or as it was if that found nothing better.

    Args:
        images: fixed and moving.
        transform: start; changed.
        levels: (shrink factor, blur in voxels), coarse to fine.
        first_step: in voxels.
    """
    before = _matrix(transform)
    metric = _metric(images)
    optimizer = itk.RegularStepGradientDescentOptimizerv4[itk.D].New()
    optimizer.SetNumberOfIterations(ITERATIONS)
    optimizer.SetLearningRate(first_step * float(max(images[0].GetSpacing())))
    optimizer.SetMinimumStepLength(0.005)
    optimizer.SetRelaxationFactor(0.6)
    optimizer.SetReturnBestParametersAndValue(True)
    scales = itk.RegistrationParameterScalesFromPhysicalShift[type(metric)].New()
    scales.SetMetric(metric)
    optimizer.SetScalesEstimator(scales)
    registration = itk.ImageRegistrationMethodv4[type(images[0]), type(images[1])].New()
    registration.SetFixedImage(images[0])
    registration.SetMovingImage(images[1])
    registration.SetMetric(metric)
    registration.SetOptimizer(optimizer)
    registration.SetInitialTransform(transform)
    registration.InPlaceOn()
    registration.SetNumberOfLevels(len(levels))
    registration.SetShrinkFactorsPerLevel([factor for factor, _ in levels])
    registration.SetSmoothingSigmasPerLevel([sigma for _, sigma in levels])
    registration.SmoothingSigmasAreSpecifiedInPhysicalUnitsOff()
    try:
        registration.Update()
    except RuntimeError as error:  # the images moved apart
        logger.info("prealign: a refinement stopped (%s)", str(error).splitlines()[-1])
    if _information(images, _matrix(transform)) < _information(images, before):
        return _affine(before, np.array(list(transform.GetCenter())), type(transform))
    return transform
