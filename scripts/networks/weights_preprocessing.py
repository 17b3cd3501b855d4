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
"""The preprocessing that weights were made for: stored with them, followed by whatever uses them.

A network has learned from images that were prepared in one way. Training stores that way in its checkpoints
(``network`` of last.pt and best.pt, the metadata of models/model.pt, the facts of an exported file), and training,
inference and export take it from there unless an option says otherwise.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from scripts.networks.architectures import architecture_of
from scripts.networks.checkpoint_files import Checkpoint, read_checkpoint
from scripts.networks.checkpoints import DEFAULT_MODEL, find_weights
from scripts.utils.errors import InputError
from scripts.utils.paths import is_absent

logger = logging.getLogger(__name__)

DEFAULT_WIDTHS = ([2, 16, 32, 64], [16, 16, 32])  # of the default weights, and of what was fine-tuned from them


class Preprocessing(NamedTuple):
    """How images are prepared for a network; see :mod:`scripts.transforms.intensity`."""

    match_orientation: bool = True
    """Both images are turned by whole axes to the same orientation (LPS)."""
    ct_window: Sequence[float] = [-1000.0, 1000.0]
    """Lower and upper end of CT, HU."""
    mr_percentiles: Sequence[float] = [0.0, 99.0]
    """Lower and upper end of anything else, percent."""

    def facts(self) -> dict[str, Any]:
        """Return plain values, as checkpoints store them."""
        return {
            "match_orientation": self.match_orientation,
            "ct_window": [float(end) for end in self.ct_window],
            "mr_percentiles": [float(end) for end in self.mr_percentiles],
        }


def recorded_preprocessing(
    model: str, ckpt_path: str | Path | None = None, bundle_root: str | Path = "."
) -> dict[str, Any]:
    """Return what a file of weights records, or what is known of weights that record nothing.

    Without a network images are turned. Published weights, and others of their size, were trained on images as they
    are stored. Checkpoints of earlier versions that have the size of the default weights came from these, which are
    made for turned images.

    Args:
        model: see :func:`scripts.networks.checkpoints.find_weights`, as the next two.
        ckpt_path: own weights; they win over ``model``.
        bundle_root: folder that holds models/.

    Returns:
        those of the fields of :class:`Preprocessing` that are known.
    """
    if is_absent(ckpt_path) and model in ("none", DEFAULT_MODEL):
        known = {"match_orientation": True}
    else:
        known = {"match_orientation": False}
    try:
        path = None if is_absent(ckpt_path) and model != DEFAULT_MODEL else find_weights(model, ckpt_path, bundle_root)
    except FileNotFoundError:  # a bundle can be inspected without its weights; loading them will say so
        path = None
    if path is None:
        return known
    checkpoint = read_checkpoint(path)
    if "match_orientation" in checkpoint.preprocessing:
        return checkpoint.preprocessing
    return {**checkpoint.preprocessing, "match_orientation": _guess(path, checkpoint)}


def _guess(path: Path, checkpoint: Checkpoint) -> bool:
    """Return whether weights that do not record it are made for turned images, and say so."""
    found = architecture_of(checkpoint.state)
    is_default = (found.down_channels, found.up_channels) == DEFAULT_WIDTHS
    logger.info(
        "weights %s do not record whether images are to be turned alike: %s; --match_orientation %s does the opposite",
        *(path, "they are turned, as for the default weights" if is_default else "they are left as they are stored"),
        not is_default,
    )
    return is_default


def choose_preprocessing(
    model: str,
    ckpt_path: str | Path | None = None,
    bundle_root: str | Path = ".",
    match_orientation: bool | str | None = None,
    ct_window: Sequence[float] | None = None,
    mr_percentiles: Sequence[float] | None = None,
    exported: Any = None,
) -> Preprocessing:
    """Return how images are prepared: as options say, else as the weights were made for; warns where these differ.

    Args:
        model: see :func:`recorded_preprocessing`, as the next two.
        ckpt_path: own weights; they win over ``model``.
        bundle_root: folder that holds models/.
        match_orientation: True, False, or None ("auto") for that of the weights.
        ct_window: HU, or None for that of the weights.
        mr_percentiles: percent, or None for those of the weights.
        exported: :class:`scripts.networks.exported_network.ExportedNetwork`, whose facts win over those of ``model``
            and ``ckpt_path``.

    Raises:
        InputError: ``match_orientation`` is something else, one of the others is no increasing pair of numbers, or the
            file of weights can't be read.
    """
    if match_orientation == "auto":
        match_orientation = None
    if match_orientation is not None and not isinstance(match_orientation, bool):
        raise InputError(f"match_orientation: expected True, False or null, got {match_orientation!r}")
    given = {"match_orientation": match_orientation, "ct_window": ct_window, "mr_percentiles": mr_percentiles}
    given = {name: value for name, value in given.items() if value is not None}
    recorded: Mapping[str, Any] = getattr(exported, "preprocessing", {})
    if "match_orientation" not in recorded:
        recorded = {**recorded_preprocessing(model, ckpt_path, bundle_root), **recorded}
    has_weights = exported is not None or model != "none" or not is_absent(ckpt_path)
    for name in given if has_weights else ():
        if name in recorded and _differ(given[name], recorded[name]):
            logger.warning(
                "%s %s differs from the %s that the weights were made for; leave the option out to follow the weights",
                *(name, given[name], recorded[name]),
            )
    chosen: dict[str, Any] = {**recorded, **given}
    # lists of floats, as checkpoints and reports hold them: a resumed cohort compares the two
    for name in ("ct_window", "mr_percentiles"):
        if name in chosen:
            chosen[name] = _increasing(name, chosen[name])
    return Preprocessing(**chosen)


def _increasing(name: str, ends: Sequence[float]) -> list[float]:
    """Return two increasing numbers, or say in words what came instead."""
    try:
        lower, upper = (float(value) for value in ends)
    except (TypeError, ValueError):
        raise InputError(f"{name} must be two numbers, for instance --{name} '[0, 100]', got {ends!r}") from None
    if not lower < upper:
        raise InputError(f"{name} must be a lower and a higher number, got {list(ends)}")
    return [lower, upper]


def _differ(given: Any, recorded: Any) -> bool:
    if isinstance(recorded, bool):
        return bool(given) != recorded
    try:
        return [float(end) for end in given] != [float(end) for end in recorded]
    except (TypeError, ValueError):  # no numbers: refused below
        return False
