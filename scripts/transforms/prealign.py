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
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Transform
from torch import Tensor

from scripts.data.case import MOVING_REGIONS, Case
from scripts.data.itk_images import Volume, to_itk_image
from scripts.data.volumes import with_affine
from scripts.geometry.image_pair import regrid_affine, shrink_image
from scripts.geometry.warping import on_grid, warp_image
from scripts.geometry.world_axes import LPS_RAS
from scripts.transforms.linear_registration import as_kind, matrix_of, mutual_information, refine, rigid
from scripts.utils.errors import InputError
from scripts.utils.tensors import plain

logger = logging.getLogger(__name__)

MODES = ("off", "auto", "rigid", "similarity", "affine")
LONGEST = 40  # voxels along the longest axis of the images that are aligned
REFINED = 3  # candidates
WITHOUT_DEGREES = 15.0  # auto: smaller turns are left to the registration


class Prealignment(NamedTuple):
    """Result of :func:`prealign`."""

    matrix_ras: Tensor | None
    """(4, 4) float64, fixed world -> moving world, RAS mm; None if no stage is needed."""
    description: str
    """What was done and why, for people."""


class Prealignd(Transform):
    """Align moving to fixed by a linear transform before the network sees them.

    Adds ``prealign``, what was found and done as text for the report, unless the mode is "off".

    Args:
        mode: "off"; "rigid", "similarity" or "affine"; "auto" aligns (affine) if a rigid alignment, started from the
            moments, turns the images by WITHOUT_DEGREES or more; the starts that the registration tries anyway cover
            shifts and smaller turns.
    """

    def __init__(self, mode: str | bool = "off") -> None:
        mode = "off" if mode is False else mode  # YAML reads a bare off as False
        if mode not in MODES:
            raise InputError(f"prealign: expected one of {', '.join(MODES)}, got '{mode}'")
        self.mode = str(mode)

    def __call__(self, data: Case) -> Case:
        """Return the case with the moving network volumes resampled onto the fixed grid, or as they are."""
        result = data.copy()
        if self.mode == "off":
            return result
        fixed, moving = result["fixed_image"], result["moving_image"]
        found = prealign(moving, fixed, self.mode)
        result["prealign"] = found.description
        if found.matrix_ras is None:
            return result
        affine = found.matrix_ras @ plain(fixed.affine).double()
        shape = fixed.shape[1:]
        values = on_grid(plain(moving)[None], plain(moving.affine).double(), shape, affine)
        for key in MOVING_REGIONS:
            if key in result:
                region = result[key]
                nowhere = torch.zeros(()).expand(3, *(int(n) for n in shape))
                warped = warp_image(region, nowhere, shape, affine, "nearest")
                result[key] = with_affine(torch.from_numpy(np.ascontiguousarray(warped))[None], affine, region)
        result["moving_image"] = with_affine(torch.from_numpy(np.ascontiguousarray(values))[None], affine, moving)
        return result


def prealign(moving: MetaTensor, fixed: MetaTensor, mode: str) -> Prealignment:
    """Return the linear transform between two images; ``auto`` may find that none is needed.

    Args:
        moving: (1, D, H, W) in [0, 1] with its RAS affine.
        fixed: likewise.
        mode: auto, rigid, similarity or affine.
    """
    small = [_small(image) for image in (fixed, moving)]
    images = [to_itk_image(volume) for volume in small]
    masses = [_center_of_mass(volume) for volume in small]
    candidates = _candidates(*masses)
    scores = {name: mutual_information(images, matrix) for name, matrix in candidates.items()}
    ranked = sorted(scores, key=lambda name: -scores[name])
    overlap = _overlap(small[0], small[1])
    coarse_to_fine = ((2, 2.0), (1, 1.0))
    starts = [refine(images, rigid(candidates[name], masses[0]), coarse_to_fine, 1.0) for name in ranked[:REFINED]]
    best = int(np.argmax([mutual_information(images, matrix_of(start)) for start in starts]))
    name, transform = ranked[best], starts[best]
    degrees = _turn_degrees(matrix_of(transform))
    reason = (
        f"overlap by the headers {overlap:.0%}, centers of mass {_distance(masses):.0f} mm apart, turned {degrees:.0f}°"
    )
    if mode == "auto":
        if degrees < WITHOUT_DEGREES:
            description = f"off: {reason}; the registration's own starts are enough"
            logger.info("prealign: %s", description)
            return Prealignment(None, description)
        mode = "affine"
    for kind in {"rigid": ("rigid",), "similarity": ("similarity",), "affine": ("similarity", "affine")}[mode]:
        for first_step in (1.0, 0.2):  # steps that are too long lead away and are taken back
            transform = refine(images, as_kind(transform, kind), ((2, 1.0), (1, 0.5)), first_step)
    matrix_lps = torch.from_numpy(matrix_of(transform))
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


def _turn_degrees(matrix: np.ndarray) -> float:
    return float(np.degrees(np.arccos(np.clip((np.trace(matrix[:3, :3]) - 1) / 2, -1, 1))))


def _distance(points: Sequence[np.ndarray]) -> float:
    return float(np.linalg.norm(points[0] - points[1]))
