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
"""Networks and their weights: UNet, registration network, VoxelMorph; finding, checking, loading, exporting.

Keys of published checkpoints are translated in ``checkpoint_files``; ``published_weights`` only knows where their
files lie. The HU window and the percentiles that weights were made for, and the defaults of both, are in
``weights_preprocessing``. The objective is in ``losses``, the use of a network for a pair in ``inferers``. It imports
``geometry`` and ``utils``.
"""

from typing import TYPE_CHECKING

from scripts.utils.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from scripts.networks.activation_checkpointing import choose_recomputing
    from scripts.networks.architectures import create_network, create_registration_network
    from scripts.networks.checkpoints import describe_weights, find_weights, load_weights, start_weights
    from scripts.networks.exported_network import load_exported
    from scripts.networks.tensorrt import compile_unets
    from scripts.networks.voxelmorph import VoxelMorphNetwork
    from scripts.networks.weights_preprocessing import choose_preprocessing

__all__ = [
    "VoxelMorphNetwork",
    "choose_preprocessing",
    "choose_recomputing",
    "compile_unets",
    "create_network",
    "create_registration_network",
    "describe_weights",
    "find_weights",
    "load_exported",
    "load_weights",
    "start_weights",
]

_MODULES = {
    "VoxelMorphNetwork": "voxelmorph",
    "choose_preprocessing": "weights_preprocessing",
    "choose_recomputing": "activation_checkpointing",
    "compile_unets": "tensorrt",
    "create_network": "architectures",
    "create_registration_network": "architectures",
    "describe_weights": "checkpoints",
    "find_weights": "checkpoints",
    "load_exported": "exported_network",
    "load_weights": "checkpoints",
    "start_weights": "checkpoints",
}

__getattr__ = lazy_exports(__name__, _MODULES)
