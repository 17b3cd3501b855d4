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
"""The pairs of a cohort: a list, one image to a whole folder of images, or the frames of a series to one of them.

A pair that can't be used is kept with its error: it becomes a row of the table, and the others go on.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scripts.data.case import CaseFiles
from scripts.data.cases import cases_of_rows, read_datalist
from scripts.data.image_file import ImageFile, open_image
from scripts.transforms.outputs.save import check_outputs_of_case, switched_on
from scripts.utils.errors import InputError
from scripts.utils.paths import IMAGE_SUFFIXES, absolute, check_output_dir, existing_path, is_absent, stem


def load_cohort(
    datalist: Any = None,
    template: Any = None,
    images: Any = None,
    series: Any = None,
    series_reference: int = 0,
    output_dir: Any = None,
    split: str = "validation",
    save: Mapping[str, bool] | None = None,
    required: bool = True,
    fixed: Any = None,
    moving: Any = None,
    **defaults: Any,
) -> list[CaseFiles]:
    """Return the cases of a cohort, in order; those that can't be used have ``error``.

    Args:
        datalist: CSV or JSON of pairs, as :func:`scripts.data.cases.read_datalist` reads it.
        template: fixed image of all cases.
        images: folder of moving images, registered to ``template`` in the order of their names.
        series: 4-D file; every frame but ``series_reference`` is registered to that one.
        series_reference: frame, from 0.
        output_dir: results go to ``output_dir/<case>``.
        split: which pairs of a Learn2Reg data set.
        required: False returns [] when nothing is given.
        save: outputs that will be written; cases of which one can't be made have ``error``.
        fixed: refused, as a cohort names its images otherwise; likewise ``moving``.
        moving: see ``fixed``.
        defaults: entries of cases that do not say: modalities, masks, labels, landmarks, series, frame.

    Raises:
        InputError: nothing, or more than one of the three was given, or the list itself can't be read.
    """
    for name, value in (("fixed", fixed), ("moving", moving)):
        if not is_absent(value):
            raise InputError(f"--{name} is for a single pair; give --datalist, --template with --images, or --series")
    kinds = {"datalist": datalist, "template": template, "series": series}
    given = [name for name, value in kinds.items() if not is_absent(value)]
    if not given and is_absent(images):
        if not required:
            return []
        raise InputError(
            "no pairs: give --datalist FILE, --template FILE with --images FOLDER, or --series FILE (a 4-D image)"
        )
    if len(given) > 1:
        raise InputError(f"--{given[0]} and --{given[1]} exclude each other; give one of them")
    if given and given != ["template"] and not is_absent(images):
        raise InputError(f"--images belongs to --template; leave it out beside --{given[0]}")
    folder = check_output_dir(output_dir)
    known = {key: value for key, value in defaults.items() if not is_absent(value)}
    opened: list[ImageFile] = []
    if given == ["datalist"]:
        path = existing_path("datalist", datalist, Path())
        rows, base = read_datalist(path, split), Path(path).resolve().parent
    elif given == ["series"]:
        opened = [open_image(existing_path("series", series, Path()))]
        rows, base = _frames(opened[0], series_reference), Path()
    else:
        rows, base = _one_to_many(template, images), Path()
    cases = cases_of_rows(rows, "", base, known, folder, isolate=True, opened=opened)
    outputs = switched_on(save or {})
    for case in cases:
        if "error" not in case:
            try:
                check_outputs_of_case(case, outputs)
            except InputError as error:
                case["error"] = str(error)
    return cases


def _one_to_many(template: Any, images: Any) -> list[dict[str, Any]]:
    """Return the rows of a template and a folder of images."""
    if is_absent(template) or is_absent(images):
        raise InputError("--template FILE and --images FOLDER belong together; give both")
    fixed = existing_path("template", template, Path())
    folder = absolute(str(images))
    if not folder.is_dir():
        raise InputError(f"images: '{folder}' is not a folder; give the folder of the moving images")
    paths = [
        path
        for path in sorted(folder.iterdir())
        if path.name.lower().endswith(IMAGE_SUFFIXES[:-2]) and not path.name.startswith(".")  # no single DICOM slices
        if path.resolve() != Path(fixed).resolve()
    ]
    if not paths:
        raise InputError(f"images: '{folder}' holds no images (NIfTI, NRRD, MHA/MHD) besides the template")
    return [
        {"fixed": fixed, "moving": str(path), "case": name} for path, name in zip(paths, _names(paths), strict=True)
    ]


def _names(paths: list[Path]) -> list[str]:
    """Return names of cases: those of the files, in letters that folders can have, numbered where two are equal."""
    names: list[str] = []
    for path in paths:
        name = re.sub(r"[^\w.+-]+", "_", stem(str(path))).lstrip(".") or "case"
        count = 1 + sum(other == name or other.startswith(f"{name}__") for other in names)
        names.append(name if count == 1 else f"{name}__{count}")
    return names


def _frames(opened: ImageFile, reference: int) -> list[dict[str, Any]]:
    """Return the rows of a 4-D file."""
    path, shape = opened.path, opened.header.shape
    if len(shape) != 4:
        raise InputError(f"series: '{path}' is {len(shape)}-D; give a 4-D file, or a --datalist of its frames")
    if isinstance(reference, bool) or not isinstance(reference, int) or not 0 <= reference < shape[3]:
        raise InputError(f"series_reference: the series has frames 0 to {shape[3] - 1}, got {reference}")
    return [
        {
            "fixed": path,
            "moving": path,
            "fixed_frame": int(reference),
            "moving_frame": frame,
            "case": f"{_names([Path(path)])[0]}_frame_{frame:03d}",
        }
        for frame in range(shape[3])
        if frame != int(reference)
    ]


def require_cohort(cases: list[CaseFiles]) -> None:
    """Refuse to run without a case; for workflows whose cases are loaded with ``required=False``."""
    if not cases:
        load_cohort(required=True)
