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
"""What pydicom 2, which MONAI Label pins, and pydicom 3 name differently."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom import encaps
from pydicom.dataset import Dataset
from pydicom.uid import JPEGExtended12Bit

IS_OLD = int(pydicom.__version__.partition(".")[0]) < 3

if IS_OLD:
    from pydicom.pixel_data_handlers import apply_modality_lut
else:
    from pydicom.pixels import apply_modality_lut, get_decoder, pixel_array

__all__ = ["apply_modality_lut", "can_decode", "decode", "encoding", "fragment", "save_file", "set_encoding"]


def encoding(dataset: Any) -> tuple[Any, Any]:
    """Return whether a dataset that was read is of implicit VR, and little endian."""
    return (dataset.is_implicit_VR, dataset.is_little_endian) if IS_OLD else dataset.original_encoding


def set_encoding(dataset: Any, implicit: bool, little: bool) -> None:
    """Set what :func:`encoding` returns."""
    if IS_OLD:
        dataset.is_implicit_VR, dataset.is_little_endian = implicit, little
    else:
        dataset.set_original_encoding(implicit, little)


def can_decode(syntax: Any) -> bool:
    """Tell whether pydicom decodes a compressed transfer syntax without packages beside this bundle's."""
    # Pillow reads no JPEG of 12 bits, though pydicom lists it; with pydicom 2, GDCM decodes all
    return not IS_OLD and syntax != JPEGExtended12Bit and get_decoder(syntax).is_available


def decode(source: Dataset | str, index: int | None = None) -> np.ndarray:
    """Return stored numbers of all frames, or of one, with what lies in unused bits of uncompressed pixels."""
    if IS_OLD:
        dataset = pydicom.dcmread(source, force=True) if isinstance(source, str) else source
        return dataset.pixel_array
    if index is None:
        return pixel_array(source, raw=True, view_only=True, correct_unused_bits=False)
    return pixel_array(source, raw=True, index=index)


def fragment(dataset: Dataset, index: int) -> bytes:
    """Return the compressed bytes of a frame."""
    count = int(dataset.get("NumberOfFrames") or 1)
    if IS_OLD:
        return list(encaps.generate_pixel_data_frame(dataset.PixelData, count))[index]
    table = None
    if "ExtendedOffsetTable" in dataset:
        table = (dataset.ExtendedOffsetTable, dataset.ExtendedOffsetTableLengths)
    return encaps.get_frame(dataset.PixelData, index, number_of_frames=count, extended_offsets=table)


def save_file(dataset: Dataset, path: Path) -> None:
    """Write a dataset as a file with a preamble."""
    if IS_OLD:
        set_encoding(dataset, False, True)
        dataset.save_as(path, write_like_original=False)
    else:
        dataset.save_as(path, enforce_file_format=True)
