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
"""A local datastore that refuses ids which are paths, and files that are no usable images or labels.

MONAI Label joins ids and tags into paths unchecked, and stores whatever is uploaded.
"""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path
from typing import Any

import itk
import numpy as np
from monailabel.datastore.local import LocalDatastore

from monailabel_app.label_info import check_label_info, number_saved
from monailabel_app.label_numbers import MOST_NUMBER, label_type
from monailabel_app.request_errors import RequestError, check_id, forgotten_if_refused, is_id, plain_errors
from monailabel_app.uploads import EXTENSIONS, MAX_BYTES, check_image_file, check_volume_file
from scripts.data.reading import read_volume

logger = logging.getLogger(__name__)

_passed_over: set[str] = set()  # said once
GRID_TOLERANCE = 1e-3  # mm: files of different formats round geometry differently


class CheckedDatastore(LocalDatastore):
    """MONAI Label's local datastore, with checks before anything is stored.

    Args:
        datastore_path: folder of the studies.
        max_bytes: of an uploaded file, unpacked.
        options: of MONAI Label's datastore.
    """

    def __init__(self, datastore_path: str, max_bytes: int = MAX_BYTES, **options: Any) -> None:
        self.max_bytes = max_bytes
        super().__init__(datastore_path, **options)

    def list_images(self) -> list[str]:
        """Return the ids; files in the folder whose names can't be ids are passed over."""
        return [name for name in super().list_images() if self._is_usable(name)]

    def get_labeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        """Return the ids with a final label."""
        return [name for name in super().get_labeled_images(label_tag, labels) if self._is_usable(name)]

    def get_unlabeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        """Return the ids without a final label."""
        return [name for name in super().get_unlabeled_images(label_tag, labels) if self._is_usable(name)]

    def _is_usable(self, name: str) -> bool:
        if is_id(name):
            return True
        if name not in _passed_over:
            _passed_over.add(name)
            logger.warning("the file '%s' of the studies is passed over: its name can't be an id; rename it", name)
        return False

    def add_image(self, image_id: str, image_filename: str, image_info: dict[str, Any]) -> str:
        """Store an image.

        Raises:
            RequestError: an id that is a path or taken, a format that is not known, or a file that can't be read.
        """
        with forgotten_if_refused(image_filename):
            name = check_id("image", image_id or self._to_id(image_filename.rsplit("/", 1)[-1])[0])
            if name in self.list_images():
                raise RequestError(f"image: '{name}' is there already; DELETE it first, or choose another id", 409)
            check_image_file("image", image_filename, self.max_bytes)
            return str(super().add_image(name, image_filename, image_info))

    def save_label(self, image_id: str, label_filename: str, label_tag: str, label_info: dict[str, Any]) -> str:
        """Store the label of an image; a value that is named ``label_N`` gets the number N.

        Raises:
            RequestError: an unknown image, a tag that is a path, a file that can't be read, values that are not whole
                numbers, another grid than the image's, a wrong ``label_info``, or two structures of one number.
        """
        with forgotten_if_refused(label_filename), tempfile.TemporaryDirectory(prefix="label-") as folder:
            label = self._check_label(image_id, label_filename, label_tag, label_info)
            given = itk.array_view_from_image(label)
            voxels, info = number_saved(image_id, given, label_info or {})
            path = label_filename
            if voxels is not given:
                path = str(Path(folder) / Path(label_filename).name)
                image = itk.image_from_array(voxels.astype(label_type(np.unique(voxels), None, given.dtype)))
                image.CopyInformation(label)
                itk.imwrite(image, path, compression=True)
                logger.info("the label of '%s' got the numbers of its names", image_id)
            saved = str(super().save_label(image_id, path, label_tag, info))
        # one of another format would come back when this one is removed
        kept = Path(self.get_label_uri(image_id, label_tag))
        for extension in EXTENSIONS:
            other = kept.with_name(f"{image_id}{extension[1:]}")
            if other != kept:
                other.unlink(missing_ok=True)
        return saved

    def _check_label(self, image_id: str, path: str, tag: str, info: dict[str, Any]) -> Any:
        """Return the label as an ITK image."""
        self._known(image_id)
        check_id("tag", tag)
        check_label_info(info or {})
        label = check_volume_file("label", path, self.max_bytes)
        values = itk.array_view_from_image(label)
        if values.dtype.kind == "f" and not np.array_equal(values, np.round(values)):
            raise RequestError("label: its values are not all whole numbers; save a label map, not probabilities")
        if values.min() < 0:
            raise RequestError(f"label: it has the value {values.min()}; label values are 0 and above")
        if values.max() > MOST_NUMBER:
            raise RequestError(f"label: it has the value {values.max():.0f}; label values are at most {MOST_NUMBER}")
        uri = self.get_image_uri(image_id)
        with plain_errors({uri: image_id}):
            image = read_volume(uri).image
        if not same_grid(image, label):
            raise RequestError(
                f"label: its grid ({_size(label)} voxels) is not that of '{image_id}' ({_size(image)} voxels) in size,"
                " spacing, origin or direction; resample the label onto the image"
            )
        return label

    def remove_image(self, image_id: str) -> None:
        """Remove an image with its labels."""
        self._known(image_id)
        super().remove_image(image_id)

    def remove_label(self, label_id: str, label_tag: str) -> None:
        """Remove a label."""
        self._known(label_id, label_tag)
        super().remove_label(label_id, label_tag)

    def update_image_info(self, image_id: str, info: dict[str, Any]) -> None:
        """Add to the info of an image."""
        self._known(image_id)
        super().update_image_info(image_id, info)

    def update_label_info(self, label_id: str, label_tag: str, info: dict[str, Any]) -> None:
        """Add to the info of a label."""
        self._known(label_id, label_tag)
        check_label_info(info)
        super().update_label_info(label_id, label_tag, info)

    def _known(self, image_id: str, tag: str | None = None) -> None:
        check_id("image", image_id)
        if image_id not in self.list_images():
            raise RequestError(f"image: there is no study '{image_id}'", 404)
        if tag is not None and not self.get_label_uri(image_id, check_id("tag", tag)):
            raise RequestError(f"label: '{image_id}' has no label with the tag '{tag}'", 404)


def same_grid(image: Any, other: Any) -> bool:
    """Return whether two ITK images have the same voxels at the same places, to :data:`GRID_TOLERANCE`."""
    if itk.size(image) != itk.size(other):
        return False
    last = [int(n) - 1 for n in itk.size(image)]
    corners = [[last[axis] if (corner >> axis) & 1 else 0 for axis in range(3)] for corner in range(8)]
    points = [np.array([list(i.TransformIndexToPhysicalPoint(corner)) for corner in corners]) for i in (image, other)]
    return bool(np.abs(points[0] - points[1]).max() < GRID_TOLERANCE)


def _size(image: Any) -> str:
    return " x ".join(str(int(n)) for n in itk.size(image))
