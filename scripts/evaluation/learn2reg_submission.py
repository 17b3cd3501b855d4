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
"""Displacement fields in the form that Learn2Reg's evaluation reads, and the zip file that is handed in.

A field is ``disp_FIXED_MOVING.nii.gz`` (I, J, K, 3), float32, voxels: the moving image is sampled at voxel (i, j, k) +
displacement. Its evaluation passes those numbers to ``map_coordinates``; both images have one grid size.

    python -m scripts.evaluation.learn2reg_submission RUN submission.zip
"""

from __future__ import annotations

import argparse
import re
import sys
import zipfile
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from torch import Tensor

from scripts.geometry.grid_transform import plain
from scripts.transforms.outputs import Output
from scripts.utils.atomic import replacing
from scripts.utils.errors import InputError
from scripts.utils.paths import stem

_CASE = re.compile(r".*?_(\d{4})(?:_(\d{4}))?")  # the subject, and the modality or time point
PATTERN = "disp_*.nii.gz"


def field_name(fixed: str, moving: str) -> str:
    """Return the name of a pair's field.

    As the evaluation script: ``disp_0001_0002.nii.gz`` by subjects where both images are of one modality, or the fixed
    one is 0000 and the moving one 0001; else with the modalities, ``disp_0001_0001_0002_0000.nii.gz``.

    Raises:
        InputError: names that are not Learn2Reg's.
    """
    parts = []
    for path in (fixed, moving):
        match = _CASE.fullmatch(stem(path))
        if match is None:
            raise InputError(
                f"save_learn2reg: '{Path(path).name}' is not named as Learn2Reg's images are (Name_0001_0000.nii.gz)"
            )
        parts.append((match[1], match[2] or "0000"))
    (fixed_subject, fixed_kind), (moving_subject, moving_kind) = parts
    if fixed_kind == moving_kind or (fixed_kind, moving_kind) == ("0000", "0001"):
        return f"disp_{fixed_subject}_{moving_subject}.nii.gz"
    return f"disp_{fixed_subject}_{fixed_kind}_{moving_subject}_{moving_kind}.nii.gz"


def voxel_displacement(displacement_mm: Tensor, fixed_affine: Tensor, moving_affine: Tensor) -> Tensor:
    """Return where each fixed voxel lies in the moving image's voxels, less its own index: (3, I, J, K) float32.

    Args:
        displacement_mm: (3, I, J, K), RAS mm, on the fixed grid.
        fixed_affine: (4, 4), fixed voxel -> world RAS mm.
        moving_affine: (4, 4), moving voxel -> world RAS mm.
    """
    fixed, to_voxel = plain(fixed_affine).double(), torch.linalg.inv(plain(moving_affine).double())
    offset = to_voxel @ fixed - torch.eye(4, dtype=torch.float64)
    axes = [torch.arange(n, dtype=torch.float64) for n in displacement_mm.shape[1:]]
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij"))
    moved = torch.einsum("ab,bijk->aijk", offset[:3, :3], grid) + offset[:3, 3].view(3, 1, 1, 1)
    return (moved + torch.einsum("ab,bijk->aijk", to_voxel[:3, :3], plain(displacement_mm).double())).float()


class SaveLearn2RegFieldd(Output):
    """Write the displacement field in Learn2Reg's form, by :func:`field_name`."""

    def write(self, data: Mapping[Hashable, Any], folder: Path) -> tuple[str, ...]:
        """Write the file."""
        fixed, moving = data["fixed"], data["moving"]
        name = field_name(*(str(image.meta["filename_or_obj"]) for image in (fixed, moving)))
        if fixed.shape != moving.shape:
            raise InputError(
                f"save_learn2reg: Learn2Reg's images have one grid size; fixed has {tuple(fixed.shape[1:])} voxels,"
                f" moving {tuple(moving.shape[1:])}"
            )
        field = voxel_displacement(data["displacement_mm"], fixed.affine, moving.affine)
        image = nib.Nifti1Image(np.ascontiguousarray(field.permute(1, 2, 3, 0).numpy()), plain(fixed.affine).numpy())
        with replacing(folder / name) as temporary:
            image.to_filename(temporary)
        return (name,)


def write_submission(run: Path, path: Path) -> int:
    """Put all fields of a run's cases into one zip file; return how many.

    Raises:
        InputError: there are none, or two have one name.
    """
    fields = sorted(Path(run).rglob(PATTERN))
    if not fields:
        raise InputError(f"'{run}' holds no {PATTERN}; register with --save_learn2reg True first")
    twice = {field.name for field in fields if sum(other.name == field.name for other in fields) > 1}
    if twice:
        raise InputError(f"'{run}' holds {sorted(twice)[0]} more than once; give the folder of one run")
    with replacing(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        for field in fields:  # compressed already
            archive.write(field, field.name)
    return len(fields)


def main(arguments: list[str] | None = None) -> None:
    """Write the zip file that the command line asks for."""
    parser = argparse.ArgumentParser(description="Make a Learn2Reg submission of an evaluation.")
    parser.add_argument("run", type=Path, help="output_dir of the evaluation")
    parser.add_argument("out", type=Path, help="zip file to write")
    given = parser.parse_args(arguments)
    try:
        print(f"{given.out}: {write_submission(given.run, given.out)} displacement fields")
    except InputError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
