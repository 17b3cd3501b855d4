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
"""Writing NIfTI: scalar and vector volumes, whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterable

import nibabel as nib
import numpy as np

from scripts.geometry.world_axes import LPS_RAS
from scripts.utils.atomic import replacing

try:
    from isal.igzip import IGzipFile as GzipFile  # the same format and size in a tenth of the time
except ImportError:  # it is not there for every processor
    from gzip import GzipFile  # type: ignore[assignment]


def write_nifti(
    path: str | os.PathLike[str],
    components: Iterable[np.ndarray],
    affine_ras: np.ndarray,
    vector: bool = False,
    time_step: float | None = None,
    intent_code: int = 0,
    xform_code: int = 1,
) -> None:
    """Write a volume as ``.nii.gz``.

    Args:
        path: the file.
        components: arrays of one type: a single one (I, J, K) or (I, J, K, T), or the three of a vector image.
        affine_ras: (4, 4), voxel -> world RAS mm, written as sform and qform.
        vector: write a vector image (5-D, intent 1007), which ITK reads as such, without changing signs.
        time_step: seconds from frame to frame of a 4-D volume.
        intent_code: NIfTI's, where it is not that of a plain volume or vector image.
        xform_code: NIfTI's code of the world that the affine is in, as the image has it on whose grid this lies: 1
            scanner, 2 aligned, 3 Talairach, 4 MNI, 5 template. 0, unknown, is written where the affine is what readers
            take a header without one for, and else 1.

    Raises:
        InputError: the file can't be written.
    """
    volumes = list(components)
    voxels = np.stack(volumes, axis=-1)[:, :, :, None, :] if vector else volumes[0]
    affine = np.asarray(affine_ras, dtype=np.float64)
    code = xform_code if xform_code or _is_without_world(affine) else 1
    image = nib.Nifti1Image(voxels, affine if code else None, dtype=voxels.dtype)
    if code:
        image.set_sform(affine, code=code)
        image.set_qform(affine, code=code)
    else:  # nibabel would give an affine a code
        image.header.set_zooms((*np.linalg.norm(affine[:3, :3], axis=0), *image.header.get_zooms()[3:]))
    image.header.set_xyzt_units("mm", "sec" if time_step is not None else None)
    if time_step is not None:
        image.header.set_zooms((*image.header.get_zooms()[:3], time_step))
    if intent_code or vector:
        image.header.set_intent(intent_code or "vector", allow_unknown=True)
    # the same bytes each time: no time of writing and no name of a temporary file
    with (
        replacing(path) as temporary,
        open(temporary, "wb") as file,
        GzipFile(filename="", mode="wb", compresslevel=1, fileobj=file, mtime=0) as stream,
    ):
        image.to_stream(stream)


def _is_without_world(affine_ras: np.ndarray) -> bool:
    """Tell whether an affine is the one that ITK takes a header with both codes 0 for."""
    return bool(np.allclose(affine_ras, LPS_RAS.numpy() @ np.diag(np.linalg.norm(affine_ras, axis=0)), atol=1e-6))
