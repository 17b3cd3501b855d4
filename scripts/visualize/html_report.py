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
"""``report.html``, the web page of a pair, and what all pages are made with: they open from the disk.

Each is one file: style, script and images are in it, and a content security policy keeps it off the network.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from scripts.data.case import SIDES, Case
from scripts.data.report import input_warnings, without_folders
from scripts.utils.atomic import replacing
from scripts.utils.strict_json import strict
from scripts.visualize.report_images import planes_of

TEMPLATES = Path(__file__).resolve().parent / "templates"
PAIR_PAGE = "report.html"


def write_pair_page(data: Case, path: str | os.PathLike[str]) -> None:
    """Write the page of a case that has been registered: images in three planes, figures, verdict.

    Args:
        data: the case after :class:`scripts.transforms.add_quality.AddQualityd`.
        path: the file.

    Raises:
        InputError: the file can't be written.
    """
    quality = data.get("quality", {})
    planes, ranges = planes_of(data)
    shown = {
        "case": str(data.get("case", "registration")),
        "verdict": quality.get("verdict"),
        "reasons": list(quality.get("reasons", ())),
        "warnings": [without_folders(line) for line in input_warnings(data)],
        "figures": _figures(data),
        # names alone: folders may be named after patients, and pages are passed on
        "files": [[side, Path(_file_of(data[side])).name] for side in SIDES],
    }
    write_page("pair.html", path, {"planes": planes, **ranges}, **shown)


def _file_of(volume: Any) -> str:
    return str(volume.meta.get("filename_or_obj", ""))


def _figures(data: Case) -> list[list[str]]:
    """Return names and values for people."""
    terms, found = data.get("pred", {}).get("terms", {}), data.get("metrics", {})
    quality = data.get("quality", {})
    figures = []
    if terms.get("similarity_before") is not None and terms.get("similarity_after") is not None:
        before, after = float(terms["similarity_before"]), float(terms["similarity_after"])
        figures.append(["Similarity loss (lower is better)", f"{before:.3f} before, {after:.3f} after"])
    for name, word, unit, digits in (("dice", "Mean Dice", "", 3), ("tre_mm", "Mean landmark error", " mm", 2)):
        values = [found.get(name, {}).get(when, {}).get("mean") for when in ("before", "after")]
        if None not in values:
            figures.append([word, f"{values[0]:.{digits}f}{unit} before, {values[1]:.{digits}f}{unit} after"])
    rows = (
        ("Folding", found.get("folding_percent"), "{:.3f} % of the cells"),
        ("Forward, then inverse", found.get("inconsistency_mm"), "{:.2f} mm on average"),
        ("Maps outside the moving image", quality.get("outside_percent"), "{:.1f} % of the fixed image"),
        ("Bending", (quality.get("displacement_mm") or {}).get("percentile_95"), "95 % within {:.1f} mm"),
        ("Coarse dissimilarity", quality.get("coarse_dissimilarity"), "{:.4f}"),
    )
    return figures + [[name, text.format(value)] for name, value, text in rows if value is not None]


def write_page(template: str, path: str | os.PathLike[str], data: Mapping[str, Any], **shown: Any) -> None:
    """Write a page from a template.

    Args:
        template: its name in ``templates/``.
        path: the file.
        data: what the page's script draws.
        shown: the template's variables; their markup is escaped.

    Raises:
        InputError: the file can't be written.
    """
    text = _environment().get_template(template).render(data=strict(data), **shown)
    with replacing(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


@cache
def _environment() -> Environment:
    found = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.policies["json.dumps_kwargs"] = {"allow_nan": False, "ensure_ascii": False}
    return found
