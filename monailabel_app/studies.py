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
"""Studies of a datastore: an image, its label if it has one, and what is known about both."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import itk
import numpy as np
from monailabel.interfaces.datastore import Datastore, DefaultLabelTag

from monailabel_app.label_info import read_names, repeated_name
from monailabel_app.label_numbers import Labelled, Names, number_of_name
from monailabel_app.request_errors import RequestError, plain_errors
from scripts.data.cases import MODALITIES
from scripts.data.reading import read_volume

logger = logging.getLogger(__name__)

MOST_READ = 20  # label files that one call of all_names reads; what was read is remembered
_KNOWN: dict[tuple[str, int, int], frozenset[int]] = {}  # file, time and size -> values
FINAL = DefaultLabelTag.FINAL.value  # corrected by a person, as opposed to "original"


@dataclass(frozen=True)
class Study:
    """One study; paths are of the server."""

    id: str
    image: str
    modality: str
    """ct or mr."""
    label: str | None = None
    """The final label's file."""
    names: tuple[tuple[int, str], ...] = ()
    """Values and names of the label."""
    repeated: str | None = None
    """A name that two of its values share."""

    def label_names(self) -> Names:
        """Return value -> name."""
        return dict(self.names)

    def of_modality(self, modality: str | None) -> Study:
        """Return the study with another modality, if one is given."""
        return self if modality is None else replace(self, modality=modality)


def find_study(datastore: Datastore, study: str, option: str, modality: str, tag: str = FINAL) -> Study:
    """Return a study by its id.

    Args:
        datastore: to look in.
        study: the id.
        option: for the message.
        modality: if the image's info does not say.
        tag: of the label to take.

    Raises:
        RequestError: it is not in the datastore.
    """
    if study not in datastore.list_images():
        raise RequestError(f"{option}: there is no study '{study}'", 404)
    info = {key.lower(): value for key, value in _info(datastore.get_image_info(study)).items()}
    told = str(info.get("modality", modality)).lower()
    label_id = datastore.get_label_by_image_id(study, tag)  # a DICOMweb server's labels have ids of their own
    label = datastore.get_label_uri(label_id, tag) if label_id else ""
    label_info = _info(datastore.get_label_info(label_id, tag)) if label else {}
    return Study(
        id=study,
        image=str(datastore.get_image_uri(study)),
        modality=MODALITIES.get(told, modality),
        label=str(label) or None,
        names=tuple(sorted(read_names(label_info).items())),
        repeated=repeated_name(label_info),
    )


def labelled_studies(datastore: Datastore, modality: str, without: str | None = None) -> list[Study]:
    """Return the studies with a final label, in the order of their ids.

    Args:
        datastore: to look in.
        modality: of images whose info does not say.
        without: id of a study to leave out.
    """
    ids = sorted(study for study in datastore.get_labeled_images() if study != without)
    found = [find_study(datastore, study, "moving", modality) for study in ids]
    return [study for study in found if study.label]


def all_names(datastore: Datastore, modality: str) -> dict[str, int]:
    """Return name -> value over all final labels, the first value of a name; ``label_N`` -> N where there is no name.

    Viewers offer segments for what is listed here. At most :data:`MOST_READ` files are read for it: where more were
    never read, the values of the others are listed by later calls.
    """
    studies = labelled_studies(datastore, modality)
    found: dict[str, int] = {}
    for study in studies:
        for value, name in study.names:
            number = number_of_name(name)
            found.setdefault(name if number is None else f"label_{number}", value if number is None else number)
    named = set(found.values())
    unread = [study for study in studies if _version(str(study.label)) not in _KNOWN]
    for study in [study for study in studies if study not in unread] + unread[:MOST_READ]:
        try:
            values = label_values(study) - set(study.label_names())
        except RequestError as error:
            logger.warning("the names of the label of '%s' are left out: %s", study.id, error.detail)
            continue
        for value in sorted(values - named):
            found.setdefault(f"label_{value}", value)
    return found


def label_values(study: Study) -> frozenset[int]:
    """Return the values of a study's label without 0; remembered until the file changes.

    Raises:
        RequestError: it can't be read, or has values that are not whole numbers.
    """
    path = str(study.label)
    key = _version(path)
    if key not in _KNOWN:
        with plain_errors({path: f"label of {study.id}"}):
            values = np.unique(itk.array_view_from_image(read_volume(path).image))
        if not np.array_equal(values, np.round(values)):
            raise RequestError(f"the label of '{study.id}' has values that are not whole numbers; save a label map")
        _KNOWN[key] = frozenset(int(value) for value in values) - {0}
    return _KNOWN[key]


def structures(studies: Sequence[Study]) -> list[Labelled]:
    """Return the structures of labelled studies, which can be given one numbering.

    Raises:
        RequestError: a label can't be read.
    """
    return [Labelled(study.id, label_values(study), study.label_names()) for study in studies]


def check_distinct(studies: Sequence[Study]) -> None:
    """Refuse labels in which two structures share a name: which one another study means can't be told.

    Raises:
        RequestError: naming study and name.
    """
    for study in studies:
        if study.repeated is not None:
            raise RequestError(
                f"the label of '{study.id}' has two structures named '{study.repeated}'; give each a name of its own"
            )


def _version(path: str) -> tuple[str, int, int]:
    try:
        stat = Path(path).stat()
    except OSError:  # removed meanwhile
        return path, 0, 0
    return path, stat.st_mtime_ns, stat.st_size


def _info(info: Any) -> dict[str, Any]:
    """Return an info with what the client sent as ``params``, where a client or this app nested it."""
    info = info if isinstance(info, dict) else {}
    nested = info.get("params")
    return {**(nested if isinstance(nested, dict) else {}), **info}
