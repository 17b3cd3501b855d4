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
"""Pairs whose transform is known: blobs given by a formula in the world, sampled on two oblique grids."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from monai.bundle import ConfigWorkflow

from tests.helpers.chain import oblique, write

ROOT = Path(__file__).resolve().parents[2]
SHIFT_LPS_MM = np.array([5.0, -4.0, 6.0])  # fixed point -> moving point
FIXED = {"spacing": (2.6, 2.8, 3.2), "origin": (-51.0, 12.5, 140.0), "direction": oblique(9)}
MOVING = {"spacing": (3.0, 2.5, 3.0), "origin": (-50.0, 10.0, 146.0), "direction": oblique(5)}
FIXED_SHAPE, MOVING_SHAPE = (40, 38, 36), (38, 44, 40)  # native (I, J, K)


def grid_points(grid: dict[str, Any], shape: tuple[int, int, int]) -> np.ndarray:
    """Return the world points (I, J, K, 3), LPS mm."""
    voxels = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), axis=-1)
    return (voxels * np.array(grid["spacing"])) @ np.asarray(grid["direction"]).T + np.array(grid["origin"])


CENTER = grid_points(FIXED, FIXED_SHAPE).reshape(-1, 3).mean(0)
BLOBS = np.random.default_rng(11).uniform(-34, 34, (24, 3)) + CENTER


def anatomy(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return intensities, 0 to about 1000, and labels 0 to 2, at world points."""
    body = 1 / (1 + np.exp((np.linalg.norm(points - CENTER, axis=-1) - 42) / 1.5))
    blobs = sum(np.exp(-np.sum((points - at) ** 2, axis=-1) / 60) for at in BLOBS)
    near = [np.linalg.norm(points - at, axis=-1) < 11 for at in BLOBS[:2]]
    return 400 * body + 600 * body * np.clip(blobs, 0, 1.5), np.where(near[0], 1, np.where(near[1], 2, 0))


def write_known_pair(folder: Path) -> dict[str, str]:
    """Write images, labels and landmarks (CSV, LPS); return them as options of the bundle."""
    folder.mkdir(parents=True, exist_ok=True)
    options = {}
    for side, grid, shape, shift in (
        ("fixed", FIXED, FIXED_SHAPE, 0.0),
        ("moving", MOVING, MOVING_SHAPE, SHIFT_LPS_MM),
    ):
        image, label = anatomy(grid_points(grid, shape) - shift)
        options[side] = write(folder / f"{side}.nii.gz", image.astype(np.float32), **grid)
        options[f"{side}_label"] = write(folder / f"{side}_label.nii.gz", label.astype(np.uint8), **grid)
        options[f"{side}_landmarks"] = write_points(folder / f"{side}.csv", BLOBS[2:14] * 0.6 + CENTER * 0.4 + shift)
    return options


def write_points(path: Path, points: np.ndarray) -> str:
    """Write landmarks with the header x,y,z."""
    path.write_text("x,y,z\n" + "".join(",".join(f"{value:.9f}" for value in point) + "\n" for point in points))
    return str(path)


def write_learn2reg(folder: Path, subjects: int = 4) -> Path:
    """Write a data set in Learn2Reg's form: images, labels, keypoints in voxels; two training and two validation pairs.

    Image 0001 of a subject shows image 0000 shifted by two voxels along i and by -1 along k: fixed is 0000.
    """
    shape = (24, 26, 22)
    affine = np.diag([3.0, 3.0, 3.2, 1.0])
    random = np.random.default_rng(3)
    names = []
    for subject in range(1, subjects + 1):
        at = random.uniform(5, 17, (14, 3))
        for phase, shift in (("0000", np.zeros(3)), ("0001", np.array([2.0, 0.0, -1.0]))):
            name = f"Made_{subject:04d}_{phase}"
            voxels = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), axis=-1) - shift
            blobs = [np.exp(-np.sum((voxels - a) ** 2, axis=-1) / 8) for a in at]
            label = np.where(blobs[0] > 0.4, 1, np.where(blobs[1] > 0.4, 2, 0))
            for kind, values in (("images", sum(blobs)), ("labels", label)):
                path = folder / f"{kind}Tr" / f"{name}.nii.gz"
                path.parent.mkdir(parents=True, exist_ok=True)
                nib.Nifti1Image(values.astype(np.float32 if kind == "images" else np.uint8), affine).to_filename(path)
            (folder / "keypointsTr").mkdir(exist_ok=True)
            np.savetxt(folder / "keypointsTr" / f"{name}.csv", at[2:] + shift, delimiter=",", fmt="%.6f")
        names.append(f"Made_{subject:04d}")
    pairs = [{"fixed": f"./imagesTr/{n}_0000.nii.gz", "moving": f"./imagesTr/{n}_0001.nii.gz"} for n in names]
    images = [pair[side] for pair in pairs for side in ("fixed", "moving")]
    content = {
        "name": "Made",
        "modality": {"0": "MR", "1": "MR"},
        "training": [{"image": image, "label": image.replace("images", "labels")} for image in images],
        "training_paired_images": pairs[: subjects - 2],
        "registration_val": pairs[subjects - 2 :],
    }
    path = folder / "Made_dataset.json"
    path.write_text(json.dumps(content))
    return path


def evaluate(output_dir: Path, configs: tuple[str, ...] = (), **options: Any) -> dict[str, Any]:
    """Run the evaluation in this process, training-free unless told otherwise; return summary.json."""
    workflow = ConfigWorkflow(
        config_file=[str(ROOT / "configs" / name) for name in ("inference.yaml", "evaluate.yaml", *configs)],
        workflow_type="inference",
        bundle_root=str(ROOT),
        output_dir=str(output_dir),
        **{"model": "none", "device": "cpu", "progress": False, **QUICK, **options},
    )
    workflow.initialize()
    workflow.run()
    return json.loads((output_dir / "summary.json").read_text())


QUICK: dict[str, Any] = {"field::levels": {"default": [[16, 20], [32, 20]]}, "image_shape": [40, 40, 40]}
