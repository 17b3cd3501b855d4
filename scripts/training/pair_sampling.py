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
"""Which pairs an epoch has: random pairs of images, given pairs and synthetic pairs, mixed set by set.

Nothing is remembered between draws: a pair follows from (seed, epoch, number in the epoch) alone, so that a resumed
run, any number of workers and any number of processes see the same pairs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from scripts.training.lists import PAIRINGS, image_record
from scripts.utils.errors import InputError

PAIRS_PER_EPOCH = 1000  # of each data set (uniGradICON)
SYNTHETIC_VALIDATION_PAIRS = 8
LABELLED_SHARE = 0.5  # of random pairs, at least, have labels in both images where labels are preferred
VALIDATION_SEED = 2**31  # synthetic validation pairs never are training pairs


class Subject(NamedTuple):
    """One image in all its contrasts, each an index into the list of images."""

    name: str
    contrasts: Mapping[str, int]
    has_label: bool = False


class Draw(NamedTuple):
    """One pair to be made; the images are indices into the list of images, -1 for a synthetic pair."""

    set_name: str
    fixed: int
    moving: int
    fixed_similarity: int
    """What the similarity is computed on: the same, or another contrast of the subject (multiGradICON)."""
    moving_similarity: int
    fixed_anatomy: int
    """Which image holds label and landmarks of the subject."""
    moving_anatomy: int
    seed: int
    """Of all that is random in this pair."""


class PairSet:
    """One data set: what can be drawn from it, and how many pairs an epoch has.

    Args:
        name: of the set.
        pairs: fixed and moving, if the pairs are given.
        subjects: if pairs are drawn from images.
        synthetic: options of the generator, for a set without images.
        pairing: "inter_subject" or "intra_subject", for ``subjects``.
        pairs_per_epoch: see the name; None for each pair once, in order (validation).
        prefer_labels: draw at least :data:`LABELLED_SHARE` of random pairs among the subjects with labels, where some
            have none: with a few of many, nearly no pair would have labels in both images.
    """

    def __init__(
        self,
        name: str,
        pairs: Sequence[tuple[Subject, Subject]] = (),
        subjects: Sequence[Subject] = (),
        synthetic: Mapping[str, Any] | None = None,
        pairing: str = PAIRINGS[0],
        pairs_per_epoch: int | None = PAIRS_PER_EPOCH,
        prefer_labels: bool = False,
    ) -> None:
        self.name, self.synthetic = name, synthetic
        self.pairs = list(pairs)
        self.is_random = pairs_per_epoch is not None
        # images of one subject stand together, in the order of the list
        groups: dict[str, list[Subject]] = {}
        for subject in subjects:
            groups.setdefault(subject.name, []).append(subject)
        self.groups = list(groups.values())
        if subjects and pairing == "intra_subject":
            self.groups = [group for group in self.groups if len(group) > 1]
            if not self.groups:
                raise InputError(f"data set '{name}': intra_subject pairs need a subject with two images; none has")
        self.is_intra = pairing == "intra_subject"
        if subjects and not self.is_intra and len(self.groups) < 2:
            raise InputError(f"data set '{name}': pairs need images of two subjects; it has {len(self.groups)}")
        if subjects and not self.is_random:
            self.pairs, self.groups = self._neighbors(), []
        if pairs_per_epoch is not None:
            self.size = pairs_per_epoch
        else:
            self.size = len(self.pairs) or int((synthetic or {}).get("pairs", SYNTHETIC_VALIDATION_PAIRS))

        self.labelled = _labelled(self.groups, self.is_intra) if prefer_labels and self.is_random else []

    def _neighbors(self) -> list[tuple[Subject, Subject]]:
        """Return the fixed validation pairs of a list of images: each with the next one."""
        chains = self.groups if self.is_intra else [[group[0] for group in self.groups]]
        return [(a, b) for chain in chains for a, b in pairwise(chain)]

    def subjects(self) -> list[Subject]:
        """Return all images, those of pairs among them."""
        return [subject for group in (*self.groups, *self.pairs) for subject in group]

    def draw(self, seed: int, set_number: int, epoch: int, number: int) -> Draw:
        """Return pair ``number`` of an epoch."""
        position = epoch * self.size + number
        random = np.random.default_rng([seed, set_number, position])
        pair_seed = int(random.integers(2**31)) + (0 if self.is_random else VALIDATION_SEED)
        if self.synthetic is not None:
            return Draw(self.name, -1, -1, -1, -1, -1, -1, pair_seed)
        if self.pairs and not self.is_random:
            fixed, moving = self.pairs[number]
        elif self.pairs:
            # each pair equally often: a new shuffle for each round through the list
            round_number, place = divmod(position, len(self.pairs))
            order = np.random.default_rng([seed, set_number, round_number, 1]).permutation(len(self.pairs))
            fixed, moving = self.pairs[order[place]]
        else:
            groups = self.labelled if self.labelled and random.random() < LABELLED_SHARE else self.groups
            fixed, moving = self._draw_of(groups, random)
        return self._choose_contrasts(fixed, moving, pair_seed, random)

    def _draw_of(self, groups: Sequence[Sequence[Subject]], random: np.random.Generator) -> tuple[Subject, Subject]:
        if self.is_intra:
            group = groups[int(random.integers(len(groups)))]
            first, second = (int(n) for n in random.choice(len(group), 2, replace=False))
            return group[first], group[second]
        one, other = (groups[int(n)] for n in random.choice(len(groups), 2, replace=False))
        return one[int(random.integers(len(one)))], other[int(random.integers(len(other)))]

    def _choose_contrasts(self, fixed: Subject, moving: Subject, seed: int, random: np.random.Generator) -> Draw:
        """Draw what the network sees of each, and one contrast that both have for the similarity."""
        seen = [_choice(subject.contrasts, random) for subject in (fixed, moving)]
        common = [name for name in fixed.contrasts if name in moving.contrasts]
        if len(fixed.contrasts) == 1 and len(moving.contrasts) == 1:
            compared = seen
        elif common:
            name = common[random.integers(len(common))]
            compared = [fixed.contrasts[name], moving.contrasts[name]]
        else:
            compared = [_choice(subject.contrasts, random) for subject in (fixed, moving)]
        anatomy = [next(iter(subject.contrasts.values())) for subject in (fixed, moving)]
        return Draw(self.name, seen[0], seen[1], compared[0], compared[1], anatomy[0], anatomy[1], seed)


def _labelled(groups: Sequence[Sequence[Subject]], is_intra: bool) -> list[list[Subject]]:
    """Return the subjects with labels, as groups that pairs can be drawn from; [] where all or too few have some."""
    found = [[subject for subject in group if subject.has_label] for group in groups]
    found = [group for group in found if len(group) > int(is_intra)]
    is_enough = len(found) > int(not is_intra)
    return found if is_enough and sum(map(len, found)) < sum(map(len, groups)) else []


def _choice(contrasts: Mapping[str, int], random: np.random.Generator) -> int:
    return list(contrasts.values())[random.integers(len(contrasts))]


def build_sets(
    records: Sequence[Mapping[str, Any]], pairs_per_epoch: int | None = PAIRS_PER_EPOCH, prefer_labels: bool = False
) -> tuple[list[PairSet], list[dict[str, Any]]]:
    """Return the data sets of records and the images to load, each once.

    Args:
        records: of :func:`scripts.training.lists.load_records`, or plain ``{"image": path, "label": path}``.
        pairs_per_epoch: of sets that do not say; None for validation, where each pair comes once.
        prefer_labels: see :class:`PairSet`.

    Returns:
        sets, and images with ``image``, ``image_modality`` and, where given, ``mask``, ``label``, ``landmarks``.
    """
    images: list[dict[str, Any]] = []
    known: dict[str, int] = {}

    def subject_of(record: Mapping[str, Any]) -> Subject:
        if "images" not in record:  # a flat list made by another program
            keys = ("subject", "image", "label", "mask", "modality")
            record = image_record({k: record[k] for k in keys if k in record}, Path(), "data")
        contrasts = {}
        for number, (contrast, path) in enumerate(record["images"].items()):
            # label and landmarks are loaded with the first contrast only: they belong to all of them
            kept = ("mask", "frame") if number else ("mask", "frame", "label", "landmarks", "landmark_space")
            item = {key: record[key] for key in kept if key in record}
            item |= {"image": path, "image_modality": record["modalities"][contrast]}
            key = repr(sorted(item.items()))
            if key not in known:
                known[key] = len(images)
                images.append(item)
            contrasts[contrast] = known[key]
        return Subject(record["subject"], contrasts, "label" in record)

    grouped: dict[str, list[Mapping[str, Any]]] = {}
    for record in records:
        grouped.setdefault(str(record.get("set", "images")), []).append(record)
    sets = []
    for name, members in grouped.items():
        first = members[0]
        count = None if pairs_per_epoch is None else int(first.get("pairs_per_epoch", pairs_per_epoch))
        given = [(subject_of(m["fixed"]), subject_of(m["moving"])) for m in members if "fixed" in m]
        subjects = [subject_of(m) for m in members if "images" in m or "image" in m]
        if given and subjects:
            raise InputError(f"data set '{name}' mixes images and pairs; make two data sets of them")
        pairing = first.get("pairing", PAIRINGS[0])
        sets.append(PairSet(name, given, subjects, first.get("synthetic"), pairing, count, prefer_labels))
    return sets, images
