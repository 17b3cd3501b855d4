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
"""What people look at: a picture and a web page of the registration."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from scripts.data.case import Case
from scripts.transforms.outputs.base import Output
from scripts.visualize.html_report import PAIR_PAGE, write_pair_page
from scripts.visualize.overview import draw_overview


class SaveOverview(Output):
    """A picture of the registration in three planes."""

    name = "overview"
    files = ("overview.png",)

    def write(self, data: Case, folder: Path) -> Iterable[str]:
        """Draw and write."""
        draw_overview(data, folder / self.files[0])
        return self.files


class SavePage(Output):
    """A web page of the registration that opens from the disk."""

    name = "page"
    files = (PAIR_PAGE,)

    def write(self, data: Case, folder: Path) -> Iterable[str]:
        """Draw and write."""
        write_pair_page(data, folder / self.files[0])
        return self.files
