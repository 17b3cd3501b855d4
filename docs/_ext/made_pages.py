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
"""Pages of which a part is made when the site is built: a line of the page stands for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sphinx.application import Sphinx


def fill(app: Sphinx, page: str, place: str, make: Callable[[], str]) -> dict[str, Any]:
    """Put made Markdown into a page, at each build anew: what it is made of are no files that Sphinx watches.

    Args:
        app: the build.
        page: name of the page, without its ending.
        place: the line of the page that stands for the text.
        make: returns the text.

    Returns:
        what the ``setup`` of an extension returns.
    """

    def insert(_: Sphinx, docname: str, source: list[str]) -> None:
        if docname == page:
            source[0] = source[0].replace(place, make())

    app.connect("source-read", insert)
    app.connect("env-get-outdated", lambda *_: [page])
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
