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
"""The files of a case. The oracle is ITK alone: what it makes of the written transforms must equal our outputs."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import itk
import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from scripts.data.landmarks import read_landmarks
from scripts.geometry.coordinates import identity_grid
from scripts.geometry.warping import warp_image
from scripts.metrics import registration_metrics as metrics
from scripts.metrics.surface_distances import surface_distances_mm
from scripts.transforms import postprocessing
from scripts.transforms.outputs.base import Output
from scripts.transforms.outputs.save import SaveOutputsd, write_outputs
from scripts.transforms.outputs.warped import SaveWarpedLabel, SaveWarpedMoving
from scripts.transforms.outputs.world_transforms import SaveDisplacement, SaveTransforms
from scripts.transforms.postprocessing import AddMetricsd, AddTransformsd, AddWarpedLabeld, type_on_disk
from scripts.utils.errors import InputError
from scripts.utils.tensors import plain
from tests.helpers.chain import chain, write
from tests.helpers.registered import FIXED_SHAPE, MOVING, registered_case

FILES = {
    *("forward_transform.h5", "inverse_transform.h5", "displacement.nii.gz", "warped_moving.nii.gz"),
    *("warped_label.nii.gz", "warped_landmarks.csv", "jacobian_determinant.nii.gz", "overview.png", "report.json"),
}
LARGE = (32, 33, 34)  # the native grid is coarser along k: the field between its voxels is nearly that of the network


def run(data: dict[Any, Any], **switches: bool) -> dict[Any, Any]:
    save = dict.fromkeys(("transforms", "displacement", "warped", "jacobian", "overview"), True) | switches
    settings = {"similarity": "lncc", "levels": (1, 2)}
    steps = AddTransformsd(), AddWarpedLabeld(), AddMetricsd(), SaveOutputsd(save, settings, {"name": "none"}, seed=3)
    for step in steps:
        data = step(data)
    return data


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> dict[Any, Any]:
    return run(registered_case(tmp_path_factory.mktemp("pair"), LARGE, amplitude=2.0))


def itk_transforms(case: dict[Any, Any], source: str) -> Any:
    """Read the forward transform with ITK, from either file."""
    folder = Path(case["case_dir"])
    if source == "h5":
        return itk.transformread(str(folder / "forward_transform.h5"))[0]
    field = itk.imread(str(folder / "displacement.nii.gz"))
    doubles = itk.image_from_array(itk.array_from_image(field).astype(float), is_vector=True)
    doubles.CopyInformation(field)
    transform = itk.DisplacementFieldTransform[itk.D, 3].New()
    transform.SetDisplacementField(doubles)
    return transform


def itk_resample(case: dict[Any, Any], key: str, transform: Any, kind: Any, outside: float = 0) -> np.ndarray:
    moving, fixed = (itk.imread(case[name].meta["filename_or_obj"]) for name in (key, "fixed"))
    interpolator = kind[type(moving), itk.D].New()
    resampled = itk.resample_image_filter(
        moving,
        transform=transform,
        use_reference_image=True,
        reference_image=fixed,
        interpolator=interpolator,
        default_pixel_value=outside,
    )
    return itk.array_from_image(resampled).T


def read(case: dict[Any, Any], name: str) -> Any:
    return nib.load(Path(case["case_dir"]) / name)


@pytest.mark.parametrize("source", ["h5", "displacement"])
def test_itk_warps_the_image_to_the_same_voxels(case: dict[Any, Any], source: str) -> None:
    by_itk = itk_resample(case, "moving", itk_transforms(case, source), itk.LinearInterpolateImageFunction, -1000)
    ours = np.asanyarray(read(case, "warped_moving.nii.gz").dataobj)
    outside = ours == -1000  # it is CT
    assert 0.01 < outside.mean() < 0.5  # some voxels come from outside the moving image
    np.testing.assert_array_equal(by_itk == -1000, outside)
    spread = float(np.ptp(case["moving"].numpy()))
    assert np.abs(by_itk - ours).max() < 1e-4 * spread


@pytest.mark.parametrize("source", ["h5", "displacement"])
def test_itk_warps_the_label_to_the_same_voxels(case: dict[Any, Any], source: str) -> None:
    by_itk = itk_resample(
        case, "moving_label", itk_transforms(case, source), itk.NearestNeighborInterpolateImageFunction
    )
    ours = read(case, "warped_label.nii.gz")
    assert ours.get_data_dtype() == np.int16
    assert set(np.unique(ours.dataobj)) == {0, 100, 200, 300}
    np.testing.assert_array_equal(by_itk, np.asanyarray(ours.dataobj))


@pytest.mark.parametrize("source", ["h5", "displacement"])
def test_itk_carries_the_landmarks_to_the_same_points(case: dict[Any, Any], source: str) -> None:
    forward = itk_transforms(case, source)
    inverse = itk.transformread(str(Path(case["case_dir"]) / "inverse_transform.h5"))[0]
    with open(Path(case["case_dir"]) / "warped_landmarks.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["image"] for row in rows] == ["fixed"] * 6 + ["moving"] * 6
    assert [row["name"] for row in rows] == [f"p{number}" for number in range(6)] * 2
    for row in rows:
        transform = forward if row["image"] == "fixed" else inverse
        by_itk = np.array(list(transform.TransformPoint([float(row[axis]) for axis in "xyz"])))
        ours = np.array([float(row[f"warped_{axis}"]) for axis in "xyz"])
        assert np.linalg.norm(by_itk - ours) < 0.01


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_known_shift_of_the_world_moves_the_warped_image_against_it(
    tmp_path: Path, case: dict[Any, Any], axis: int
) -> None:
    data = {**case, "moving": case["fixed"], "moving_image": case["fixed_image"]}
    shift = torch.zeros(3, dtype=torch.float64)
    shift[axis] = 6.0
    affine = case["fixed_image"].affine.double()
    ddf = torch.linalg.solve(affine[:3, :3], shift).view(3, 1, 1, 1).expand(3, *LARGE)
    SaveWarpedMoving().write(AddTransformsd()({**data, "pred": {"forward_ddf": ddf, "inverse_ddf": -ddf}}), tmp_path)

    def center(values: np.ndarray, grid: np.ndarray) -> np.ndarray:
        weight = np.clip(values + 1000, 0, None) * (values != 0)
        voxel = [(weight * index).sum() / weight.sum() for index in np.indices(values.shape)]
        return grid[:3, :3] @ voxel + grid[:3, 3]

    warped = nib.load(tmp_path / "warped_moving.nii.gz")
    moved = center(np.asanyarray(warped.dataobj), warped.affine) - center(case["fixed"][0].numpy(), warped.affine)
    np.testing.assert_allclose(moved, -shift, atol=0.6)  # warped(x) = moving(x + shift)


def test_every_file_is_there_on_the_grid_and_in_the_type_promised(case: dict[Any, Any]) -> None:
    assert {path.name for path in Path(case["case_dir"]).iterdir()} == FILES
    assert set(case["written"]) == FILES - {"report.json"}
    kinds = {"warped_moving": np.float32, "warped_label": np.int16, "jacobian_determinant": np.float32}
    for name, kind in kinds.items():
        image = read(case, f"{name}.nii.gz")
        assert image.shape == case["fixed"].shape[1:]
        assert image.get_data_dtype() == kind
        np.testing.assert_allclose(image.affine, case["fixed"].affine, atol=1e-5)


def test_report_is_strict_json_with_all_figures(case: dict[Any, Any]) -> None:
    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    report = json.loads((Path(case["case_dir"]) / "report.json").read_text(), parse_constant=refuse)
    assert report["case"] == "oblique pair"
    assert report["similarity"] == {"before": pytest.approx(0.7), "after": 0.2}
    assert report["terms"] == {"regularity": None}  # it was NaN
    assert report["seed"] == 3
    assert report["seconds"] == 12.5
    assert report["settings"] == {"similarity": "lncc", "levels": [1, 2]}
    assert report["weights"] == {"name": "none"}
    assert set(report["versions"]) == {"bundle", "torch", "monai", "itk", "numpy", "python"}
    assert report["inputs"]["fixed"].endswith("fixed.nii.gz")
    assert report["inputs"]["moving_landmarks"].endswith("moving.csv")
    assert set(report["outputs"]) == FILES - {"report.json"}
    assert report["folding_percent"] == 0
    assert report["inconsistency_mm"] > 0
    assert set(report["dice"]["before"]["per_label"]) == {"100", "200", "300"}
    assert len(report["tre_mm"]["after"]["per_landmark"]) == 6
    assert report["peak_memory_mib"] > 100


def test_before_is_field_of_view_onto_field_of_view(case: dict[Any, Any]) -> None:
    fixed, moving = (read_landmarks(case[f"{image}_landmarks"]).points_ras_mm for image in ("fixed", "moving"))

    def normalized(points: torch.Tensor, volume: MetaTensor) -> torch.Tensor:
        voxels = (points - volume.affine[:3, 3]) @ torch.linalg.inv(volume.affine[:3, :3]).T
        return (voxels + 0.5) / torch.tensor(volume.shape[1:])

    size_mm = torch.linalg.vector_norm(case["moving"].affine[:3, :3], dim=0) * torch.tensor(case["moving"].shape[1:])
    gaps = (normalized(fixed, case["fixed"]) - normalized(moving, case["moving"])) * size_mm
    expected = torch.linalg.vector_norm(gaps, dim=1)
    assert case["metrics"]["tre_mm"]["before"]["mean"] == pytest.approx(float(expected.mean()), rel=1e-4)


def test_switches_and_missing_inputs_leave_files_out(tmp_path: Path) -> None:
    data = registered_case(tmp_path)
    for key in ("fixed_label", "moving_label", "fixed_landmarks", "moving_landmarks"):
        del data[key]
    done = run(data, transforms=False, overview=False, jacobian=False)
    assert set(done["written"]) == {"displacement.nii.gz", "warped_moving.nii.gz"}
    assert {path.name for path in Path(data["case_dir"]).iterdir()} == {*done["written"], "report.json"}
    report = json.loads((Path(data["case_dir"]) / "report.json").read_text())
    assert "dice" not in report
    assert "tre_mm" not in report


def test_the_case_is_not_changed(tmp_path: Path) -> None:
    data = registered_case(tmp_path)
    keys = set(data)
    tensors = {key: value.clone() for key, value in data.items() if isinstance(value, torch.Tensor)}
    run(data)
    assert set(data) == keys
    for key, value in tensors.items():
        assert torch.equal(data[key], value), key


def test_integer_images_keep_their_type_with_rounded_values(tmp_path: Path) -> None:
    data = registered_case(tmp_path)
    data["moving"].meta["original_dtype"] = "int16"
    done = AddTransformsd()(data)
    write_outputs([SaveWarpedMoving()], done, Path(data["case_dir"]))
    ours = read(data, "warped_moving.nii.gz")
    assert ours.get_data_dtype() == np.int16
    exact = postprocessing.warp_onto_fixed(done, "moving", done["transforms"].displacement_mm, dtype="float32")
    np.testing.assert_array_equal(np.asanyarray(ours.dataobj), np.rint(exact))


LABEL_IDS = {
    "int8": (-128, 127),
    "uint8": (1, 255),
    "int16": (-32768, 32767),
    "uint16": (7, 65535),
    "int32": (16777217, 614454277),
    "uint32": (16777217, 4294967295),
    "int64": (16777217, 2**53 - 1),
    "uint64": (16777217, 2**53 - 1),
    "float32": (3, 2**24 - 1),
}


@pytest.mark.parametrize("resampled", [False, True])
@pytest.mark.parametrize("kind", list(LABEL_IDS))
def test_label_ids_and_types_come_through_a_registration(kind: str, resampled: bool, tmp_path: Path) -> None:
    """Against ITK's nearest voxel, on the places of the ids."""
    data = registered_case(tmp_path)
    ids = np.array([0, *LABEL_IDS[kind]], dtype=kind)
    places, files = {}, {}
    for side, seed in (("fixed", 1), ("moving", 0)):
        place = places[side] = np.random.default_rng(seed).integers(0, 3, data[side].shape[1:])
        affine = data[side].affine.numpy().copy()
        grid = place
        if resampled:  # a label on a grid of its own: the image's grid and one voxel more at each side
            grid = np.pad(place, 1)
            affine[:3, 3] -= affine[:3, :3] @ np.ones(3)
        files[side] = tmp_path / f"{side}_ids.nii.gz"
        nib.save(nib.Nifti1Image(ids[grid], affine, dtype=kind), files[side])
    case = {"fixed": tmp_path / "fixed.nii.gz", "moving": tmp_path / "moving.nii.gz"}
    case |= {f"{side}_label": files[side] for side in places}
    case = {key: str(value) for key, value in case.items()}
    loaded = chain(match_orientation=False)({**case, "fixed_modality": "ct", "moving_modality": "ct"})
    data |= {key: loaded[key] for key in ("fixed_label", "moving_label")}
    done = AddMetricsd()(AddWarpedLabeld()(AddTransformsd()(data)))
    write_outputs([SaveWarpedLabel(), SaveTransforms()], done, Path(data["case_dir"]))
    ours = read(data, "warped_label.nii.gz")
    assert ours.get_data_dtype() == kind
    stand_in = write(tmp_path / "places.nii.gz", places["moving"].astype(np.int16), **MOVING)
    data["moving_label"].meta["filename_or_obj"] = stand_in
    by_itk = itk_resample(data, "moving_label", itk_transforms(data, "h5"), itk.NearestNeighborInterpolateImageFunction)
    np.testing.assert_array_equal(np.asanyarray(ours.dataobj), ids[by_itk])
    assert set(done["metrics"]["dice"]["after"]["per_label"]) == set(LABEL_IDS[kind])
    expected = metrics.dice_per_label(places["fixed"], by_itk, [1, 2])
    assert list(done["metrics"]["dice"]["after"]["per_label"].values()) == pytest.approx(list(expected.values()))
    surfaces = surface_distances_mm(
        plain(data["fixed_label"])[0].numpy(), done["warped_label"], LABEL_IDS[kind], (1, 1, 1)
    )
    assert set(surfaces["hd95_mm"]) == set(LABEL_IDS[kind])
    assert np.isfinite(list(surfaces["hd95_mm"].values())).all()


@pytest.mark.parametrize(
    ("kind", "offset", "modality", "padding", "expected"),
    [
        ("int16", 0, "ct", None, -1000),
        ("float32", 0, "ct", None, -1000),
        ("int16", 0, "ct", -2000, -1000),
        ("int32", 0, "ct", -3024, -1000),
        ("uint16", 1024, "ct", None, 24),
        ("uint16", 1000, "ct", None, 0),
        ("float64", 1024.5, "ct", None, 24.5),
        ("int16", 0, "mr", None, 0),
        ("uint16", 1200, "mr", None, 0),
    ],
)
def test_outside_a_moving_ct_lies_air(
    kind: str, offset: float, modality: str, padding: int | None, expected: float, tmp_path: Path
) -> None:
    data = registered_case(tmp_path)
    values = data["moving"].clamp(min=-1000)
    values[:, 8:, :4] = -1000  # where the image is padded, if it is
    if padding is not None:
        values[:, :2, :2] = padding
    data["moving"] = MetaTensor(values.as_tensor() + offset, meta=dict(data["moving"].meta))
    data["moving"].meta["original_dtype"] = kind
    data |= {"fixed_modality": modality, "moving_modality": modality}
    warped = AddWarpedLabeld()(AddTransformsd()(data))
    write_outputs([SaveWarpedMoving(), SaveWarpedLabel()], warped, Path(data["case_dir"]))
    ours = read(data, "warped_moving.nii.gz")
    assert ours.get_data_dtype() == kind
    field, affine = warped["transforms"].displacement_mm, warped["fixed"].affine
    nowhere = np.isnan(warp_image(warped["moving"], field, FIXED_SHAPE, affine, default=float("nan")))
    assert 0.01 < nowhere.mean() < 0.5
    assert set(np.unique(np.asanyarray(ours.dataobj)[nowhere])) == {expected}
    label = np.asanyarray(read(data, "warped_label.nii.gz").dataobj)
    assert set(np.unique(label[nowhere])) == {0}


@pytest.mark.parametrize(("name", "kind"), [("bool", "uint8"), ("float16", "float32"), ("uint16", "uint16")])
def test_types_that_nifti_lacks_are_widened(name: str, kind: str) -> None:
    assert type_on_disk(MetaTensor(torch.zeros(1, 2, 2, 2), meta={"original_dtype": name})) == kind


def test_different_numbers_of_landmarks_are_refused(tmp_path: Path) -> None:
    data = registered_case(tmp_path)
    path = Path(data["fixed_landmarks"])
    path.write_text("\n".join(path.read_text().splitlines()[:-1]))
    with pytest.raises(InputError, match=r"has 5 points and moving_landmarks .* 6"):
        AddMetricsd()(AddWarpedLabeld()(AddTransformsd()(data)))


def test_a_full_disk_is_said_in_one_line_and_leaves_no_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = AddTransformsd()(registered_case(tmp_path))

    def full(*_: object) -> bytes:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(nib.Nifti1Image, "to_stream", full)
    with pytest.raises(InputError, match=r"warped_moving\.nii\.gz' can't be written \(No space left on device\)"):
        write_outputs([SaveWarpedMoving()], data, Path(data["case_dir"]))
    assert list(Path(data["case_dir"]).iterdir()) == []


def test_a_displacement_on_another_grid_of_the_same_field_of_view_is_the_same_transform(tmp_path: Path) -> None:
    data = registered_case(tmp_path, LARGE)
    linear = 0.1 * torch.randn(3, 3, generator=torch.Generator().manual_seed(4))

    def transforms(shape: tuple[int, int, int]) -> tuple[Any, Any]:
        points = identity_grid(shape)[0]
        ddf = torch.einsum("ab,bdhw->adhw", linear, points) * (torch.tensor(shape) - 1).view(3, 1, 1, 1)
        done = AddTransformsd()({**data, "pred": {"forward_ddf": ddf, "inverse_ddf": -ddf}})["transforms"]
        return done.forward, done.inverse

    for fine, coarse in zip(transforms(LARGE), transforms((9, 16, 11)), strict=True):
        points = fine.grid_points(step=3)
        torch.testing.assert_close(coarse(points), fine(points), atol=1e-3, rtol=0)
        assert (fine(points) - fine.without_displacement()(points)).abs().max() > 1


class _Fails(Output):
    files = ()

    def write(self, data: Any, folder: Path) -> tuple[str, ...]:
        raise InputError("disk full")


def test_outputs_side_by_side_are_named_in_order_and_survive_the_error_of_one(tmp_path: Path) -> None:
    data = AddTransformsd()(registered_case(tmp_path, (17, 18, 20)))
    outputs = [SaveTransforms(), SaveDisplacement(), SaveWarpedMoving()]
    names = ("forward_transform.h5", "inverse_transform.h5", "displacement.nii.gz", "warped_moving.nii.gz")
    assert write_outputs(outputs, data, tmp_path / "once") == names
    with pytest.raises(InputError, match="disk full"):
        write_outputs([_Fails(), *outputs], data, tmp_path / "again")
    assert {path.name for path in (tmp_path / "again").iterdir()} == set(names)
