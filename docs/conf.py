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
"""Settings of the documentation site: ``make docs``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "docs" / "_ext")]

project = "uniGradICON MONAI Bundle"
author = "uniGradICON bundle contributors"
project_copyright = author
release = str(json.loads((ROOT / "configs" / "metadata.json").read_text(encoding="utf-8"))["version"])

extensions = [
    "myst_nb",  # brings myst_parser
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "config_reference",
    "error_reference",
]
exclude_patterns = ["_ext", "_build", "**/.ipynb_checkpoints"]

myst_enable_extensions = ["amsmath", "deflist", "dollarmath"]
myst_heading_anchors = 4  # GitHub's slugs, so that a link to a section works there and here, and is checked
nb_execution_mode = "off"
smartquotes = False  # options and values stay as they are typed

napoleon_google_docstring = True
napoleon_numpy_docstring = False
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_type_aliases = {"Image": "Image"}
nitpicky = True  # docstrings' references are checked, but for those to other packages and to constants: no targets here
nitpick_ignore_regex = [
    (
        "py:class",
        r"(torch|numpy|monai|collections|pathlib|os)\..+|Tensor|Image|Header|scripts\.networks\.checkpoints\.Network",
    ),
    ("py:class", r"scripts\.data\.itk_resampling\.Grid"),
    ("py:data", r"[A-Z_]+"),
]

html_theme = "furo"
html_title = f"{project} {release}"
html_copy_source = False
copybutton_prompt_text = r"\$ |>>> "
copybutton_prompt_is_regexp = True

linkcheck_timeout = 20
linkcheck_retries = 2


def _with_results(app: Any, page: str, source: list[str]) -> None:
    """Show the tutorial as it was run last (make output/tutorial/tutorial.ipynb), if that is what it is now."""
    ran = ROOT / "output" / "tutorial" / "tutorial.ipynb"
    if page == "tutorial" and ran.is_file():
        app.env.note_dependency(str(ran))
        text = ran.read_text(encoding="utf-8")
        cells = [[cell["source"] for cell in json.loads(each)["cells"]] for each in (text, source[0])]
        if cells[0] == cells[1]:
            source[0] = text


def setup(app: Any) -> None:
    """Register what this file adds."""
    app.connect("source-read", _with_results)
