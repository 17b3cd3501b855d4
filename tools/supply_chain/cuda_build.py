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
"""Tell whether the installed torch is a build with CUDA: exit status 0 if it needs requirements-cuda.lock, else 1.

Its metadata tells, by what it asks for: torch with CUDA can't be imported before NVIDIA's libraries are there.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib import metadata

from tools.supply_chain.locks import CUDA_LOCK, normalized, read_pins


def needs_cuda(requirements: Iterable[str], cuda_names: Iterable[str]) -> bool:
    """Tell whether one of torch's requirements that holds on this machine is among the packages for CUDA.

    Args:
        requirements: of torch's metadata, as in ``Requires-Dist``.
        cuda_names: normalized names.
    """
    from packaging.requirements import Requirement  # comes with requirements.lock

    wanted = set(cuda_names)
    parsed = (Requirement(text) for text in requirements)
    return any(
        normalized(each.name) in wanted and (each.marker is None or each.marker.evaluate({"extra": ""}))
        for each in parsed
    )


if __name__ == "__main__":
    raise SystemExit(0 if needs_cuda(metadata.requires("torch") or [], read_pins(CUDA_LOCK)) else 1)
