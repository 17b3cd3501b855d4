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
"""What the network sees: intensities as the reference makes them, and affines that follow every step."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import itk
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from monai.data import MetaTensor
from monai.transforms import ScaleIntensityRange

from scripts.transforms.intensity import ByModalityd, ScalePercentiles, percentile_value
from scripts.transforms.labels import CopyLabelsd
from scripts.transforms.load import LoadVolumesd
from scripts.transforms.masks import UseMasksd
from scripts.transforms.orientation import MatchOrientationd
from scripts.utils.errors import InputError, find_input_error
from tests.helpers.chain import SHAPE, chain, noise, oblique, pair, write
from tools.benchmarks.pairs import reorder_axes

BY_MODALITY = ByModalityd(
    keys=["fixed"], output_keys=["fixed_image"], ct=ScaleIntensityRange(-1000.0, 1000.0, 0, 1), mr=ScalePercentiles()
)
LPS_TO_RAS = np.array([-1, -1, 1])


def world_point(image: Any, index: Sequence[float]) -> Any:
    """ITK's world point (LPS) of a continuous index (i, j, k)."""
    continuous = itk.ContinuousIndex[itk.D, 3]()
    for axis in range(3):
        continuous.SetElement(axis, float(index[axis]))
    return image.TransformContinuousIndexToPhysicalPoint(continuous)


def physical_points(path: str, indices: np.ndarray) -> np.ndarray:
    """ITK's world points of continuous indices, flipped to RAS."""
    image = itk.imread(path)
    return np.array([list(world_point(image, index)) for index in indices]) * LPS_TO_RAS


def reference_image(path: str, modality: str, mask: str | None = None, **options: tuple[float, float]) -> torch.Tensor:
    unigradicon = pytest.importorskip("unigradicon", reason="the reference package is a test-only dependency")
    mask_image = itk.imread(mask, itk.SS) if mask else None
    image = unigradicon.preprocess(itk.imread(path), modality, mask_image, **options)
    return torch.tensor(np.array(image))[None, None]


@pytest.mark.parametrize(
    ("modality", "options"),
    [
        ("ct", {}),
        ("ct", {"ct_window": (-200.0, 350.0)}),
        ("mr", {}),
        ("mr", {"mr_percentiles": (1.0, 97.5)}),
    ],
)
@pytest.mark.parametrize("masked", [False, True])
def test_intensities_equal_the_reference(modality: str, options: dict, masked: bool, tmp_path: Path) -> None:
    case = pair(tmp_path, fixed_modality=modality)
    case["fixed"] = write(tmp_path / "wide.nii.gz", noise(low=-2500, high=3000))
    if masked:
        case["fixed_mask"] = write(tmp_path / "mask.nii.gz", (noise(seed=3) > 0).astype(np.uint8) * 7)
    got = chain(**options)(case)["fixed_image"]
    window = {"ct_window": options["ct_window"]} if "ct_window" in options else {}
    quantiles = {"quantile_range": (0.01, 0.975)} if "mr_percentiles" in options else {}
    native = reference_image(
        case["fixed"], "ct" if modality == "ct" else "mri", case.get("fixed_mask"), **window, **quantiles
    )
    expected = F.interpolate(native, size=SHAPE, mode="trilinear", align_corners=False)[0]
    assert got.dtype == torch.float32
    assert torch.abs(got.as_tensor() - expected).max() < 1e-6


def test_percentiles_are_voxel_values_counted_as_in_the_reference() -> None:
    unigradicon = pytest.importorskip("unigradicon", reason="the reference package is a test-only dependency")
    for count in (7, 100, 101, 200, 4096, 5003):
        noise = torch.randn(1, count, 1, 1)
        background = torch.where(noise > 0.5, noise, 0)
        for values in (noise, background, -background, torch.zeros_like(noise)):
            for percent in (0, 1, 50, 60, 70, 80, 99, 100):
                assert percentile_value(values, percent) == unigradicon.quantile(values, percent / 100).item()


def test_network_grid_affine_is_the_image_of_its_voxel_centers(tmp_path: Path) -> None:
    """A network voxel has size spacing * size / network size, and the grids' centers (and edges) coincide."""
    case = pair(tmp_path)
    result = chain()(case)
    for key in ("fixed", "moving"):
        size = np.array(itk.imread(case[key]).shape[::-1])  # i, j, k
        voxels = np.random.default_rng(0).uniform(0, SHAPE, (50, 3))  # d, h, w of the network grid
        indices = (voxels[:, ::-1] + 0.5) * size / np.array(SHAPE)[::-1] - 0.5
        affine = np.asarray(result[f"{key}_image"].affine)
        got = voxels @ affine[:3, :3].T + affine[:3, 3]
        np.testing.assert_allclose(got, physical_points(case[key], indices), atol=1e-4)


def test_native_volumes_keep_values_affine_and_type(tmp_path: Path) -> None:
    case = pair(tmp_path)
    result = chain()(case)
    for key in ("fixed", "moving"):
        image = result[key]
        np.testing.assert_array_equal(image[0].numpy().T, itk.array_from_image(itk.imread(case[key])))
        corners = np.array([[0, 0, 0], [5, 0, 0], [0, 7, 0], [0, 0, 9]])
        affine = np.asarray(image.affine)
        np.testing.assert_allclose(
            corners @ affine[:3, :3].T + affine[:3, 3], physical_points(case[key], corners), atol=1e-4
        )
        assert image.dtype == torch.float32
        assert image.meta["original_dtype"] == "int16"
        assert image.meta["filename_or_obj"] == result[f"{key}_image"].meta["filename_or_obj"] == case[key]


def test_axes_are_reversed_before_the_network(tmp_path: Path) -> None:
    """Same shape as ITK's numpy array: the resize is the identity, and the arrays are equal."""
    case = pair(tmp_path)
    result = chain(image_shape=noise().shape[::-1])(case)
    array = itk.array_from_image(itk.imread(case["fixed"])).astype(np.float32)
    np.testing.assert_allclose(result["fixed_image"][0].numpy(), (array + 1000) / 2000, atol=1e-6)


def test_a_pair_of_other_orientation_is_turned_and_stays_in_place(tmp_path: Path) -> None:
    """The moving array is stored flipped and permuted: the network sees the same numbers, at the same places."""
    values = noise((16, 21, 18), seed=1)
    case = pair(tmp_path)
    flipped = values[::-1, ::-1].transpose(2, 0, 1)  # new axes: k, -i, -j
    image = itk.imread(case["moving"])
    corner = [float(values.shape[0] - 1), float(values.shape[1] - 1), 0.0]
    direction = itk.array_from_matrix(image.GetDirection())
    turned = write(
        tmp_path / "turned.nii.gz",
        flipped,
        spacing=(2.0, 1.1, 0.9),
        origin=list(world_point(image, corner)),
        direction=np.stack([direction[:, 2], -direction[:, 0], -direction[:, 1]], axis=1),
    )
    straight, other = chain()(case), chain()({**case, "moving": turned})
    assert other["moving"].shape == (1, 18, 16, 21)
    torch.testing.assert_close(other["moving_image"].as_tensor(), straight["moving_image"].as_tensor())
    np.testing.assert_allclose(other["moving_image"].affine, straight["moving_image"].affine, atol=1e-4)
    untouched = chain(match_orientation=False)({**case, "moving": turned})
    assert not torch.allclose(untouched["moving_image"].as_tensor(), straight["moving_image"].as_tensor())


def test_the_order_of_the_fixed_images_voxels_does_not_matter(tmp_path: Path) -> None:
    case = pair(tmp_path)
    reorder_axes(Path(case["fixed"]), tmp_path / "turned.nii.gz", (1, 2, 0), (True, False, True))
    straight, other = chain()(case), chain()({**case, "fixed": str(tmp_path / "turned.nii.gz")})
    for key in ("fixed_image", "moving_image"):
        torch.testing.assert_close(other[key].as_tensor(), straight[key].as_tensor(), atol=0, rtol=0)
        np.testing.assert_allclose(other[key].affine, straight[key].affine, atol=1e-4)
    untouched = chain(match_orientation=False)({**case, "fixed": str(tmp_path / "turned.nii.gz")})
    assert not torch.allclose(untouched["fixed_image"].as_tensor(), straight["fixed_image"].as_tensor())


@pytest.mark.parametrize("degrees", [0, 40])
def test_axes_are_matched_to_the_other_images_not_to_the_worlds(tmp_path: Path, degrees: float) -> None:
    """Two images that are 10 degrees apart; in the second case on either side of 45 degrees to the world."""

    def turn(angle: float) -> np.ndarray:
        c, s = np.cos(np.radians(angle)), np.sin(np.radians(angle))
        return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])

    case = pair(tmp_path)
    for key, angle in (("fixed", degrees), ("moving", degrees + 10)):
        case[key] = write(tmp_path / f"{key}.nii.gz", noise(), direction=turn(angle))
    result = chain()(case)
    axes = [np.asarray(result[key].affine)[:3, :3] for key in ("fixed_image", "moving_image")]
    cosines = np.diag((axes[0] / np.linalg.norm(axes[0], axis=0)).T @ (axes[1] / np.linalg.norm(axes[1], axis=0)))
    assert cosines.min() > np.cos(np.radians(10.1))


def test_loss_masks_go_along_and_leave_the_image(tmp_path: Path) -> None:
    mask = np.zeros((19, 23, 14), np.uint8)
    mask[5:15, 4:20, 3:11] = 3
    case = pair(tmp_path, fixed_mask=write(tmp_path / "mask.nii.gz", mask))
    plain, result = chain()(pair(tmp_path)), chain(mask_use="loss")(case)
    torch.testing.assert_close(result["fixed_image"].as_tensor(), plain["fixed_image"].as_tensor())
    loss_mask = result["fixed_loss_mask"]
    assert loss_mask.shape == (1, *SHAPE)
    assert set(loss_mask.unique().tolist()) == {0.0, 1.0}
    assert abs(float(loss_mask.mean()) - (mask > 0).mean()) < 0.03
    assert "moving_loss_mask" not in result
    np.testing.assert_array_equal(loss_mask.affine, result["fixed_image"].affine)
    assert "fixed_loss_mask" not in chain(mask_use="input")(case)


def test_a_mask_of_the_moving_image_alone_is_used(tmp_path: Path) -> None:
    mask = np.zeros((16, 21, 18), np.uint8)
    mask[5:12, 4:20, 3:11] = 1
    case = pair(tmp_path, moving_mask=write(tmp_path / "mask.nii.gz", mask, spacing=(1.1, 0.9, 2.0)))
    shape = mask.shape[::-1]
    plain, result = chain(shape)(pair(tmp_path)), chain(shape)(case)
    expected = plain["moving_image"][0].numpy() * mask.T
    np.testing.assert_allclose(result["moving_image"][0].numpy(), expected, atol=1e-6)
    assert torch.equal(result["fixed_image"], plain["fixed_image"])
    assert "moving_loss_mask" in chain(mask_use="loss")(case)


def test_labels_reach_the_network_grid_only_together(tmp_path: Path) -> None:
    fixed_label = write(tmp_path / "fl.nii.gz", noise(low=0, high=5, seed=4))
    moving_label = write(tmp_path / "ml.nii.gz", noise((16, 21, 18), low=0, high=5), spacing=(1.1, 0.9, 2.0))
    one = chain()(pair(tmp_path, moving_label=moving_label))
    both = chain()(pair(tmp_path, moving_label=moving_label, fixed_label=fixed_label))
    assert "moving_network_label" not in one
    assert one["moving_label"].shape == one["moving"].shape
    assert both["moving_network_label"].shape == both["fixed_network_label"].shape == (1, *SHAPE)
    assert set(both["fixed_network_label"].unique().tolist()) <= {0.0, 1.0, 2.0, 3.0, 4.0}
    assert both["fixed_label"].meta["original_dtype"] == "int16"


def test_inputs_are_not_changed(tmp_path: Path) -> None:
    case = pair(tmp_path, fixed_mask=write(tmp_path / "mask.nii.gz", (noise() > 0).astype(np.uint8)))
    before = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in tmp_path.iterdir()}
    entries = dict(case)
    chain()(case)
    assert {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in tmp_path.iterdir()} == before
    assert case == entries


@pytest.mark.parametrize("suffix", [".nii", ".nrrd", ".mha", ".mhd"])
@pytest.mark.parametrize("dtype", [np.int16, np.uint8, np.float32, np.float64])
def test_formats_give_the_same_voxels_and_affine(suffix: str, dtype: type, tmp_path: Path) -> None:
    values = noise(low=0, high=250).astype(dtype)
    paths = {"fixed": write(tmp_path / "a.nii.gz", values), "moving": write(tmp_path / f"b{suffix}", values)}
    result = LoadVolumesd(keys=["fixed", "moving"])(paths)
    assert torch.equal(result["fixed"].as_tensor(), result["moving"].as_tensor())
    np.testing.assert_allclose(result["fixed"].affine, result["moving"].affine, atol=1e-5)
    assert result["fixed"].meta["original_dtype"] == result["moving"].meta["original_dtype"] == np.dtype(dtype).name


def write_dicom(folder: Path, values: np.ndarray, series: str = "1.2.826.0.1.3680043.2.1125.1") -> str:
    """Write values (I, J, K) as a CT series of single-slice files, in an order of names that is not that of places."""
    folder.mkdir(exist_ok=True)
    spacing, origin, direction = np.array([0.75, 0.5, 2.5]), np.array([-30.0, 14.0, 55.0]), oblique()
    for k in range(values.shape[2]):
        image = itk.image_from_array(np.ascontiguousarray(values[:, :, k : k + 1].T))
        image.SetSpacing(spacing.tolist())
        image.SetOrigin((origin + direction[:, 2] * spacing[2] * k).tolist())
        image.SetDirection(itk.matrix_from_array(direction))
        tags = image.GetMetaDataDictionary()
        tags["0008|0060"] = "CT"
        tags["0020|000d"] = "1.2.826.0.1.3680043.2.1125.9"
        tags["0020|000e"] = series
        tags["0020|0013"] = str(k + 1)
        tags["0010|0010"] = "Doe^Jane"
        dicom = itk.GDCMImageIO.New()
        dicom.KeepOriginalUIDOn()
        writer = itk.ImageFileWriter[type(image)].New(image, ImageIO=dicom)
        writer.SetFileName(str(folder / f"{series[-1]}_{(k * 7) % values.shape[2]:03d}.dcm"))
        writer.Update()
    return str(folder)


def test_a_dicom_folder_equals_the_same_volume_as_nifti(tmp_path: Path) -> None:
    values = noise((12, 15, 10))
    nifti = write(tmp_path / "v.nii.gz", values, spacing=(0.75, 0.5, 2.5), origin=(-30.0, 14.0, 55.0))
    case = pair(tmp_path, fixed=write_dicom(tmp_path / "series", values), moving=nifti)
    result = chain()(case)
    assert torch.equal(result["fixed"].as_tensor(), result["moving"].as_tensor())
    np.testing.assert_allclose(result["fixed"].affine, result["moving"].affine, atol=1e-4)
    assert result["fixed"].meta["original_dtype"] == "int16"
    assert "Doe" not in str(result["fixed"].meta)  # patient data goes no further


def test_a_folder_of_two_series_is_refused(tmp_path: Path) -> None:
    folder = write_dicom(tmp_path / "series", noise((12, 15, 4)))
    write_dicom(tmp_path / "series", noise((12, 15, 3)), "1.2.826.0.1.3680043.2.1125.2")
    with pytest.raises(InputError, match=r"fixed: .*holds 2 DICOM series: .*own folder"):
        LoadVolumesd(keys=["fixed"])({"fixed": folder})


def test_one_frame_of_a_4d_file_is_selected(tmp_path: Path) -> None:
    frames = np.stack([noise(seed=seed) for seed in range(3)], axis=-1)
    image = itk.image_from_array(np.ascontiguousarray(frames.T))
    itk.imwrite(image, str(tmp_path / "4d.nii.gz"))
    result = LoadVolumesd(keys=["fixed"])({"fixed": str(tmp_path / "4d.nii.gz"), "frame": 2})
    assert result["fixed"].shape == (1, *noise().shape)
    np.testing.assert_array_equal(result["fixed"][0].numpy(), noise(seed=2))
    assert result["fixed"].affine.shape == (4, 4)


@pytest.mark.parametrize(
    ("modality", "value", "message"),
    [
        ("ct", -1000.0, r"fixed: 'from memory' has no voxel inside ct_window \[-1000.0, 1000.0\] HU"),
        ("ct", 1000.0, "--fixed_modality mr"),
        ("mr", 7.0, r"fixed: 'from memory' has the same value 7 at both mr_percentiles \[0.0, 99.0\]; widen them"),
        ("pet", 0.0, "fixed_modality must be ct or mr, got 'pet'"),
    ],
)
def test_an_image_that_would_become_constant_is_refused(modality: str, value: float, message: str) -> None:
    image = MetaTensor(torch.full((1, 4, 5, 6), value))
    with pytest.raises(InputError, match=message):
        BY_MODALITY({"fixed": image, "fixed_modality": modality})


def test_a_volume_of_equal_orientation_is_not_copied() -> None:
    images = {key: MetaTensor(torch.rand(1, 4, 5, 6)) for key in ("fixed", "moving")}
    images["other"] = MetaTensor(torch.rand(1, 4, 5, 6), affine=torch.diag(torch.tensor([1.0, -1, 1, 1])))
    turned = MatchOrientationd(keys=["moving", "absent", "other"], reference_key="fixed")(images)
    assert turned["moving"] is images["moving"]
    assert torch.equal(turned["other"].as_tensor(), images["other"].as_tensor().flip(2))


@pytest.mark.parametrize("ids", [(0, 1, 2, 3), (0, 997, 16777216, 16777217), (0, 312782546, 614454276, 614454277)])
def test_label_ids_of_any_size_stay_apart_on_the_network_grid(ids: tuple[int, ...]) -> None:
    places = [np.random.default_rng(seed).integers(0, 4, (1, 5, 6, 7)) for seed in (0, 1)]
    places[1][places[1] == 1] = 0  # an id that one image has alone
    labels = [MetaTensor(torch.tensor(np.array(ids, float)[place])) for place in places]
    names = [f"{side}_network_label" for side in ("fixed", "moving")]
    copied = CopyLabelsd(keys=["fixed_label", "moving_label"], output_keys=names)(
        {"fixed_label": labels[0], "moving_label": labels[1]}
    )
    for name, place in zip(names, places, strict=True):
        assert copied[name].dtype == torch.float32
        np.testing.assert_array_equal(copied[name].numpy(), place)
    assert labels[0].dtype == torch.float64


def test_each_label_needs_a_key_for_its_copy() -> None:
    copy = CopyLabelsd(keys=["fixed_label", "moving_label"], output_keys=["fixed_network_label"])
    with pytest.raises(ValueError, match="shorter"):
        copy(dict.fromkeys(["fixed_label", "moving_label"], torch.ones(1, 2, 2, 2)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ct_window": [100, -100]}, "ct_window must be a lower and a higher number"),
        ({"ct_window": "wide"}, "ct_window must be two numbers"),
        ({"mr_percentiles": [0, 100.5]}, "mr_percentiles must lie within 0 and 100"),
        ({"mr_percentiles": [-1, 99]}, "mr_percentiles must lie within 0 and 100"),
        ({"mr_percentiles": [50, 50]}, r"^mr_percentiles must be a lower and a higher number, got \[50, 50\]$"),
    ],
)
def test_bad_windows_are_refused(options: dict, message: str) -> None:
    with pytest.raises(RuntimeError) as caught:  # MONAI wraps it
        chain(**options)
    assert re.search(message, str(find_input_error(caught.value)))


def test_the_whole_range_of_an_mr_can_be_kept() -> None:
    image = MetaTensor(torch.arange(60.0).view(1, 3, 4, 5))
    torch.testing.assert_close(torch.as_tensor(ScalePercentiles((0, 100))(image.as_tensor())), image.as_tensor() / 59)


def test_a_wrong_use_of_masks_is_refused() -> None:
    with pytest.raises(InputError, match="mask_use must be input or loss, got 'both'"):
        UseMasksd(keys=["fixed"], mask_keys=["mask"], loss_mask_keys=["loss_mask"], mask_use="both")
