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
"""What is asked of loaded volumes in many places: the file they came from, their shape as text, a new affine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from monai.data import MetaTensor

FROM_MEMORY = "from memory"  # in the place of a path


def with_affine(values: torch.Tensor, affine: torch.Tensor, like: MetaTensor) -> MetaTensor:
    """Return values (1, D, H, W) with a new affine and the rest of the meta data of ``like``, which is not changed."""
    volume = MetaTensor(values, meta=dict(like.meta))
    volume.affine = affine.clone()
    return volume


def source(volume: Any) -> str:
    """Return the path a loaded volume came from, quoted for messages."""
    return f"'{volume.meta.get('filename_or_obj', FROM_MEMORY)}'"


def shape_text(shape: Sequence[int]) -> str:
    """Return a shape as people write it, 4 x 5 x 6."""
    return " x ".join(str(int(size)) for size in shape)
