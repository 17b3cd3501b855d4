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
"""Studies to annotate: real brains where they are on this machine, else made torsos on different oblique grids."""

from __future__ import annotations

import csv
import os
from dataclasses import dataclass, field
from pathlib import Path

import itk
import numpy as np

from scripts.data import example_pair

REAL = Path(os.environ.get("REGISTRATION_TEST_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))
BRAINS = ("1000", "1001", "1007", "1008", "1009")


@dataclass
class Studies:
    """Images with their true labels, both as files."""

    modality: str
    images: dict[str, Path]
    labels: dict[str, Path]
    names: dict[int, str]
    open: str = "open"
    labelled: tuple[str, ...] = ("atlas_a", "atlas_b")
    others: tuple[str, ...] = ("later_1", "later_2")
    label_info: list[dict] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Put the names in MONAI Label's form."""
        self.label_info = [{"name": name, "idx": value} for value, name in self.names.items()]


def make_studies(folder: Path) -> Studies:
    """Return five studies: one to open, two with labels, two more."""
    ids = ("open", "atlas_a", "atlas_b", "later_1", "later_2")
    folder.mkdir(parents=True, exist_ok=True)
    brains = REAL / "brain_t1"
    if brains.is_dir():
        images = {name: brains / f"{number}_SS.nii.gz" for name, number in zip(ids, BRAINS, strict=True)}
        labels = {name: brains / f"{number}_glm.nii.gz" for name, number in zip(ids, BRAINS, strict=True)}
        return Studies("mr", images, labels, _brain_names(brains))
    images, labels = {}, {}
    for number, name in enumerate(ids):
        grid = (example_pair.FIXED_GRID, example_pair.MOVING_GRID)[number % 2]
        points = grid.points()
        own = example_pair.true_inverse(points) if number % 2 else points
        # anatomies that differ in size
        own = (own - example_pair.FIXED_CENTER) * (1 + 0.03 * number) + example_pair.FIXED_CENTER
        hu, label = example_pair.anatomy(own)
        for kind, values in ((images, np.round(hu).astype(np.int16)), (labels, label)):
            path = folder / f"{name}_{'image' if kind is images else 'label'}.nii.gz"
            path.write_bytes(example_pair._nifti(values, grid))
            kind[name] = path
    return Studies("ct", images, labels, dict(example_pair.LABELS))


def _brain_names(folder: Path) -> dict[int, str]:
    with next(folder.glob("*Label-Information.csv")).open(encoding="utf-8-sig") as file:
        rows = [(int(row["Label Number"]), row["Label Name"]) for row in csv.DictReader(file)]
    return {value: name if [n for _, n in rows].count(name) == 1 else f"{name} {value}" for value, name in rows}


def smaller(source: Path, target: Path, shape: tuple[int, int, int], is_label: bool = False) -> Path:
    """Write an image on a coarser grid over the same field of view."""
    image = itk.imread(str(source))
    resample = itk.ResampleImageFilter.New(image)
    size = [int(n) for n in itk.size(image)]
    spacing = [float(s) * n / m for s, n, m in zip(image.GetSpacing(), size, shape, strict=True)]
    index = [(n / m - 1) / 2 for n, m in zip(size, shape, strict=True)]
    direction = itk.array_from_matrix(image.GetDirection())
    origin = np.array(list(image.GetOrigin())) + direction @ (np.array(list(image.GetSpacing())) * np.array(index))
    resample.SetSize(list(shape))
    resample.SetOutputSpacing(spacing)
    resample.SetOutputOrigin([float(value) for value in origin])
    resample.SetOutputDirection(image.GetDirection())
    if is_label:
        resample.SetInterpolator(itk.NearestNeighborInterpolateImageFunction.New(image))
    resample.Update()
    itk.imwrite(resample.GetOutput(), str(target))
    return target


def voxels(path: Path) -> np.ndarray:
    """Return the values of a file, (K, J, I)."""
    return itk.array_from_image(itk.imread(str(path)))


def assert_same_grid(path: Path, other: Path) -> None:
    """Check size, spacing, origin and direction as ITK reads them."""
    images = [itk.imread(str(item)) for item in (path, other)]
    assert itk.size(images[0]) == itk.size(images[1])
    for name in ("GetSpacing", "GetOrigin"):
        first, second = (np.array(list(getattr(image, name)())) for image in images)
        np.testing.assert_allclose(first, second, atol=1e-3)
    first, second = (itk.array_from_matrix(image.GetDirection()) for image in images)
    np.testing.assert_allclose(first, second, atol=1e-5)


def mean_dice(truth: np.ndarray, found: np.ndarray) -> float:
    """Return the mean Dice over the true labels."""
    values = [value for value in np.unique(truth) if value]
    return float(np.mean([_dice(truth == value, found == value) for value in values]))


def _dice(truth: np.ndarray, found: np.ndarray) -> float:
    return 2 * float((truth & found).sum()) / float(truth.sum() + found.sum())


def field_of_view_start(label: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return a label on another grid, field of view onto field of view: what no registration at all would give."""
    index = [
        np.clip(np.round((np.arange(m) + 0.5) * n / m - 0.5).astype(int), 0, n - 1)
        for n, m in zip(label.shape, shape, strict=True)
    ]
    return label[np.ix_(*index)]
