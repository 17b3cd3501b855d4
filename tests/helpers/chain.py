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
"""The chain of configs/inference.yaml's `preprocessing:`, and small volumes, for the tests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import itk
import numpy as np
from monai.bundle import ConfigParser
from monai.transforms import Compose

ROOT = Path(__file__).resolve().parents[2]
SHAPE = (17, 18, 20)  # of the images' grid (D, H, W)


def chain(image_shape: Sequence[int] = SHAPE, **options: Any) -> Compose:
    """Return the preprocessing of the config with options, on a small grid and without weights."""
    parser = ConfigParser()
    parser.read_config(str(ROOT / "configs" / "inference.yaml"))
    parser.update({"model": "none", "image_shape": list(image_shape), **options})
    return parser.get_parsed_content("preprocessing")


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
