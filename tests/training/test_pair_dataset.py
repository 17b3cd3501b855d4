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
"""The data set of pairs: what is cached, what a pair holds, geometry, and what makes it fail."""

from __future__ import annotations

import gzip
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.transforms import Compose

from scripts.training.list_check import check_files
from scripts.training.pair_dataset import PairDataset
from scripts.utils.errors import InputError, find_input_error
from tests.helpers.chain import chain as inference_chain
from tests.helpers.chain import noise, oblique, write

SHAPE = (20, 22, 24)


def chain(bundle_root: Path, **options: Any) -> Compose:
    """Return the preprocessing of configs/train.yaml, as for the published shape, on a small one."""
    parser = ConfigParser()
    parser.read_config(str(bundle_root / "configs" / "train.yaml"))
    small = {"network_shape": list(SHAPE), "down_channels": [2, 4, 6, 8], "up_channels": [3, 4, 6]}
    parser.update({**small, "anti_aliasing": False, "bundle_root": str(bundle_root), **options})
    return parser.get_parsed_content("train::preprocessing")


def record(path: str, **entries: Any) -> dict[str, Any]:
    return {"set": "s", "subject": path, "images": {"image": path}, "modalities": {"image": "ct"}, **entries}


@pytest.fixture
def records(tmp_path: Path) -> list[dict[str, Any]]:
    """Return three oblique images of different grids, with labels, masks and landmarks."""
    found = []
    for n, shape in enumerate([(19, 23, 14), (16, 21, 18), (22, 17, 15)]):
        values = noise(shape, seed=n)
        spacing = (0.9 + 0.2 * n, 1.1, 2.0)
        label = (values > 0).astype(np.uint8) + 2 * (values > 400).astype(np.uint8)
        mask = np.zeros(shape, np.uint8)
        mask[3:-3, 3:-3, 3:-3] = 1
        (tmp_path / f"{n}.csv").write_text("x,y,z\n-30,14,141\n-28,16,150\n")
        found.append(
            record(
                write(tmp_path / f"{n}.nii.gz", values, spacing=spacing),
                label=write(tmp_path / f"{n}_label.nii.gz", label, spacing=spacing),
                mask=write(tmp_path / f"{n}_mask.nii.gz", mask, spacing=spacing),
                landmarks=str(tmp_path / f"{n}.csv"),
            )
        )
    return found


def dataset(bundle_root: Path, records: list[dict[str, Any]], options: dict[str, Any], **arguments: Any) -> PairDataset:
    arguments = {"pairs_per_epoch": 6, "num_workers": 1, "progress": False, **arguments}
    return PairDataset(records, chain(bundle_root, **options), SHAPE, **arguments)


@pytest.mark.parametrize("cache", ["memory", "disk", "none"])
@pytest.mark.parametrize(("cache_dtype", "rounding"), [("float32", 0.0), ("float16", 3e-4), ("uint8", 2.1e-3)])
def test_caches_give_the_image_that_inference_sees(
    bundle_root: Path, tmp_path: Path, records: list[dict[str, Any]], cache: str, cache_dtype: str, rounding: float
) -> None:
    data = dataset(bundle_root, records, {"cache_dtype": cache_dtype}, cache=cache, cache_dir=str(tmp_path / "c"))
    draw, item = data.draw(6), data[6]
    case = {"fixed": records[draw.fixed]["images"]["image"], "moving": records[draw.moving]["images"]["image"]}
    regions = {f"{side}_mask": records[getattr(draw, side)]["mask"] for side in ("fixed", "moving")}
    seen = inference_chain(SHAPE)({**case, **regions, "fixed_modality": "ct", "moving_modality": "ct"})
    for side in ("fixed", "moving"):
        expected = seen[f"{side}_image"].as_tensor()
        assert (item[f"{side}_image"] - expected).abs().max() <= rounding
        assert item[f"{side}_image"].dtype == torch.float32
        torch.testing.assert_close(item[f"{side}_affine"], seen[f"{side}_image"].affine.double())
    assert item["pair"].endswith(case["fixed"])
    assert "fixed_label" not in item  # no Dice loss, no labels
    assert "fixed_landmarks" not in item
    assert len(list((tmp_path / "c").glob("*.pt"))) == (3 if cache == "disk" else 0)


@pytest.mark.parametrize(("size", "blurred"), [(24, True), (175, False)])
def test_images_are_blurred_for_grids_coarser_than_the_published_one(
    bundle_root: Path, size: int, blurred: bool
) -> None:
    parser = ConfigParser()
    parser.read_config(str(bundle_root / "configs" / "train.yaml"))
    parser.update({"network_shape": [size] * 3, "down_channels": [2, 4, 6, 8], "up_channels": [3, 4, 6]})
    assert parser.get_parsed_content("anti_aliasing") is blurred


def test_validation_pairs_hold_labels_and_landmarks(bundle_root: Path, records: list[dict[str, Any]]) -> None:
    data = dataset(bundle_root, records, {}, pairs_per_epoch=None)
    assert len(data) == 2
    item = data[1]
    assert item["fixed_label"].dtype == torch.int32
    assert set(item["fixed_label"].unique().tolist()) == {0, 1, 3}
    # LPS on disk, RAS here
    assert item["fixed_landmarks"].tolist() == [[30.0, -14.0, 141.0], [28.0, -16.0, 150.0]]
    assert data.has_landmarks
    assert data.has_labels


def test_keypoints_in_voxels_become_points_of_the_world(
    bundle_root: Path, tmp_path: Path, records: list[dict[str, Any]]
) -> None:
    (tmp_path / "keypoints.csv").write_text("0,0,0\n3,5,7\n")
    for entry in records:
        entry |= {"landmarks": str(tmp_path / "keypoints.csv"), "landmark_space": "voxel"}
    points = dataset(bundle_root, records[:2], {}, pairs_per_epoch=None)[0]["fixed_landmarks"]
    direction, spacing = oblique(), np.array([0.9, 1.1, 2.0])
    expected = np.array([-31.0, 12.5, 140.0]) + (np.array([[0, 0, 0], [3, 5, 7]]) * spacing) @ direction.T
    np.testing.assert_allclose(points.numpy(), expected * [-1, -1, 1], atol=1e-4)


def test_training_labels_are_few_and_common(bundle_root: Path, records: list[dict[str, Any]]) -> None:
    data = dataset(bundle_root, records, {}, max_labels=1)
    for index in range(6, 12):
        item = data[index]
        for side in ("fixed", "moving"):
            assert item[f"{side}_label"].dtype == torch.uint8
            assert set(item[f"{side}_label"].unique().tolist()) == {0, 1}
    chosen = {int((data[n]["fixed_label"] > 0).sum()) for n in range(6, 12)}
    assert len(chosen) > 2  # now one label, now the other


def test_loss_masks_come_with_all_pairs_if_any_image_has_one(bundle_root: Path, records: list[dict[str, Any]]) -> None:
    del records[0]["mask"]
    data = dataset(bundle_root, records, {"mask_use": "loss"}, mask_use="loss", pairs_per_epoch=None)
    item = data[0]
    assert item["fixed_mask"].all()
    assert 0 < item["moving_mask"].float().mean() < 1
    assert "fixed_mask" not in dataset(bundle_root, records, {}, pairs_per_epoch=None)[0]


def test_real_and_synthetic_pairs_mix(bundle_root: Path, records: list[dict[str, Any]]) -> None:
    data = dataset(bundle_root, [*records, {"set": "made", "synthetic": {}, "pairs_per_epoch": 6}], {}, max_labels=5)
    items = [data[12 + n] for n in range(12)]
    assert {item["set"] for item in items} == {"s", "made"}
    assert len({frozenset(item) for item in items}) == 1  # one set of entries, so that they make batches
    assert {item["fixed_image"].dtype for item in items} == {torch.float32}


def test_the_network_and_the_similarity_see_the_contrasts_that_were_drawn(bundle_root: Path, tmp_path: Path) -> None:
    records = []
    for n in range(2):
        paths = {
            name: write(tmp_path / f"{n}{name}.nii", noise(seed=10 * n + k)) for k, name in enumerate(("t1", "t2"))
        }
        records.append({"set": "s", "subject": str(n), "images": paths, "modalities": dict.fromkeys(paths, "mr")})
    data = dataset(bundle_root, records, {"cache_dtype": "float32"}, pairs_per_epoch=12)
    differ = 0
    for index in range(12, 24):
        draw, item = data.draw(index), data[index]
        for side in ("fixed", "moving"):
            seen, compared = getattr(draw, side), getattr(draw, f"{side}_similarity")
            assert torch.equal(item[f"{side}_image"], data.images[seen]["image"])
            assert torch.equal(item[f"{side}_similarity"], data.images[compared]["image"])
            differ += seen != compared
    assert differ > 3


def test_contrasts_on_different_grids_are_refused(bundle_root: Path, tmp_path: Path) -> None:
    paths = {"t1": write(tmp_path / "t1.nii", noise()), "t2": write(tmp_path / "t2.nii", noise(), spacing=(1, 1, 1))}
    other = {"t1": write(tmp_path / "o.nii", noise(seed=3))}
    records = [
        {"set": "s", "subject": name, "images": images, "modalities": dict.fromkeys(images, "mr")}
        for name, images in (("a", paths), ("b", other))
    ]
    with pytest.raises(InputError, match="different grids") as error:
        dataset(bundle_root, records, {})
    assert paths["t2"] in str(error.value)


def test_gzip_files_of_several_members_are_whole(tmp_path: Path) -> None:
    path = Path(write(tmp_path / "a.nii", noise()))
    content = path.read_bytes()
    packed = tmp_path / "b.nii.gz"
    packed.write_bytes(gzip.compress(content[:5000]) + gzip.compress(content[5000:]))
    assert check_files([record(str(packed))], progress=False) == 1


def test_the_cache_on_disk_notices_a_changed_file_and_setting(
    bundle_root: Path, tmp_path: Path, records: list[dict[str, Any]]
) -> None:
    folder = tmp_path / "cache"

    def first_image(**options: Any) -> torch.Tensor:
        return dataset(bundle_root, records, options, cache="disk", cache_dir=str(folder), pairs_per_epoch=None)[0][
            "fixed_image"
        ]

    before = first_image()
    assert torch.equal(before, first_image())
    assert len(list(folder.glob("*.pt"))) == 3
    other = first_image(ct_window=[-100, 100])
    assert not torch.equal(before, other)
    write(Path(records[0]["images"]["image"]), noise((19, 23, 14), seed=9), spacing=(0.9, 1.1, 2.0))
    assert not torch.equal(before, first_image())


def test_a_file_that_was_cut_short_is_named_up_front(tmp_path: Path, records: list[dict[str, Any]]) -> None:
    assert check_files(records, progress=False) == 12
    path = Path(records[1]["images"]["image"])
    path.write_bytes(path.read_bytes()[:-300])
    Path(records[2]["landmarks"]).write_text("1,2,3\n")
    with pytest.raises(Exception, match="2 of 12 files") as error:
        check_files(records, progress=False)
    assert str(path) in str(error.value)
    assert "cut short" in str(error.value)
    assert records[2]["landmarks"] in str(error.value)
    assert "\n" not in str(error.value)


def test_a_set_that_mixes_orientations_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    straight = [record(write(tmp_path / f"{n}.nii", noise(), direction=np.eye(3))) for n in range(2)]
    with caplog.at_level(logging.WARNING):
        check_files(straight, progress=False)
        assert not caplog.text
        turned = record(write(tmp_path / "turned.nii", noise(), direction=np.diag([-1.0, 1.0, -1.0])))
        check_files([*straight, turned], progress=False)
    assert "data set 's' mixes orientations (2 LPS, 1 RPI)" in caplog.text


def test_an_uncompressed_file_that_was_cut_short_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.nii", noise())
    assert check_files([record(path)], progress=False) == 1
    Path(path).write_bytes(Path(path).read_bytes()[:-10])
    with pytest.raises(Exception, match="cut short"):
        check_files([record(path)], progress=False)


def test_damage_that_only_reading_shows_names_the_file(bundle_root: Path, records: list[dict[str, Any]]) -> None:
    write(Path(records[1]["images"]["image"]), np.full((8, 8, 8), 3, np.int16))
    with pytest.raises(Exception, match=r".") as error:
        dataset(bundle_root, records, {})
    cause = find_input_error(error.value)
    assert cause is not None
    assert records[1]["images"]["image"] in str(cause)


@pytest.mark.parametrize(
    ("arguments", "words"), [({"cache": "ram"}, "memory, disk, none"), ({"cache": "disk"}, "cache_dir")]
)
def test_options_out_of_range(
    bundle_root: Path, records: list[dict[str, Any]], arguments: dict[str, Any], words: str
) -> None:
    with pytest.raises(Exception, match=words):
        dataset(bundle_root, records, {}, **arguments)
