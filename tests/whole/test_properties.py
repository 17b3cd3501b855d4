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
"""What must not depend on how a pair is posed, from image files to transform files.

Numbers in comments were measured; the bounds are two to four times as large. Where the numbers that enter the
optimization are the same, so is the result but for the rounding of headers; where they come in another order, their
rounding is enlarged by the optimization.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from tests.helpers.known_pair import CENTER, FIXED
from tests.helpers.networks import random_network
from tests.helpers.world import POINTS, Registered, carry, farthest, known_images, place, register, textured_image

HEADERS_MM = 1e-4  # NIfTI rounds its headers to float32; measured: 1e-5
ROUNDING_MM = 0.3  # of the sums of the optimization, enlarged by it; measured below
VOXEL_MM = float(np.mean(FIXED["spacing"]))
INSIDE = np.linalg.norm(POINTS - CENTER, axis=1) < 42  # the body; around it there is nothing that could be aligned


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Return the paths of fixed and moving image."""
    return known_images(tmp_path_factory.mktemp("pair"))


@pytest.fixture(scope="module")
def plain(images: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> Registered:
    """Return the registration of the pair as it is, without a network."""
    return register(tmp_path_factory.mktemp("plain"), *images)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the path of a small network's random weights."""
    path = tmp_path_factory.mktemp("weights") / "weights.pt"
    torch.save(random_network().state_dict(), path)
    return str(path)


few = settings(
    max_examples=3,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
shifts = st.tuples(*(st.floats(-300, 300, width=32) for _ in range(3)))


@few
@given(shift=shifts)
def test_a_pair_that_is_moved_takes_its_transforms_along(
    images: tuple[str, str], plain: Registered, tmp_path: Path, shift: tuple[float, float, float]
) -> None:
    fixed, moving = (place(path, tmp_path / Path(path).name, shift=shift) for path in images)
    moved = register(tmp_path / "out", fixed, moving)
    there = carry(plain.forward, POINTS)
    assert farthest(carry(moved.forward, POINTS + shift), there + shift) < HEADERS_MM
    assert farthest(carry(moved.inverse, there + shift), carry(plain.inverse, there) + shift) < HEADERS_MM


def test_a_moving_image_that_is_moved_takes_its_points_along(
    images: tuple[str, str], plain: Registered, tmp_path: Path
) -> None:
    """Origins count for one candidate of the start search only, ``world``; the others do not know them."""
    assert plain.report["terms"]["start"] == "field_of_view"
    for shift, bound in (((3.0, -2.0, 4.0), HEADERS_MM), ((900.0, 0.0, -500.0), ROUNDING_MM)):
        # far away, that candidate is left out, and the search adds up other numbers: 0.01 mm
        moved = register(tmp_path / "out", images[0], place(images[1], tmp_path / "moving.nii.gz", shift=shift))
        assert moved.report["terms"]["start"] == "field_of_view"
        assert farthest(carry(moved.forward, POINTS), carry(plain.forward, POINTS) + shift) < bound


def test_without_optimization_a_network_never_looks_at_the_origins(
    images: tuple[str, str], tmp_path: Path, weights: str
) -> None:
    shift = (70.0, -400.0, 11.0)
    options = {"ckpt_path": weights, "optimization": "off"}
    still = register(tmp_path / "still", *images, **options)
    moved = register(
        tmp_path / "moved", images[0], place(images[1], tmp_path / "moving.nii.gz", shift=shift), **options
    )
    assert farthest(carry(moved.forward, POINTS), carry(still.forward, POINTS) + shift) < HEADERS_MM


@pytest.mark.parametrize(
    ("order", "signs"), [((0, 1, 2), (-1, 1, 1)), ((1, 0, 2), (1, -1, -1)), ((2, 0, 1), (-1, -1, -1))]
)
def test_a_world_that_is_flipped_and_permuted(
    images: tuple[str, str], plain: Registered, tmp_path: Path, order: tuple[int, ...], signs: tuple[int, ...]
) -> None:
    """Images are turned to LPS, so sums run in another order: 0.09 mm. In double precision nothing is left of it (see
    ``test_flipped_and_permuted_images_give_the_flipped_and_permuted_fields``)."""
    matrix = np.diag(signs) @ np.eye(3)[list(order)]
    fixed, moving = (place(path, tmp_path / Path(path).name, matrix) for path in images)
    turned = register(tmp_path / "out", fixed, moving)
    found = carry(turned.forward, POINTS @ matrix.T)
    assert farthest(found, carry(plain.forward, POINTS) @ matrix.T) < ROUNDING_MM


@pytest.mark.parametrize(("degrees", "bound"), [((20, 10, 15), HEADERS_MM), ((0, 50, 60), ROUNDING_MM)])
def test_a_world_that_is_turned(
    images: tuple[str, str], plain: Registered, tmp_path: Path, degrees: tuple[int, int, int], bound: float
) -> None:
    """Beyond 45 degrees other axes are nearest to LPS: 0.08 mm."""
    matrix = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix()
    fixed, moving = (place(path, tmp_path / Path(path).name, matrix) for path in images)
    turned = register(tmp_path / "out", fixed, moving)
    assert farthest(carry(turned.forward, POINTS @ matrix.T), carry(plain.forward, POINTS) @ matrix.T) < bound


def test_a_world_of_twice_the_size(images: tuple[str, str], plain: Registered, tmp_path: Path) -> None:
    fixed, moving = (place(path, tmp_path / Path(path).name, 2 * np.eye(3)) for path in images)
    large = register(tmp_path / "out", fixed, moving)
    assert farthest(carry(large.forward, 2 * POINTS), 2 * carry(plain.forward, POINTS)) < HEADERS_MM
    assert large.report["inconsistency_mm"] == pytest.approx(2 * plain.report["inconsistency_mm"], rel=1e-4)


@pytest.mark.parametrize(
    ("options", "voxels"),
    [({"model": "none"}, 1e-3), ({"model": "default"}, 1e-3), ({"model": "default", "optimization": "off"}, 1.5)],
)
def test_an_image_registered_to_itself_stays(tmp_path: Path, options: dict[str, str], voxels: float) -> None:
    """1e-5 voxels, which is rounding; by the network alone 0.8. A brain: test_real_pairs."""
    image = textured_image(tmp_path)
    result = register(tmp_path / "out", image, image, **options)
    for transform in (result.forward, result.inverse):
        assert farthest(carry(transform, POINTS), POINTS) < voxels * VOXEL_MM


@pytest.mark.parametrize(
    ("options", "bound"),
    [
        ({"model": "none"}, ROUNDING_MM),  # 0.06 mm
        ({"model": "default"}, ROUNDING_MM),  # 0
        ({"model": "default", "optimization": "off"}, 1e-6),  # two passes of the network, each direction by its own
    ],
)
def test_a_pair_that_is_swapped_swaps_its_transforms(
    images: tuple[str, str], tmp_path: Path, options: dict[str, str], bound: float
) -> None:
    one, two = (register(tmp_path / "out", *pair, **options) for pair in (images, images[::-1]))
    inner = POINTS[INSIDE]
    there = carry(one.forward, inner)
    assert farthest(there, carry(two.inverse, inner)) < bound
    assert farthest(carry(one.inverse, there), carry(two.forward, there)) < bound


def test_the_number_of_threads_changes_rounding_only(
    images: tuple[str, str], tmp_path: Path, plain: Registered
) -> None:
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            found.append(carry(register(tmp_path / "out", *images).forward, POINTS))
    finally:
        torch.set_num_threads(threads)
    assert farthest(*found) < ROUNDING_MM


def test_the_same_seed_gives_the_same_report(images: tuple[str, str], tmp_path: Path, weights: str) -> None:
    """Of the optimization of a network, which draws noise; ``field`` has nothing random in it."""

    def run(seed: int) -> tuple[str, np.ndarray]:
        options = {"ckpt_path": weights, "optimization": "network", "seed": seed}
        options["network_optimization"] = {"steps": 2, "learning_rate": 1e-3}
        result = register(tmp_path / "out", *images, **options)
        measured = ("seconds", "peak_memory_mib", "peak_gpu_memory_mib")
        kept = {key: value for key, value in result.report.items() if key not in measured}
        return json.dumps(kept, indent=4), carry(result.forward, POINTS)

    first, again, other = run(1), run(1), run(2)
    assert first[0] == again[0]
    assert np.array_equal(first[1], again[1])
    assert not np.array_equal(first[1], other[1])
