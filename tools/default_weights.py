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
"""Make the weights that come with the bundle of a training run's checkpoint: half precision, hash written beside them.

python -m tools.default_weights output/train_default/best.pt models/model.pt
"""

from __future__ import annotations

import argparse
from collections import OrderedDict
from pathlib import Path

import torch

from scripts.networks.architectures import architecture_of
from scripts.networks.checkpoint_files import read_checkpoint
from scripts.networks.checkpoints import CHECKSUMS, describe_weights
from scripts.utils.atomic import replacing
from scripts.utils.errors import InputError


def write_default_weights(checkpoint: Path, out: Path) -> str:
    """Write the weights of a checkpoint as a plain state dict in half precision, and list the file's hash.

    The shape and the preprocessing that the weights are made for stand in the state dict's ``_metadata``.

    Args:
        checkpoint: best.pt or last.pt of a training run here.
        out: file to write; the list is ``SHA256SUMS`` in its folder, for ``sha256sum --check``.

    Returns:
        the SHA-256.

    Raises:
        InputError: the checkpoint is not of the registration network, does not tell its shape, or has weights that
            half precision can't hold.
    """
    state, spatial_shape, preprocessing = read_checkpoint(checkpoint)
    if spatial_shape is None or architecture_of(state).stage is None:
        raise InputError(f"{checkpoint} is no checkpoint of a training run here; give its best.pt or last.pt")
    half = {key: value.half() if value.is_floating_point() else value for key, value in state.items()}
    if not all(bool(torch.isfinite(value).all()) for value in half.values()):
        raise InputError(f"{checkpoint} has weights or statistics beyond half precision's range")
    plain = OrderedDict(half)  # as the model zoo's checks load it; PyTorch's own place for facts about a state dict
    facts = {"version": 1, "spatial_shape": list(spatial_shape), **preprocessing}
    plain._metadata = {"": facts}  # type: ignore[attr-defined]
    with replacing(out) as temporary:
        torch.save(plain, temporary)
    sha256 = str(describe_weights(out)["sha256"])
    with replacing(out.parent / CHECKSUMS) as temporary:
        temporary.write_text(f"{sha256}  {out.name}\n")
    return sha256


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Make the weights that come with the bundle of a checkpoint.")
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("out", type=Path, nargs="?", default=Path("models/model.pt"))
    arguments = parser.parse_args()
    print(f"{arguments.out}: SHA-256 {write_default_weights(arguments.checkpoint, arguments.out)}")


if __name__ == "__main__":
    main()
