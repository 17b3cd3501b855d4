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
"""Load the volumes of a case: the MONAI transform over :mod:`scripts.data.reading`."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Hashable, Mapping
from typing import Any

from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import LoadImage, MapTransform

from scripts.data.image_file import Volume, open_image
from scripts.data.opened_files import opened_file
from scripts.data.reading import VolumeReader
from scripts.utils.errors import InputError

logger = logging.getLogger(__name__)


class LoadVolumesd(MapTransform):
    """Load 3-D volumes as float32 MetaTensors (1, I, J, K) with their RAS affine.

    Labels whose numbers float32 would round are float64. MONAI's LoadImage with :class:`VolumeReader` and nothing else:
    stock ``LoadImaged`` goes on to other readers, with other geometry, when one refuses a file, and forgets the type on
    disk. ``.meta`` holds that type (``original_dtype``), and its header's ``xform_code`` and ``warnings``; warnings are
    logged, too.
    The optional case entries ``frame``, ``fixed_frame`` and ``moving_frame`` select one volume of 4-D files,
    ``fixed_series`` and ``moving_series`` one DICOM series of a folder. Headers that were read when the case was
    checked (:mod:`scripts.data.opened_files`) are not read again, and a 4-D file of two frames is read once. Volumes
    in memory (:mod:`scripts.data.memory_images`) pass.

    Args:
        keys: case entries that are paths; entries that a case lacks are skipped.
    """

    def __init__(self, keys: KeysCollection) -> None:
        super().__init__(keys, allow_missing_keys=True)
        self.loader = LoadImage(image_only=True, dtype=None, ensure_channel_first=True, expanduser=False)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Replace the paths by volumes."""
        result = dict(data)
        volumes_in_memory = [key for key in self.key_iterator(result) if isinstance(result[key], MetaTensor)]
        for key in volumes_in_memory:
            _say(key, result[key])
        files = {
            key: (str(result[key]), result.get(f"{key}_series"))
            for key in self.key_iterator(result)
            if key not in volumes_in_memory
        }
        uses = Counter(files.values())
        volumes: dict[tuple[str, Any], Volume] = {}
        for key, (path, series) in files.items():
            frame = result.get(f"{str(key).partition('_')[0]}_frame", result.get("frame"))
            try:
                if (path, series) not in volumes:
                    volumes[path, series] = (opened_file(result, str(key), path) or open_image(path, series)).read()
                is_label = str(key).endswith("label")
                # no name for the reader: it would hold the file's voxels while those of the next file are read
                result[key] = self.loader(
                    path, reader=VolumeReader(frame, series, is_label, volume=volumes[path, series])
                )
            except InputError as error:
                raise type(error)(f"{key}: {error}") from error
            _say(key, result[key])
            uses[path, series] -= 1
            if not uses[path, series]:
                del volumes[path, series]
        return result


def _say(key: Hashable, volume: MetaTensor) -> None:
    for line in volume.meta["warnings"]:
        logger.warning("%s: %s", key, line)
