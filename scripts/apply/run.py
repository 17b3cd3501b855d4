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
"""Applying written transforms to other things: what ``configs/apply.yaml`` runs.

Everything is looked at before the first voxel is resampled; each result is written whole or not at all.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import itk
import numpy as np

from scripts.apply.point_files import carrier, carry_points, check_world
from scripts.data.field_formats import FSL_NAME, WRITERS, check_format, convert_field
from scripts.data.header import Header
from scripts.data.image_file import ImageFile, open_image
from scripts.data.itk_resampling import (
    INTERPOLATIONS,
    LABEL_INTERPOLATIONS,
    Grid,
    header_grid,
    read_scalars,
    resample,
    sample_transform,
    with_spacing,
)
from scripts.data.itk_transforms import write_itk
from scripts.data.nifti_writing import write_nifti
from scripts.data.transform_files import FIELD_SUFFIXES, compose, invert, read_transform
from scripts.geometry.warping import NIFTI_TYPES, cast
from scripts.transforms.checks import EXACT
from scripts.utils.errors import InputError
from scripts.utils.output_lock import alone_in
from scripts.utils.paths import POINT_SUFFIXES, check_output_dir, existing_path, is_absent, stem

logger = logging.getLogger(__name__)

TRANSFORM_NAME = "transform.h5"
RESULT_NAMES = (TRANSFORM_NAME, FSL_NAME, *(name for name, _ in WRITERS.values()))


class Inputs(NamedTuple):
    """What is to be done, checked as far as that is cheap."""

    transforms: tuple[str, ...]
    inverted: tuple[bool, ...]
    fixed: str | None
    moving: str | None
    images: tuple[str, ...]
    labels: tuple[str, ...]
    landmarks: tuple[str, ...]
    convert: tuple[str, ...]
    output_dir: Path
    opened: Mapping[str, ImageFile]
    """The images among the files, by their paths."""

    def open(self, path: str) -> ImageFile:
        """Return an image with its header as it was checked; opened anew if the file has changed since."""
        opened = self.opened.get(path)
        return opened if opened is not None and opened.is_current() else open_image(path)


def load_inputs(
    transform: Any = None,
    invert_transform: Any = False,
    fixed: Any = None,
    moving: Any = None,
    image: Any = None,
    label: Any = None,
    landmarks: Any = None,
    convert: Any = None,
    save_transform: bool = False,
    output_dir: Any = None,
    required: bool = True,
) -> Inputs | None:
    """Check the options of ``configs/apply.yaml`` and the headers of all files; the config tells what they mean.

    Returns:
        what is to be done; None without a transform if that is not required.

    Raises:
        InputError: one line that names option, value and what to do.
    """
    if is_absent(transform):
        if not required:
            return None
        raise InputError("nothing to apply: give --transform FILE, and --image, --label, --landmarks or --convert")
    transforms = _paths("transform", transform)
    flags = _list(invert_transform)
    flags = flags * len(transforms) if len(flags) == 1 else flags
    if len(flags) != len(transforms) or not all(isinstance(flag, bool) for flag in flags):
        raise InputError(
            f"invert: give True, False, or one of them for each of the {len(transforms)} transforms, got"
            f" {invert_transform!r}"
        )
    images, labels = _paths("image", image), _paths("label", label)
    points = tuple(existing_path("landmarks", path, Path()) for path in _list(landmarks))
    formats = tuple(check_format(str(name)) for name in _list(convert))
    if not (images or labels or points or formats or save_transform):
        raise InputError("nothing to do: give --image, --label, --landmarks, --convert or --save_transform True")
    for path in points:
        if not path.lower().endswith(POINT_SUFFIXES):
            raise InputError(f"landmarks '{path}': give a file that ends in {', '.join(POINT_SUFFIXES)}")
    opened: dict[str, ImageFile] = {}
    for option, paths in (("image", images), ("label", labels)):
        for path in paths:
            _check_volume(option, path, opened)
    fixed, moving = (
        None if is_absent(value) else existing_path(option, value, Path())
        for option, value in (("fixed", fixed), ("moving", moving))
    )
    for option, path in (("fixed", fixed), ("moving", moving)):
        if path is not None:
            _check_volume(option, path, opened)
    if "fsl" in formats and moving is None:
        raise InputError("convert 'fsl' needs the moving image, whose header its values depend on: give --moving FILE")
    if (images or labels or formats) and fixed is None and not transforms[0].lower().endswith(FIELD_SUFFIXES):
        raise InputError("fixed is missing: give --fixed FILE, the image whose grid the results shall have")
    names = [output_name(path) for path in (*images, *labels, *points)]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"two inputs would both be written as '{twice}'; apply them one after the other")
    folder = check_output_dir(output_dir)
    results = [*names, *(RESULT_NAMES if formats or save_transform else ())]
    resolved = {(folder / name).resolve() for name in results}
    for path in (*transforms, *images, *labels, *points, *(p for p in (fixed, moving) if p)):
        if Path(path).resolve() in resolved:
            raise InputError(f"'{path}' would be overwritten by a result; give another output_dir")
    return Inputs(transforms, tuple(flags), fixed, moving, images, labels, points, formats, folder, opened)


def _list(value: Any) -> list[Any]:
    if value is None or (isinstance(value, str) and is_absent(value)):
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _paths(option: str, value: Any) -> tuple[str, ...]:
    return tuple(existing_path(option, path, Path()) for path in _list(value))


def _check_volume(option: str, path: str, opened: dict[str, ImageFile]) -> None:
    """Open an image, unless it is among those that were opened, and refuse it if it is no volume of scalars."""
    try:
        header = opened.setdefault(path, opened.get(path) or open_image(path)).header
    except InputError as error:
        raise type(error)(f"{option}: {error}") from error
    if len(header.shape) not in (3, 4) or header.components != 1:
        raise InputError(f"{option} '{path}' must be a 3-D or 4-D image with one value per voxel")


def output_name(path: str) -> str:
    """Return the name of the result of an input file."""
    name = Path(path).name
    for suffix in POINT_SUFFIXES:
        if name.lower().endswith(suffix):
            return f"{name[: -len(suffix)]}_warped{suffix}"
    return f"{stem(path)}_warped.nii.gz"


def check_interpolation(interpolation: str, label_interpolation: str) -> None:
    """Refuse unknown interpolations."""
    if interpolation not in INTERPOLATIONS:
        raise InputError(f"interpolation: expected one of {', '.join(INTERPOLATIONS)}, got '{interpolation}'")
    if label_interpolation not in LABEL_INTERPOLATIONS:
        raise InputError(
            f"label_interpolation: expected one of {', '.join(LABEL_INTERPOLATIONS)}, got '{label_interpolation}'"
        )


def check_outside(outside: Any) -> float | None:
    """Return the value outside images, None for "auto".

    Raises:
        InputError: neither auto nor a finite number.
    """
    if is_absent(outside) or outside == "auto":
        return None
    try:
        number = float("nan" if isinstance(outside, bool) else outside)
    except (TypeError, ValueError):
        number = float("nan")
    if not math.isfinite(number):
        raise InputError(f"outside: give auto or a number, such as -1000, got {outside!r}")
    return number


def apply_transforms(
    inputs: Inputs,
    interpolation: str = "linear",
    label_interpolation: str = "nearest",
    outside: float | str | None = "auto",
    spacing: Sequence[float] | None = None,
    landmark_space: str = "LPS",
    save_transform: bool = False,
) -> list[Path]:
    """Do what is to be done and return the files that were written.

    Args:
        inputs: of :func:`load_inputs`.
        interpolation: of images, linear or bspline.
        label_interpolation: nearest or smooth.
        outside: value of voxels that come from outside an image; "auto" or None: air for CT in HU, else 0.
        spacing: of the results, mm, instead of that of ``fixed``.
        landmark_space: of CSV and VTK files that do not say.
        save_transform: also write the composed transform, transform.h5.

    Raises:
        InputError: a wrong option, or a file that can't be read, inverted or written.
    """
    check_interpolation(interpolation, label_interpolation)
    outside_number = check_outside(outside)
    if inputs is None:
        raise InputError("nothing to apply: give --transform FILE, and --image, --label, --landmarks or --convert")
    check_world(landmark_space)
    grid = _grid(inputs, spacing) if inputs.images or inputs.labels or inputs.convert else None
    moving = None if inputs.moving is None else header_grid(inputs.open(inputs.moving).header)
    parts = [read_transform(path, moving) for path in inputs.transforms]
    transform = compose([invert(p) if flag else p for p, flag in zip(parts, inputs.inverted, strict=True)])
    with alone_in(inputs.output_dir):
        written = _write_all(
            inputs,
            transform,
            grid,
            moving,
            interpolation,
            label_interpolation,
            outside_number,
            landmark_space,
            save_transform,
        )
    for result in written:
        print(f"wrote {result}")
    return written


def _write_all(
    inputs: Inputs,
    transform: Any,
    grid: Grid | None,
    moving: Grid | None,
    interpolation: str,
    label_interpolation: str,
    outside: float | None,
    landmark_space: str,
    save_transform: bool,
) -> list[Path]:
    """Write what :func:`apply_transforms` is asked for and return the files."""
    folder, written = inputs.output_dir, list[Path]()
    if save_transform:
        write_itk(transform, folder / TRANSFORM_NAME)
        written.append(folder / TRANSFORM_NAME)
    for path in inputs.landmarks:
        count = carry_points(path, carrier(transform), folder / output_name(path), landmark_space)
        logger.info("%s: %d points", path, count)
        written.append(folder / output_name(path))
    if grid is not None:
        affine = grid.affine_ras.numpy()
        jobs = [(path, interpolation) for path in inputs.images] + [
            (path, label_interpolation) for path in inputs.labels
        ]
        for path, method in jobs:
            image, header = read_scalars(inputs.open(path))
            _say(header)
            _check_finite(path, image, method)
            if path in inputs.labels:
                _check_exact(path, image, header)
            values = resample(image, transform, grid, method, outside if path in inputs.images else 0.0)
            values = cast(values, NIFTI_TYPES.get(header.dtype, header.dtype) or values.dtype.name)
            time_step = header.spacing[3] if values.ndim == 4 else None
            write_nifti(folder / output_name(path), [values], affine, time_step=time_step, xform_code=grid.xform_code)
            written.append(folder / output_name(path))
        if inputs.convert:
            displacement = sample_transform(transform, grid)
            files = [
                convert_field(name, displacement, grid.affine_ras, folder, moving and moving[:2], grid.xform_code)
                for name in inputs.convert
            ]
            written.extend(folder / name for name in files)
    return written


def _say(header: Header) -> None:
    for line in header.warnings:
        logger.warning("%s", line)


def _check_finite(path: str, image: Any, method: str) -> None:
    """Refuse NaN where it would spoil more than its own place; linear and nearest keep it there."""
    values = itk.array_view_from_image(image)
    if method != "linear" and values.dtype.kind == "f" and not np.isfinite(values).all():
        what = "an image" if method == "bspline" else "a label"
        raise InputError(
            f"'{path}' has voxels that are NaN or infinite, which {what} by interpolation {method} can't have; replace"
            " them (for instance by the background value)"
        )


def _check_exact(path: str, image: Any, header: Header) -> None:
    """Refuse labels that were rounded when they were read: 64-bit integers are worked with as float64."""
    if header.dtype in ("int64", "uint64") and float(np.abs(itk.array_view_from_image(image)).max()) >= EXACT[1]:
        raise InputError(f"label '{path}' has values of {EXACT[1]} or more, which would be rounded; renumber them")


def _grid(inputs: Inputs, spacing: Sequence[float] | None) -> Grid:
    """Return the grid of the results: that of fixed, or of the displacement field that is applied first."""
    header = inputs.open(inputs.transforms[0] if inputs.fixed is None else inputs.fixed).header
    if inputs.fixed is not None:  # of a field, reading it says so
        _say(header)
    grid = header_grid(header)
    return grid if spacing is None else with_spacing(grid, spacing)
