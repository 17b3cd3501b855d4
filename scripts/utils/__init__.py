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
"""What everything stands on: one-line errors, files written whole or not at all, locks, paths, memory, seeds.

``errors``; ``atomic`` files; ``output_lock``, one run at a time in a folder; ``paths`` that users give;
``pipelining`` reads ahead and writes behind. Nothing here knows of images. It imports no other package of
``scripts``.
"""

from typing import TYPE_CHECKING

from scripts.utils.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from scripts.utils.pipelining import InBackground, ReadAhead, run_cases
    from scripts.utils.seeding import set_seed

__all__ = ["InBackground", "ReadAhead", "run_cases", "set_seed"]

_MODULES = {
    "InBackground": "pipelining",
    "ReadAhead": "pipelining",
    "run_cases": "pipelining",
    "set_seed": "seeding",
}

__getattr__ = lazy_exports(__name__, _MODULES)
