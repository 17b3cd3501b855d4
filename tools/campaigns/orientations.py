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
"""All 48 ways to store the voxels of the fixed image and of the moving one, through the whole pipeline.

    python -m tools.campaigns.orientations --work DIR

Images are files, transforms are read from the written files by ITK. Printed is how far the transform carries a point of
the fixed image from where it carries it with both files as they are: the largest distance of each image's 48.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from tests.helpers.world import ORIENTATIONS, POINTS, carry, farthest, known_images, register, store

SHORT = [[16, 10], [24, 10]]


def deviations_mm(work: Path, side: str, **options: Any) -> list[float]:
    """Return the deviation for each of :data:`tests.helpers.world.ORIENTATIONS`.

    Args:
        work: folder for images and results.
        side: "fixed" or "moving": the image that is stored in other ways.
        options: of the bundle.
    """
    images = dict(zip(("fixed", "moving"), known_images(work / "pair"), strict=True))
    expected = carry(register(work / "plain", **images, **options).forward, POINTS)
    found = []
    for orientation in ORIENTATIONS:
        stored = store(images[side], work / "stored" / f"{side}.nii.gz", orientation)
        result = register(work / "out", **{**images, side: str(stored)}, **options)
        found.append(farthest(carry(result.forward, POINTS), expected))
    return found


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for images and results")
    parser.add_argument("--model", default="none", help="none (training-free) or default")
    arguments = parser.parse_args()
    for side in ("fixed", "moving"):
        found = deviations_mm(arguments.work, side, model=arguments.model, **{"field::levels": {"default": SHORT}})
        print(f"{side}: largest deviation {max(found):.2e} mm of {len(found)} orientations")


if __name__ == "__main__":
    main()
