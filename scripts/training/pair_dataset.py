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
"""The data set of training and validation: images are preprocessed once and cached, pairs are put together from them.

Caching is MONAI's: ``CacheDataset`` (memory), ``PersistentDataset`` (disk) or ``Dataset`` (none).
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import numpy as np
import torch
from monai.data import CacheDataset, Dataset, PersistentDataset
from monai.data.utils import pickle_hashing
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset
from tqdm import tqdm

from scripts.data.synthetic import SyntheticPairs
from scripts.training.pair_sampling import PAIRS_PER_EPOCH, Draw, PairSet, build_sets
from scripts.training.preprocessing import unpack
from scripts.utils.errors import InputError, find_input_error
from scripts.utils.itk_modules import load_itk_modules
from scripts.utils.paths import absolute
from scripts.utils.suggestions import did_you_mean

logger = logging.getLogger(__name__)

LOOKED_AT = 3  # images, for their modality, where there is no cache
CACHES = ("memory", "disk", "none")
SYNTHETIC_SPACING_MM = 2.0  # of synthetic pairs, which have no world of their own


class PairDataset(TorchDataset):
    """Pairs of preprocessed images by number; number ``epoch * len + n`` is pair n of an epoch (from 0).

    An item holds tensors ``fixed_image, moving_image`` (1, D, H, W) float32 in [0, 1], ``fixed_affine,
    moving_affine`` (4, 4), voxel of that grid -> RAS mm, ``seed``, and the texts ``pair`` and ``set``. Where any set of
    the data has them, all items hold: ``*_similarity`` (another contrast to compare), ``*_mask`` (where the similarity
    counts; ones by default), ``*_label`` (integers; zeros by default). Validation items also hold ``*_landmarks``
    (N, 3), RAS mm, where given.

    Args:
        data: records of :mod:`scripts.training.lists`.
        transform: preprocessing of one image (keys image, mask, label, landmarks), ending in
            :class:`scripts.training.preprocessing.PackImaged`.
        spatial_shape: (D, H, W) of the network's grid, for synthetic pairs.
        pairs_per_epoch: of each set that does not say; None for validation: each pair once.
        cache: "memory", "disk" or "none".
        cache_dir: folder of the disk cache.
        seed: of the draws.
        mask_use: "input" or "loss", as in the preprocessing.
        max_labels: of a training pair, at most this many labels, drawn anew each time, are handed on (the Dice loss
            needs memory for each); 0 leaves out labels. Validation gets all.
        num_workers: threads that fill the cache.
        device: where synthetic pairs are made; items are on the CPU.
        progress: show a progress bar while the cache fills.

    Raises:
        InputError: an image can't be used, or an option is out of range.
    """

    def __init__(
        self,
        data: Sequence[Mapping[str, Any]],
        transform: Callable,
        spatial_shape: Sequence[int],
        pairs_per_epoch: int | None = PAIRS_PER_EPOCH,
        cache: str = "memory",
        cache_dir: str | None = None,
        seed: int = 0,
        mask_use: str = "input",
        max_labels: int = 0,
        num_workers: int = 2,
        device: torch.device | str = "cpu",
        progress: bool = True,
    ) -> None:
        if cache not in CACHES:
            raise InputError(f"cache: expected one of {', '.join(CACHES)}, got '{cache}'")
        self.sets, records = build_sets(data, pairs_per_epoch, prefer_labels=max_labels > 0)
        self.is_training = pairs_per_epoch is not None
        self.shape = tuple(int(n) for n in spatial_shape)
        self.seed, self.max_labels = int(seed), int(max_labels)
        self.ends = np.cumsum([pair_set.size for pair_set in self.sets], dtype=int)
        self.has_masks = mask_use == "loss" and any("mask" in record for record in records)
        self.has_labels = self._any_pair_has("label", records) and (max_labels > 0 or not self.is_training)
        self.has_landmarks = not self.is_training and self._any_pair_has("landmarks", records)
        self.generators = {
            pair_set.name: SyntheticPairs(self.shape, device=device, **_generator_options(pair_set.synthetic))
            for pair_set in self.sets
            if pair_set.synthetic is not None
        }
        made = any(generator.same_contrast < 1 for generator in self.generators.values())
        self.has_contrasts = made or any(_several_contrasts(record) for record in data)
        self.images, doubts = _cached(records, transform, cache, cache_dir, num_workers, progress)
        _warn_of_modalities(self.sets, records, doubts)
        if self.has_contrasts and cache != "none":  # else when a pair is made
            for contrasts in (subject.contrasts for pair_set in self.sets for subject in pair_set.subjects()):
                _check_same_grid(*(self.images[number] for number in contrasts.values()))

    def _any_pair_has(self, key: str, records: Sequence[Mapping[str, Any]]) -> bool:
        """Tell whether a pair has labels or landmarks, in both images; of random pairs, whether an image has."""
        if any(pair_set.synthetic is not None for pair_set in self.sets):
            return True
        if self.is_training:
            return any(key in record for record in records)
        draws = (self.draw(number) for number in range(len(self)))
        return any(key in records[draw.fixed_anatomy] and key in records[draw.moving_anatomy] for draw in draws)

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def draw(self, index: int) -> Draw:
        """Return what pair ``index`` is made of."""
        epoch, place = divmod(int(index), len(self))
        number = int(np.searchsorted(self.ends, place, side="right"))
        pair_set = self.sets[number]
        return pair_set.draw(self.seed, number, epoch, place - int(self.ends[number]) + pair_set.size)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return pair ``index``.

        Raises:
            InputError: an image can't be used.
        """
        try:
            return self._make(index)
        except Exception as error:
            known = find_input_error(error)
            if known is None or known is error:
                raise
            raise type(known)(str(known)) from error  # a process of a DataLoader hands on the outermost error alone

    def _make(self, index: int) -> dict[str, Any]:
        draw = self.draw(index)
        item = self._synthetic(draw) if draw.fixed < 0 else self._real(draw)
        item |= {"set": draw.set_name, "seed": torch.tensor(draw.seed)}
        for side in ("fixed", "moving"):
            if self.has_contrasts:
                item.setdefault(f"{side}_similarity", item[f"{side}_image"])
            if self.has_masks:
                item.setdefault(f"{side}_mask", torch.ones(1, *self.shape, dtype=torch.uint8))
            if self.has_labels:
                item.setdefault(f"{side}_label", torch.zeros(1, *self.shape, dtype=torch.int32))
            else:
                item.pop(f"{side}_label", None)
        if self.has_labels and self.is_training:
            random = np.random.default_rng(draw.seed)
            labels = _some_common_labels(item["fixed_label"], item["moving_label"], self.max_labels, random)
            item["fixed_label"], item["moving_label"] = labels
        return item

    def _real(self, draw: Draw) -> dict[str, Any]:
        item: dict[str, Any] = {}
        names = []
        sides = (
            ("fixed", draw.fixed, draw.fixed_similarity, draw.fixed_anatomy),
            ("moving", draw.moving, draw.moving_similarity, draw.moving_anatomy),
        )
        for side, seen, compared, anatomy in sides:
            image, anatomical = self.images[seen], self.images[anatomy]
            item[f"{side}_image"], item[f"{side}_affine"] = unpack(image["image"]), image["affine"]
            if self.has_contrasts:
                item[f"{side}_similarity"] = unpack(self.images[compared]["image"])
            if "mask" in image:
                item[f"{side}_mask"] = image["mask"]
            if "label" in anatomical:
                item[f"{side}_label"] = anatomical["label"].to(torch.int32)
            if "landmarks" in anatomical and not self.is_training:
                item[f"{side}_landmarks"] = anatomical["landmarks"]
            names.append(image["path"])
            _check_same_grid(image, self.images[compared], anatomical)
        item["pair"] = f"{names[1]} to {names[0]}"
        counts = [len(item.get(f"{side}_landmarks", ())) for side in ("fixed", "moving")]
        if 0 not in counts and counts[0] != counts[1]:
            raise InputError(
                f"landmarks: the pair {item['pair']} has {counts[1]} and {counts[0]} points; give the same places in"
                " the same order for both"
            )
        return item

    def _synthetic(self, draw: Draw) -> dict[str, Any]:
        pair = self.generators[draw.set_name](draw.seed)
        item: dict[str, Any] = {"pair": f"synthetic pair with seed {draw.seed}"}
        spacing = torch.tensor([SYNTHETIC_SPACING_MM] * 3 + [1.0], dtype=torch.float64)
        for side in ("fixed", "moving"):
            item[f"{side}_image"] = getattr(pair, side).cpu()
            item[f"{side}_label"] = getattr(pair, f"{side}_label").cpu().to(torch.int32)
            item[f"{side}_affine"] = torch.diag(spacing)
            if self.has_contrasts:
                item[f"{side}_similarity"] = getattr(pair, f"{side}_similarity").cpu()
            if not self.is_training:
                points = getattr(pair, f"{side}_points").cpu().double()
                item[f"{side}_landmarks"] = points * SYNTHETIC_SPACING_MM
        return item


def _generator_options(options: Mapping[str, Any]) -> dict[str, Any]:
    known = set(inspect.signature(SyntheticPairs).parameters) - {"spatial_shape", "device"}
    for name in options:
        if name not in known | {"pairs"}:
            hint = did_you_mean(name, known)
            raise InputError(f"synthetic: unknown option '{name}'{hint}; known: pairs, {', '.join(sorted(known))}")
    return {key: value for key, value in options.items() if key != "pairs"}


def _several_contrasts(record: Mapping[str, Any]) -> bool:
    images = (record, record.get("fixed", {}), record.get("moving", {}))
    return any(len(image.get("images", ())) > 1 for image in images if isinstance(image, Mapping))


def _check_same_grid(first: Mapping[str, Any], *others: Mapping[str, Any]) -> None:
    """Refuse contrasts of a subject that do not lie on one grid: what aligns one would not align the other."""
    for other in others:
        if not torch.allclose(first["affine"], other["affine"], rtol=0, atol=0.05):
            raise InputError(
                f"'{first['path']}' and '{other['path']}' are contrasts of one subject on different grids; resample"
                " them to one grid (aligned), or list them as subjects of their own"
            )


class _MemoryCache(CacheDataset):
    """MONAI's, filled by threads that have ended when it is full, or when an image can't be used.

    The threads of MONAI's own pool go on after an error; Python's end then breaks them off within ITK's code, which
    aborts the process.
    """

    def _fill_cache(self, indices: Any = None) -> list:
        numbers = range(self.cache_num) if indices is None else indices
        return _in_threads(self._load_cache_item, numbers, self.num_workers, self.progress)


def _in_threads(function: Callable[[int], Any], numbers: Sequence[int], workers: int | None, progress: bool) -> list:
    """Return a function's results in order; when one raises, those that run end first, and the others do not begin."""
    with ThreadPoolExecutor(max(1, workers or 1)) as pool:
        return list(tqdm(pool.map(function, numbers), total=len(numbers), desc="cache", disable=not progress))


def _cached(
    records: list[dict[str, Any]],
    transform: Callable,
    cache: str,
    cache_dir: str | None,
    num_workers: int,
    progress: bool,
) -> tuple[Dataset, dict[int, str]]:
    """Return the preprocessed images, and by number what makes their modality doubtful.

    Memory and disk caches are full when this returns, so that a bad file shows. Without a cache, the first images are
    looked at.
    """
    # a changed file must not be answered from the cache on disk
    stamped = [{**record, "modified": _modified(record)} for record in records]
    if records:
        load_itk_modules()  # before the threads that fill the cache, and the processes that load pairs
    if cache == "memory":
        images: Dataset = _MemoryCache(
            stamped, transform, num_workers=max(1, num_workers), progress=progress, copy_cache=False
        )
        return images, _doubts({number: images[number] for number in range(len(records))})
    if cache == "none" or not records:
        images = Dataset(stamped, transform)
        return images, _doubts({number: images[number] for number in range(min(LOOKED_AT, len(records)))})
    if not cache_dir:
        raise InputError("cache disk needs a folder: give --cache_dir FOLDER")
    images = PersistentDataset(stamped, transform, absolute(cache_dir), hash_transform=pickle_hashing)
    mine = range(idist.get_rank(), len(records), idist.get_world_size())

    def fill(number: int) -> dict[int, str]:  # and forget the image: all of them may not fit into memory
        return _doubts({number: images[number]})

    doubts = {
        number: text for found in _in_threads(fill, mine, num_workers, progress) for number, text in found.items()
    }
    idist.barrier()
    return images, doubts


def _doubts(images: Mapping[int, Mapping[str, Any]]) -> dict[int, str]:
    return {number: image["modality_doubt"] for number, image in images.items() if image.get("modality_doubt")}


def _warn_of_modalities(sets: Sequence[PairSet], records: Sequence[Mapping[str, Any]], doubts: dict[int, str]) -> None:
    """Say once for each data set how many of its images do not look like their modality."""
    for pair_set in sets:
        numbers = {number for subject in pair_set.subjects() for number in subject.contrasts.values()}
        found = sorted(numbers & set(doubts))
        if found:
            logger.warning(
                "data set '%s': %d of %d images do not look like their modality; the first, '%s', %s. Correct the"
                " modality in the list, or the files",
                *(pair_set.name, len(found), len(numbers), records[found[0]]["image"], doubts[found[0]]),
            )


def _modified(record: Mapping[str, Any]) -> str:
    paths = [Path(record[key]) for key in ("image", "mask", "label", "landmarks") if key in record]
    return " ".join(f"{path.stat().st_mtime_ns}:{path.stat().st_size}" for path in paths)


def _some_common_labels(
    fixed: Tensor, moving: Tensor, count: int, random: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Return both labels with at most ``count`` common ones, drawn at random and renumbered from 1, as uint8."""
    common = np.intersect1d(torch.unique(fixed).numpy(), torch.unique(moving).numpy())
    common = common[common > 0]
    chosen = np.sort(random.permutation(common)[: min(count, 255)])
    highest = max(int(fixed.max()), int(moving.max()), 0)
    table = torch.zeros(highest + 1, dtype=torch.uint8)
    table[torch.as_tensor(chosen, dtype=torch.long)] = torch.arange(1, len(chosen) + 1, dtype=torch.uint8)
    return table[fixed.clamp(min=0).long()], table[moving.clamp(min=0).long()]
