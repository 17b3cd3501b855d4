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
"""The file that goes back to a client, in the format it asked for."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import itk
import numpy as np

from monailabel_app.label_numbers import label_type
from monailabel_app.registration import FILES
from monailabel_app.request_options import InferOptions
from scripts.utils.atomic import replacing


def write_label(voxels: np.ndarray, like: Any, options: InferOptions, folder: Path) -> tuple[Path, str | None]:
    """Write a label map.

    Args:
        voxels: integers as ITK orders them (K, J, I).
        like: ITK image with the grid.
        options: type, format and compression.
        folder: for the file.

    Returns:
        the file, and a remark if its type is not the one that was asked for.
    """
    kind = label_type(np.unique(voxels), options.result_dtype, voxels.dtype)
    image = itk.image_from_array(np.ascontiguousarray(voxels.astype(kind)))
    image.CopyInformation(like)
    remark = None
    if options.result_dtype is not None and kind != np.dtype(options.result_dtype):
        remark = (
            f"the label has the value {int(voxels.max())}, which {options.result_dtype} can't hold: written as {kind}"
        )
    return _write(image, options, folder), remark


def write_result(results: Path, options: InferOptions, folder: Path) -> tuple[Path, str | None]:
    """Write what a registration left in ``results`` into ``folder``, in the format of the request; not for labels.

    A warped image is converted to the format, a displacement field (NIfTI vector image) and a transform (ITK's HDF5)
    stay as they are.

    Returns:
        the file, and a remark where a wish could not be granted.
    """
    source = results / FILES[options.result]
    if options.result in ("displacement", "transform"):
        target = _new_file(folder, source.name[source.name.index(".") :])
        source.replace(target)
        return target, f"{options.result}: written as {source.name}"
    return _write(itk.imread(str(source)), options, folder), None


def _write(image: Any, options: InferOptions, folder: Path) -> Path:
    path = _new_file(folder, options.result_extension)
    with replacing(path) as temporary:
        itk.imwrite(image, str(temporary), compression=options.result_compress)
    return path


def _new_file(folder: Path, suffix: str) -> Path:
    with tempfile.NamedTemporaryFile(dir=folder, prefix="answer-", suffix=suffix, delete=False) as file:
        return Path(file.name)
