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
"""DIR-Lab's cases (4DCT and COPDgene): raw volumes without a header, and landmarks as voxel numbers.

A volume is little-endian int16, x fastest, HU + 1024 (values below 0 are outside of the scanner's field of view).
A landmark file has one point a line, x y z, in voxels counted from 1. Size and spacing are in the table of the
providers, :data:`CASES`. The files are converted to NIfTI and CSV once, voxel (0, 0, 0) at the world's origin, axes
along LPS; which way up the slices are the files do not say, and it does not matter where both images are alike.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from scripts.data.nifti_writing import write_nifti
from scripts.geometry.world_axes import SIGNS
from scripts.utils.atomic import replacing
from scripts.utils.errors import InputError

HU_OFFSET = 1024
LOWEST_HU = -1024


class CaseGrid(NamedTuple):
    """Of both volumes of a case."""

    size: tuple[int, int, int]
    """(x, y, z) voxels."""
    spacing_mm: tuple[float, float, float]
    """(x, y, z)."""


def _grid(width: int, slices: int, spacing: float) -> CaseGrid:
    return CaseGrid((width, width, slices), (spacing, spacing, 2.5))


CASES = {
    **{
        f"case{n}": _grid(*row)
        for n, row in enumerate(
            [
                *((256, 94, 0.97), (256, 112, 1.16), (256, 104, 1.15), (256, 99, 1.13), (256, 106, 1.10)),
                *((512, 128, 0.97), (512, 136, 0.97), (512, 128, 0.97), (512, 128, 0.97), (512, 120, 0.97)),
            ],
            start=1,
        )
    },
    **{
        f"copd{n}": _grid(512, slices, spacing)
        for n, (slices, spacing) in enumerate(
            [
                *((121, 0.625), (102, 0.645), (126, 0.652), (126, 0.590), (131, 0.647)),
                *((119, 0.633), (112, 0.625), (115, 0.586), (116, 0.664), (135, 0.742)),
            ],
            start=1,
        )
    },
}
# exhale is fixed, inhale moving, as in the paper
IMAGES = {
    "fixed": r"(?:(?P<copd>copd\d+)_ebhct|(?P<case>case\d+)_t50.*)\.img",
    "moving": r"(?:(?P<copd>copd\d+)_ibhct|(?P<case>case\d+)_t00.*)\.img",
}
LANDMARKS = {
    "fixed": r"(?:(?P<copd>copd\d+)_300_ebh_xyz.*|(?P<case>case\d+)_(?:dirlab)?300_t50_xyz.*)\.txt",
    "moving": r"(?:(?P<copd>copd\d+)_300_ibh_xyz.*|(?P<case>case\d+)_(?:dirlab)?300_t00_xyz.*)\.txt",
}


def convert_dirlab(folder: Path, out: Path) -> list[dict[str, Any]]:
    """Convert all cases below a folder, and return their pairs as entries of a list, with absolute paths.

    Args:
        folder: that holds the unpacked cases, in folders of any depth.
        out: folder for the NIfTI and CSV files. Masks ``out/CASE_fixed_mask.nii.gz`` (and ``_moving_``),
            on the grids of the converted images, go into the list where they are there.

    Raises:
        InputError: no complete case, or a file that is not what the table says.
    """
    files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
    found: dict[str, dict[str, Path]] = {}
    for kind, patterns in (("", IMAGES), ("_landmarks", LANDMARKS)):
        for side, pattern in patterns.items():
            for path in files:
                match = re.fullmatch(pattern, path.name.lower())
                if match:
                    found.setdefault(match["copd"] or match["case"], {}).setdefault(side + kind, path)
    needed = [side + kind for kind in ("", "_landmarks") for side in IMAGES]
    complete = {case: parts for case, parts in found.items() if case in CASES and set(needed) <= set(parts)}
    if not complete:
        raise InputError(
            f"'{folder}' holds no complete DIR-Lab case; expected copd1_iBHCT.img, copd1_300_iBH_xyz_r1.txt and the"
            " same with eBH, or case1_T00_s.img, Case1_300_T00_xyz.txt and the same with T50"
        )
    out = Path(out).absolute()
    entries = []
    for case in sorted(complete, key=list(CASES).index):
        entry: dict[str, Any] = {"case": case, "subject": case}
        for side in IMAGES:
            image, points = out / f"{case}_{side}.nii.gz", out / f"{case}_{side}.csv"
            affine = np.diag([*(SIGNS * CASES[case].spacing_mm), 1.0])
            write_nifti(image, [read_raw(complete[case][side], CASES[case].size)], affine)
            write_points(points, read_points(complete[case][f"{side}_landmarks"], CASES[case]))
            entry |= {side: str(image), f"{side}_modality": "ct", f"{side}_landmarks": str(points)}
            mask = out / f"{case}_{side}_mask.nii.gz"
            if mask.is_file():
                entry[f"{side}_mask"] = str(mask)
        entries.append(entry)
    return entries


def read_raw(path: Path, size: tuple[int, int, int]) -> np.ndarray:
    """Return a raw volume in HU, (x, y, z) int16, not below -1024.

    Raises:
        InputError: the file's length is not that of the table's size.
    """
    expected = 2 * int(np.prod(size))
    if path.stat().st_size != expected:
        raise InputError(
            f"'{path}' has {path.stat().st_size} bytes, and {size[0]} x {size[1]} x {size[2]} voxels of int16 have"
            f" {expected}; download it again"
        )
    values = np.fromfile(path, dtype="<i2").reshape(size[::-1]).transpose(2, 1, 0)
    return np.maximum(values.astype(np.int32) - HU_OFFSET, LOWEST_HU).astype(np.int16)


def read_points(path: Path, grid: CaseGrid) -> np.ndarray:
    """Return landmarks (N, 3), LPS mm in the world of the converted volume.

    Raises:
        InputError: not three numbers a line, or a point outside of the volume.
    """
    try:
        voxels = np.loadtxt(path, dtype=np.float64, ndmin=2)[:, :3] - 1
    except (OSError, ValueError) as error:
        raise InputError(f"landmarks '{path}' can't be read as lines of three numbers x y z: {error}") from error
    if voxels.shape[1:] != (3,) or (voxels < 0).any() or (voxels > np.array(grid.size) - 1).any():
        raise InputError(f"landmarks '{path}' must be voxel numbers from 1 to {grid.size}, three a line")
    return voxels * np.array(grid.spacing_mm)


def write_points(path: Path, points_lps_mm: np.ndarray) -> None:
    """Write landmarks as the bundle reads them: CSV with the header x,y,z, LPS mm."""
    lines = "".join(f"{x:.6f},{y:.6f},{z:.6f}\n" for x, y, z in points_lps_mm)
    with replacing(path) as temporary:
        temporary.write_text("x,y,z\n" + lines, encoding="utf-8")
