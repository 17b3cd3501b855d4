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
"""The images of a pair as other libraries have them in memory."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import itk
import nibabel as nib
import pytest

from scripts.transforms.load import LoadVolumesd


def images(pair: dict[str, str]) -> dict[str, str]:
    return {key: pair[key] for key in ("fixed", "moving")}


def kinds_of(paths: dict[str, str]) -> dict[str, tuple[Any, Any]]:
    """The known pair, oblique, anisotropic, on different grids: (moving, fixed) by the kind of image."""
    loaded = LoadVolumesd(["fixed", "moving"])(images(paths))
    readers: dict[str, Callable[[str], Any]] = {
        "ITK": itk.imread,
        "nibabel": nib.load,
        "SimpleITK": pytest.importorskip("SimpleITK").ReadImage,
    }
    with suppress(ImportError):
        readers["ANTs"] = importlib.import_module("ants").image_read
    kinds = {kind: (read(paths["moving"]), read(paths["fixed"])) for kind, read in readers.items()}
    return {**kinds, "MetaTensor": (loaded["moving"], loaded["fixed"])}
