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
"""What every output of a case declares: its switch in the config's group ``save``, and the files that it writes."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from scripts.data.case import Case, CaseFiles
from scripts.data.nifti_writing import write_nifti
from scripts.utils.tensors import plain

KINDS: list[type[Output]] = []


class Output:
    """One kind of output.

    A subclass that has a ``name`` is known to :class:`scripts.transforms.outputs.save.SaveOutputsd`.
    """

    name: ClassVar[str]
    """Switch in the group ``save``; several outputs may share one."""
    files: ClassVar[tuple[str, ...]]
    """Names of the files or folders that it writes; ``*`` stands for what differs from case to case."""
    runs_alone: ClassVar[bool] = False
    """Whether it runs before all others, which might take the space on the disk that it has found."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Register the kind."""
        super().__init_subclass__(**kwargs)
        if "name" in cls.__dict__:
            KINDS.append(cls)

    def check(self, case: CaseFiles) -> None:
        """Refuse a case that this output can't be made of, before any work.

        Raises:
            InputError: one line.
        """

    def write(self, data: Case, folder: Path) -> Iterable[str]:
        """Write files into the folder and return their names; nothing where the case lacks what it takes."""
        raise NotImplementedError


def write_on_fixed_grid(path: Path, values: np.ndarray, data: Case) -> None:
    """Write values (I, J, K) on the fixed image's grid as NIfTI."""
    affine = plain(data["fixed"].affine).double().numpy()
    write_nifti(path, [values], affine, xform_code=fixed_xform_code(data))


def fixed_xform_code(data: Case) -> int:
    """Return NIfTI's code of the world that the fixed image lies in, which results on its grid share."""
    return int(data["fixed"].meta.get("xform_code", 1))
