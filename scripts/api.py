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
"""``register``: one registration from Python, by the same workflow as the bundle's command.

::

    from scripts.api import register
    result = register("moving.nii.gz", "fixed.nii.gz", preset="fast")
    result.warped_moving, result.forward_transform, result.report["quality"]["verdict"]
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import itk
import nibabel as nib
import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import LoadImage

from scripts.data.nifti_writing import write_nifti
from scripts.data.reading import VolumeReader, read_header
from scripts.data.transform_files import read_transform
from scripts.utils.errors import InputError
from scripts.utils.paths import from_home
from scripts.workflow import check_not_given, run_workflow

IMAGE_OPTIONS = ("fixed_mask", "moving_mask", "fixed_label", "moving_label")
Image = Any  # a path, a MetaTensor, an ITK image or a nibabel image


@dataclass(frozen=True, eq=False)
class RegistrationResult:
    """What a registration gives.

    Args:
        warped_moving: moving image on the fixed grid, (1, I, J, K), in its type, with its RAS affine.
        forward_transform: ``itk.CompositeTransform``, LPS mm: fixed point -> moving point; resamples the moving image.
        inverse_transform: moving point -> fixed point; None with ``inverse=False``.
        warped_label: moving label on the fixed grid, if one was given.
        report: content of report.json: figures, verdict, settings, versions.
        output_dir: where the files are; None if no folder was asked for.
    """

    warped_moving: MetaTensor
    forward_transform: Any
    inverse_transform: Any | None
    warped_label: MetaTensor | None
    report: dict[str, Any]
    output_dir: Path | None

    @property
    def verdict(self) -> str:
        """``ok``, ``check`` or ``failed``; see docs/quality.md."""
        return str(self.report["quality"]["verdict"])


def register(
    moving: Image, fixed: Image, *, output_dir: str | Path | None = None, **options: Any
) -> RegistrationResult:
    """Register a moving image to a fixed one.

    Args:
        moving: image to be aligned: a path, a MetaTensor (1, I, J, K) or (I, J, K) with its RAS affine, an ITK image or
            a nibabel image. Likewise ``fixed`` and the options ``fixed_mask``, ``moving_mask``, ``fixed_label`` and
            ``moving_label``.
        fixed: image to align to.
        output_dir: folder for all files; by default nothing stays on the disk.
        options: any scalar of configs/inference.yaml, such as ``preset="fast"`` or ``moving_modality="ct"``.

    Returns:
        images, transforms and figures.

    Raises:
        InputError: an unknown option, or an input that can't be used; one line that says what to do.
    """
    check_not_given(options, ("datalist", "moving", "fixed"))
    with tempfile.TemporaryDirectory(prefix="register-") as folder:
        given = {"moving": moving, "fixed": fixed, **{k: v for k, v in options.items() if k in IMAGE_OPTIONS}}
        paths = {key: _as_file(key, value, Path(folder)) for key, value in given.items() if value is not None}
        target = Path(folder) / "out" if output_dir is None else from_home(str(output_dir))
        needed: dict[str, Any] = {"save::transforms": True, "save::warped": True}
        if output_dir is None:
            needed["summary"] = False
            needed |= {f"save::{name}": False for name in ("displacement", "jacobian", "overview", "confidence")}
        run_workflow(("inference.yaml",), {"progress": False, **options, **needed, **paths, "output_dir": str(target)})
        inverse, label = target / "inverse_transform.h5", target / "warped_label.nii.gz"
        return RegistrationResult(
            warped_moving=_load(target / "warped_moving.nii.gz"),
            forward_transform=read_transform(str(target / "forward_transform.h5")),
            inverse_transform=read_transform(str(inverse)) if inverse.is_file() else None,
            warped_label=_load(label) if label.is_file() else None,
            report=json.loads((target / "report.json").read_text(encoding="utf-8")),
            output_dir=None if output_dir is None else target,
        )


def _load(path: Path) -> MetaTensor:
    dtype = read_header(str(path)).dtype
    reader = VolumeReader(dtype=dtype)
    image = LoadImage(image_only=True, dtype=None, ensure_channel_first=True)(str(path), reader=reader)
    assert isinstance(image, MetaTensor)
    return image


def _as_file(name: str, image: Image, folder: Path) -> str:
    """Return the path of an image, writing what is in memory."""
    if isinstance(image, (str, Path)):
        return str(image)
    path, code = folder / f"{name}.nii.gz", 1
    if isinstance(image, MetaTensor):
        code = int(image.meta.get("xform_code", 1))
        values, affine = image.as_tensor().detach().cpu().numpy(), np.asarray(image.affine)
        values = values[0] if values.ndim == 4 and values.shape[0] == 1 else values
    elif isinstance(image, nib.spatialimages.SpatialImage):
        values, affine = np.asanyarray(image.dataobj), np.asarray(image.affine)
        header: Any = image.header
        code = next((int(header[key]) for key in ("sform_code", "qform_code") if header.get(key, 0) > 0), 1)
    elif isinstance(image, itk.Object):
        if image.GetImageDimension() != 3:
            raise InputError(f"{name}: the ITK image is {image.GetImageDimension()}-D; give a 3-D image")
        itk.imwrite(image, str(path))
        return str(path)
    else:
        kind = type(image).__name__
        extra = (
            ", with its affine: MetaTensor(values, affine=...)" if isinstance(image, (np.ndarray, torch.Tensor)) else ""
        )
        raise InputError(f"{name}: expected a path, a MetaTensor, an ITK image or a nibabel image{extra}, got a {kind}")
    if values.ndim != 3:
        raise InputError(f"{name}: expected one 3-D volume, got the shape {tuple(values.shape)}")
    axes = np.asarray(affine, dtype=np.float64)[:3, :3]
    axes = axes / np.linalg.norm(axes, axis=0).clip(1e-12)
    if np.abs(axes.T @ axes - np.eye(3)).max() > 1e-3:
        raise InputError(f"{name}: the affine has a shear, which NIfTI and ITK can't keep; resample the image first")
    write_nifti(path, [values.astype(_nifti_type(values.dtype), copy=False)], affine, xform_code=code)
    return str(path)


def _nifti_type(dtype: np.dtype) -> np.dtype:
    """Return a type that ITK reads from NIfTI."""
    if dtype.kind == "b":
        return np.dtype(np.uint8)
    return np.dtype(np.float32) if dtype == np.float16 else dtype
