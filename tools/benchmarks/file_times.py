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
"""Time of reading and preprocessing a pair, and of writing results, against the published package.

    python -m tools.benchmarks.file_times FIXED MOVING [--repeats 5]

Both take turns in one process, the median counts. Preprocessing ends with images of 175^3 voxels. The reference writes
a transform (a displacement field of 175^3 vectors) and the warped image, as ``unigradicon-register`` does; the bundle
the same, and all files of a case, whose displacement field is that of the default preset (128^3).
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import itk
import torch
import torch.nn.functional as F
import unigradicon
from monai.bundle import ConfigWorkflow

from scripts.data.itk_transforms import to_itk
from scripts.transforms.outputs.save import write_outputs
from scripts.transforms.outputs.warped import SaveWarpedMoving
from scripts.transforms.outputs.world_transforms import SaveTransforms

ROOT = Path(__file__).resolve().parents[2]
SHAPE = (175, 175, 175)


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("fixed")
    parser.add_argument("moving")
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    seconds: dict[tuple[str, str], list[float]] = {}

    def timed(work: str, variant: str, call: Callable[[], Any]) -> Any:
        began = time.perf_counter()
        found = call()
        seconds.setdefault((work, variant), []).append(time.perf_counter() - began)
        return found

    with tempfile.TemporaryDirectory() as folder:
        bundle = _bundle(given.fixed, given.moving, folder)
        transforms = bundle.get_parsed_content("case_postprocessing").transforms
        for _ in range(given.repeats):
            images = timed("read, preprocess", "reference", lambda: _reference_read(given.fixed, given.moving))
            case = timed("read, preprocess", "here", lambda: bundle.get_parsed_content("dataset")[0])
            forward = _registered(dict(case), transforms, 175)["transforms"].forward
            case = _registered(dict(case), transforms, 128)
            reference = to_itk(forward)
            timed("transform and image", "reference", lambda: _reference_write(images, reference, folder))  # noqa: B023
            one = {**case, "transforms": dataclasses.replace(case["transforms"], forward=forward, inverse=None)}
            both = [SaveTransforms(), SaveWarpedMoving()]
            timed("transform and image", "here", lambda: write_outputs(both, one, Path(folder)))  # noqa: B023
            timed("all files", "here", lambda: transforms[-1](case))  # noqa: B023
    print("| work | variant | seconds | against the reference |\n| --- | --- | --- | --- |")
    for (work, variant), found in seconds.items():
        base, median = seconds.get((work, "reference")), statistics.median(found)
        ratio = f"{statistics.median(base) / median:.1f} x faster" if base and variant == "here" else ""
        print(f"| {work} | {variant} | {median:.2f} | {ratio} |")


def _bundle(fixed: str, moving: str, folder: str) -> Any:
    workflow = ConfigWorkflow(
        config_file=str(ROOT / "configs" / "inference.yaml"),
        workflow_type="inference",
        logging_file=False,
        bundle_root=str(ROOT),
        fixed=fixed,
        moving=moving,
        model="none",
        output_dir=folder,
        overlap=False,
        progress=False,
    )
    workflow.initialize()
    return workflow.parser


def _registered(case: dict[Any, Any], transforms: Any, size: int) -> dict[Any, Any]:
    """Add made-up transforms of a size."""
    torch.manual_seed(0)
    coarse = torch.randn(1, 3, 6, 6, 6)
    ddf = 3 * F.interpolate(coarse, size=(size,) * 3, mode="trilinear", align_corners=True)[0]
    return transforms[0]({**case, "pred": {"forward_ddf": ddf, "inverse_ddf": -ddf, "terms": {}}})


def _reference_read(fixed: str, moving: str) -> list[Any]:
    images = [unigradicon.preprocess(itk.imread(path, itk.F), "mri") for path in (moving, fixed)]
    for image in images:
        array = torch.tensor(itk.array_from_image(image))[None, None]
        F.interpolate(array, size=SHAPE, mode="trilinear", align_corners=False)
    return images


def _reference_write(images: list[Any], transform: Any, folder: str) -> None:
    moving, fixed = images
    itk.transformwrite([transform], f"{folder}/reference.hdf5")
    interpolator = itk.LinearInterpolateImageFunction.New(moving)
    warped = itk.resample_image_filter(
        moving, transform=transform, interpolator=interpolator, use_reference_image=True, reference_image=fixed
    )
    itk.imwrite(warped, f"{folder}/reference.nii.gz")


if __name__ == "__main__":
    main()
