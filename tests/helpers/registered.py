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
"""A small registered case, as the inferer leaves it: an oblique, anisotropic pair on different grids."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scripts.geometry.world_axes import flip_lps_ras
from tests.helpers.chain import chain, oblique, write

SHAPE = (17, 18, 20)  # network grid (D, H, W)
FIXED = {"spacing": (2.0, 2.2, 3.0), "origin": (-31.0, 12.5, 140.0), "direction": oblique(14)}
MOVING = {"spacing": (2.6, 1.8, 2.1), "origin": (40.0, -60.0, -25.0), "direction": oblique(-9)}
FIXED_SHAPE, MOVING_SHAPE = (30, 33, 21), (27, 36, 30)  # native (I, J, K)


def blobs(shape: tuple[int, ...], seed: int) -> np.ndarray:
    """A textured body (HU), air around it."""
    random = np.random.default_rng(seed)
    axes = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    body = -1000 + 1040 / (1 + np.exp((np.sqrt(sum(a**2 for a in axes)) - 0.8) * 14))
    waves = sum(np.sin(random.uniform(3, 7) * a + random.uniform(0, 6)) for a in axes)
    return (body + 60 * waves + random.normal(0, 8, shape)).astype(np.float32)


def smooth_ddf(shape: tuple[int, int, int], amplitude: float, seed: int) -> Tensor:
    """One slow wave along each axis for each component, voxels."""
    random = np.random.default_rng(seed)
    axes = np.meshgrid(*(np.linspace(0, 1, n) for n in shape), indexing="ij")
    waves = [sum(np.sin(random.uniform(1, 2.2) * a + random.uniform(0, 6)) for a in axes) for _ in range(3)]
    return torch.tensor(np.stack(waves) * amplitude / 2, dtype=torch.float32)


def landmarks_csv(path: Path, image: str, header: str = "x,y,z,name") -> str:
    """Write six points inside an image, world LPS mm."""
    grid, shape = (FIXED, FIXED_SHAPE) if image == "fixed" else (MOVING, MOVING_SHAPE)
    random = np.random.default_rng(5)
    rows = []
    for number in range(6):
        voxel = random.uniform(0.3, 0.7, 3) * (np.array(shape) - 1)
        point = grid["direction"] @ (np.array(grid["spacing"]) * voxel) + np.array(grid["origin"])
        rows.append(",".join(f"{value:.6f}" for value in point) + f",p{number}")
    path.write_text("\n".join([header, *rows]) + "\n")
    return str(path)


def registered_case(folder: Path, shape: tuple[int, int, int] = SHAPE, amplitude: float = 1.3) -> dict[Any, Any]:
    """Write a pair with labels and landmarks, load it as the configs do, and add a made-up registration."""
    fixed, moving = blobs(FIXED_SHAPE, 0), blobs(MOVING_SHAPE, 1)
    case = {
        "case": "oblique pair",
        "case_dir": str(folder / "out"),
        "fixed": write(folder / "fixed.nii.gz", fixed, **FIXED),
        "moving": write(folder / "moving.nii.gz", moving, **MOVING),
        "fixed_label": write(folder / "fixed_label.nii.gz", _label(fixed), **FIXED),
        "moving_label": write(folder / "moving_label.nii.gz", _label(moving), **MOVING),
        "fixed_landmarks": landmarks_csv(folder / "fixed.csv", "fixed"),
        "moving_landmarks": landmarks_csv(folder / "moving.csv", "moving"),
        "fixed_modality": "ct",
        "moving_modality": "ct",
    }
    data = dict(chain(shape, match_orientation=False)(case))
    terms = {"similarity_before": torch.tensor(0.7), "similarity_after": 0.2, "regularity": float("nan")}
    data["pred"] = {
        "forward_ddf": smooth_ddf(shape, amplitude, 2),
        "inverse_ddf": -smooth_ddf(shape, amplitude, 3),
        "terms": {**terms, "seconds_registration": 12.5},
    }
    return data


def _label(image: np.ndarray) -> np.ndarray:
    return np.digitize(image, [-500.0, 20.0, 80.0]).astype(np.int16) * 100


def world_points(volume: Any, count: int = 1000, margin: float = 0.1) -> Tensor:
    """Random points of a volume's field of view and of a margin around it, RAS mm."""
    low, high = -margin, 1 + margin
    voxels = (low + (high - low) * torch.rand(count, 3, dtype=torch.float64)) * (torch.tensor(volume.shape[1:]) - 1)
    affine = volume.affine.double()
    return voxels @ affine[:3, :3].T + affine[:3, 3]


def by_itk(transform: Any, points_ras: Tensor) -> Tensor:
    """Points, RAS mm, carried by a transform of ITK."""
    carried = [list(transform.TransformPoint(point)) for point in flip_lps_ras(points_ras).tolist()]
    return flip_lps_ras(torch.tensor(carried, dtype=torch.float64))
