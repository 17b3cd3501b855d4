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

from dataclasses import dataclass, replace
from typing import Any

from monailabel.interfaces.datastore import Datastore, DefaultLabelTag

from monailabel_app.label_info import Names, read_names
from monailabel_app.request_errors import RequestError
from scripts.datasets import MODALITIES

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
    names = read_names(_info(datastore.get_label_info(label_id, tag))) if label else {}
    return Study(
        id=study,
        image=str(datastore.get_image_uri(study)),
        modality=MODALITIES.get(told, modality),
        label=str(label) or None,
        names=tuple(sorted(names.items())),
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
    """Return name -> value over all final labels, the first value of a name."""
    found: dict[str, int] = {}
    for study in labelled_studies(datastore, modality):
        for value, name in study.names:
            found.setdefault(name, value)
    return found


def _info(info: Any) -> dict[str, Any]:
    """Return an info with what the client sent as ``params``, where a client or this app nested it."""
    info = info if isinstance(info, dict) else {}
    nested = info.get("params")
    return {**(nested if isinstance(nested, dict) else {}), **info}
