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
"""Options that were renamed: their old names work for one version, with a warning that names the new one."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from scripts.utils.errors import InputError

if TYPE_CHECKING:  # the command's help is quick without MONAI
    from monai.bundle import ConfigParser

logger = logging.getLogger(__name__)

# old: new; to be removed in the version after 0.11
NEW_NAMES = {
    "field_levels": "field::levels",
    "field_learning_rate": "field::learning_rate",
    "field_sigma": "field::sigma",
    "steps": "network_optimization::steps",
    "learning_rate": "network_optimization::learning_rate",
    "lncc_sigma": "network_optimization::sigma",
    "network_shape": "image_shape",
    "save_transforms": "save::transforms",
    "save_displacement": "save::displacement",
    "save_warped": "save::warped",
    "save_jacobian": "save::jacobian",
    "save_confidence": "save::confidence",
    "save_inconsistency": "save::inconsistency",
    "save_overview": "save::overview",
    "save_page": "save::page",
    "save_dicom": "save::dicom",
    "save_learn2reg": "save::learn2reg",
}


def old_names(ids: Iterable[str]) -> dict[str, str]:
    """Return the old names, with the new ones, that stand for options of a config.

    In training ``learning_rate`` and ``network_shape`` are other options, which keep their names.

    Args:
        ids: of the config, or names of its options.
    """
    roots = {name.partition("::")[0] for name in ids}
    return {old: new for old, new in NEW_NAMES.items() if new.partition("::")[0] in roots}


def rename(
    parser: ConfigParser, defaults: Mapping[str, Sequence[Any]], given: Collection[str], used: Collection[str]
) -> None:
    """Move the values that were given by old names to the new ones, in the config, with one warning.

    What a config file of a user's own refers to by an old name (``@steps``) refers to the new one.

    Args:
        parser: of a workflow of which nothing that matters has been built.
        defaults: options of the bundle's config files in use, with the values they have there.
        given: names that the command or the caller gave.
        used: ids that strings of the config refer to.

    Raises:
        InputError: an option was given by both names.
    """
    config = parser.get()
    found = {old: new for old, new in old_names(config).items() if config.get(old, f"@{new}") != f"@{new}"}
    defaults = {new: defaults.get(new) or [None] for new in found.values()}
    for old, new in found.items():
        if new in given or parser.get(new, defaults[new][0]) not in defaults[new]:
            raise InputError(f"{old} is the old name of {new}, and both are given; leave out {old}")
    for old, new in found.items():
        parser[new] = config[old]
        config[old] = f"@{new}"
    for old, new in old_names(config).items():
        if old in used and old not in config:
            parser[old] = f"@{new}"
            found[old] = new
    if found and os.environ.get("RANK", "0") == "0":
        words = ", ".join(f"{old} is now {new}" for old, new in found.items())
        logger.warning("options have new names, the old ones work for one version: %s (UPGRADING.md)", words)
