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
"""Fields of other tools: one known map, written as each tool writes it, is read as that map or refused by name."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import itk
import nibabel as nib
import numpy as np
import pytest
import torch

from scripts.apply.run import load_inputs
from scripts.data.field_formats import convert_field
from scripts.data.itk_resampling import Grid, header_grid, sample_transform
from scripts.data.reading import read_header
from scripts.data.transform_files import read_transform
from scripts.utils.errors import InputFileError
from tests.apply.test_run import apply, values
from tests.helpers.chain import oblique

SHAPE = (14, 12, 10)
FLIP = np.array([-1.0, -1.0, 1.0])
LINEAR = np.array([[0.06, -0.04, 0.02], [0.03, 0.05, -0.03], [-0.02, 0.04, -0.05]])  # of the displacement, RAS
OFFSET = np.array([4.0, -7.0, 2.5])
AFFINE = np.eye(4)
AFFINE[:3, :3] = oblique(12) * [2.0, 2.5, 3.0]
AFFINE[:3, 3] = [-80.0, 30.0, 55.0]


def world() -> np.ndarray:
    """Return the world coordinates of the voxels, (I, J, K, 3), RAS mm."""
    voxels = np.stack(np.meshgrid(*(np.arange(n) for n in SHAPE), indexing="ij"), axis=-1)
    return nib.affines.apply_affine(AFFINE, voxels)


def displacement() -> np.ndarray:
    """Return the known map's displacements at the voxels, (I, J, K, 3), RAS mm: linear, so interpolation is exact."""
    return world() @ LINEAR.T + OFFSET


def write(
    path: Path, field: np.ndarray, code: int = 0, name: str = "", p1: float = 0, descrip: str = "", five: bool = True
) -> str:
    """Write a field (I, J, K, 3) with nibabel."""
    image = nib.Nifti1Image((field[:, :, :, None] if five else field).astype(np.float32), AFFINE)
    image.header["intent_code"], image.header["intent_name"] = code, name
    image.header["intent_p1"], image.header["descrip"] = p1, descrip
    image.to_filename(path)
    return str(path)


def check(transform: Any) -> None:
    """Compare a transform with the known map in the middle of some voxels."""
    points = world()[2:-2:3, 2:-2:2, 2:-2:2].reshape(-1, 3) + AFFINE[:3, :3] @ [0.4, 0.3, -0.2]
    expected = points + points @ LINEAR.T + OFFSET
    found = np.array([list(transform.TransformPoint(point)) for point in (points * FLIP).tolist()]) * FLIP
    np.testing.assert_allclose(found, expected, atol=1e-3)


def fsl_mm(shape: tuple[int, ...], affine: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Return RAS points in FSL's mm: along the voxel axes, the first one turned if the determinant is above 0."""
    voxels = nib.affines.apply_affine(np.linalg.inv(affine), points)
    if np.linalg.det(affine) > 0:
        voxels[..., 0] = shape[0] - 1 - voxels[..., 0]
    return voxels * np.linalg.norm(affine[:3, :3], axis=0)


READ: dict[str, dict[str, Any]] = {
    "ITK": {"field": lambda: displacement() * FLIP, "code": 1007},
    "NIfTI": {"field": displacement, "code": 1006},
    "SPM, Deformations": {
        "field": lambda: world() + displacement(),
        "code": 1007,
        "name": "Mapping",
        "descrip": "Deformation field",
    },
    "SPM, y_": {"field": lambda: world() + displacement(), "descrip": "Deformation"},
    "SPM, iy_": {"field": lambda: world() + displacement(), "descrip": "Inverse Deformation"},
    "SPM through ITK": {"field": lambda: world() + displacement(), "code": 1007, "descrip": "Deformation"},
    "NiftyReg, -def": {"field": lambda: world() + displacement(), "code": 1007, "name": "NREG_TRANS"},
    "NiftyReg, -disp": {"field": displacement, "code": 1007, "name": "NREG_TRANS", "p1": 1},
}


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize("kind", READ)
def test_a_field_of_each_tool_is_read_as_the_map_it_stands_for(tmp_path: Path, kind: str, ending: str) -> None:
    options = {**READ[kind], "field": READ[kind]["field"]()}
    check(read_transform(write(tmp_path / f"warp{ending}", **options)))


@pytest.mark.parametrize("absolute", [False, True])
@pytest.mark.parametrize(("fixed_sign", "moving_sign"), [(1, 1), (1, -1), (-1, 1), (-1, -1)])
def test_a_warp_of_fsl_is_read_with_the_moving_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fixed_sign: int, moving_sign: int, absolute: bool
) -> None:
    fixed = AFFINE @ np.diag([fixed_sign, 1, 1, 1])
    monkeypatch.setattr("tests.data.test_foreign_fields.AFFINE", fixed)
    moving, shape = np.eye(4), (20, 25, 18)
    moving[:3, :3] = oblique(-20) * [moving_sign * 1.5, 2.0, 2.2]
    moving[:3, 3] = [10.0, -5.0, 3.0]
    field = fsl_mm(shape, moving, world() + displacement())
    if not absolute:
        field = field - fsl_mm(SHAPE, fixed, world())
    path = write(tmp_path / "warp.nii.gz", field, code=2006, five=False)
    with pytest.raises(InputFileError, match=r"warp of FSL.*--moving"):
        read_transform(path)
    check(read_transform(path, Grid(shape, torch.from_numpy(moving))))


@pytest.mark.parametrize("name", ["itk", "ants", "nifti", "fsl"])
def test_what_convert_writes_is_read_as_the_same_transform(tmp_path: Path, name: str) -> None:
    moving = Grid((20, 25, 18), torch.from_numpy(AFFINE @ np.diag([-1.5, 0.8, 0.7, 1.0])))
    ours = torch.from_numpy(np.moveaxis(displacement(), -1, 0).astype(np.float32))
    file = convert_field(name, ours, torch.from_numpy(AFFINE), tmp_path, moving)
    check(read_transform(str(tmp_path / file), moving))


def test_apply_takes_a_warp_of_fsl_with_moving_and_a_deformation_of_spm_as_the_grid(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    for name, affine in (("fixed", AFFINE), ("moving", AFFINE)):
        nib.Nifti1Image(rng.random(SHAPE).astype(np.float32), affine).to_filename(tmp_path / f"{name}.nii.gz")
    moving = str(tmp_path / "moving.nii.gz")
    grid = header_grid(read_header(moving))
    fsl = convert_field(
        "fsl", torch.from_numpy(np.moveaxis(displacement(), -1, 0)).float(), grid.affine_ras, tmp_path, grid
    )
    results = {}
    for kind, path in (
        ("itk", write(tmp_path / "w.nii.gz", displacement() * FLIP, 1007)),
        ("spm", write(tmp_path / "y_a.nii", world() + displacement(), descrip="Deformation")),
        ("fsl", str(tmp_path / fsl)),
    ):
        out = apply(tmp_path / kind, transform=path, image=moving, moving=moving)
        results[kind] = values(out / "moving_warped.nii.gz")
    assert results["itk"].max() > 0.5
    np.testing.assert_allclose(results["spm"], results["itk"], atol=1e-3)
    np.testing.assert_allclose(results["fsl"], results["itk"], atol=1e-3)
    assert load_inputs(transform=str(tmp_path / fsl), image=moving, output_dir=str(tmp_path / "o")) is not None


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "coefficients of FNIRT": ({"code": 2007, "five": False}, "cubic spline coefficients.*fnirtfileutils"),
    "DCT coefficients": ({"code": 2008, "five": False}, "cosine coefficients"),
    "coefficients of topup": ({"code": 2016, "five": False}, "coefficients of FSL's topup"),
    "NiftyReg, control points": ({"code": 1007, "name": "NREG_TRANS", "p1": 2}, "control points.*reg_transform"),
    "NiftyReg, velocity": ({"code": 1007, "name": "NREG_TRANS", "p1": 3}, "velocity field of NiftyReg"),
    "NiftyReg, displacement velocity": ({"code": 1007, "name": "NREG_TRANS", "p1": 4}, "velocity field"),
    "NiftyReg, velocity grid": ({"code": 1007, "name": "NREG_TRANS", "p1": 5}, "velocity grid"),
    "NiftyReg, other": ({"code": 1007, "name": "NREG_TRANS", "p1": 9}, "unknown kind"),
    "NiftyReg, old": ({"code": 1007, "name": "NREG_CPP_FILE"}, "of NiftyReg"),
    "SPM, flow": ({"descrip": "Flow field"}, "flow or velocity field"),
    "SPM, velocity": ({"descrip": "Velocity (1 2 3 4 5)"}, "flow or velocity field"),
    "SPM, named flow": ({"code": 1007, "name": "Flow"}, "flow or velocity field"),
    "Learn2Reg, MONAI, VoxelMorph": ({"five": False}, "Learn2Reg, MONAI, VoxelMorph.*give displacements in LPS mm"),
    "4-D vectors": ({"five": False, "code": 1007}, "intent_code 1007.*5-D"),
    "4-D displacements": ({"five": False, "code": 1006}, "intent_code 1006.*5-D"),
    "5-D without intent": ({}, "intent_code 0.*give displacements in LPS mm"),
    "5-D of statistics": ({"code": 3}, "intent_code 3"),
    "contradiction": ({"code": 1007, "descrip": "Deformation"}, "says it is a deformation of SPM.*no coordinates"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_field_that_can_not_be_told_or_used_is_refused_by_name(tmp_path: Path, kind: str) -> None:
    options, words = REFUSED[kind]
    path = write(tmp_path / "warp.nii.gz", displacement(), **options)
    with pytest.raises(InputFileError, match=words) as caught:
        read_transform(path, Grid(SHAPE, torch.from_numpy(AFFINE)))
    assert "\n" not in str(caught.value)
    assert "warp.nii.gz" in str(caught.value)


@pytest.mark.parametrize("ending", [".nii.gz", ".mha", ".nrrd"])
@pytest.mark.parametrize("space", ["RAS", "LPS"])
def test_coordinates_without_a_name_are_refused(tmp_path: Path, space: str, ending: str) -> None:
    field = (world() + displacement()) * (FLIP if space == "LPS" else 1)
    source = write(tmp_path / "warp.nii.gz", field, code=1007)
    path = str(tmp_path / f"other{ending}")
    itk.imwrite(itk.imread(source), path)
    with pytest.raises(InputFileError, match=rf"looks like a deformation \(absolute coordinates in {space} mm\)"):
        read_transform(path)


@pytest.mark.parametrize("stretch", [0.0, 0.5, 2.0])
def test_large_displacements_are_no_coordinates(tmp_path: Path, stretch: float) -> None:
    """A far shift, and a magnification of 1.5 and 3."""
    field = world() * FLIP * stretch + [500.0, -300.0, 900.0]
    transform = read_transform(write(tmp_path / "warp.nii.gz", field, code=1007))
    point = world()[5, 5, 5] * FLIP
    found = np.array(list(transform.TransformPoint(point.tolist())))
    np.testing.assert_allclose(found, point * (1 + stretch) + [500.0, -300.0, 900.0], rtol=1e-5)


def nrrd(path: Path, space: str = "left-posterior-superior", frame: str = "") -> str:
    """Write a constant displacement (3, -2, 1) as NRRD, by hand."""
    path.write_bytes(
        (
            f"NRRD0004\ntype: float\ndimension: 4\nspace: {space}\nsizes: 3 6 6 6\n"
            "space directions: none (2,0,0) (0,2,0) (0,0,2)\nkinds: vector domain domain domain\nendian: little\n"
            f"encoding: raw\nspace origin: (-5,-5,-5)\n{frame}\n"
        ).encode()
        + np.broadcast_to(np.float32([3, -2, 1]), (6, 6, 6, 3)).tobytes()
    )
    return str(path)


SAME, TURNED = "measurement frame: (1,0,0) (0,1,0) (0,0,1)\n", "measurement frame: (-1,0,0) (0,-1,0) (0,0,1)\n"


@pytest.mark.parametrize(("space", "frame"), [("LPS", ""), ("LPS", SAME), ("RAS", ""), ("RAS", TURNED)])
def test_vectors_of_nrrd_are_lps_as_3d_slicer_writes_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, space: str, frame: str
) -> None:
    long = {"LPS": "left-posterior-superior", "RAS": "right-anterior-superior"}[space]
    with caplog.at_level(logging.WARNING):
        transform = read_transform(nrrd(tmp_path / "w.nrrd", long, frame))
    np.testing.assert_allclose(list(transform.TransformPoint((0.0, 0.0, 0.0))), [3, -2, 1])
    assert bool("taken in LPS" in caplog.text) == (space == "RAS" and not frame)


@pytest.mark.parametrize(("space", "frame"), [("LPS", TURNED), ("RAS", SAME)])
def test_vectors_of_nrrd_in_other_axes_are_refused(tmp_path: Path, space: str, frame: str) -> None:
    long = {"LPS": "left-posterior-superior", "RAS": "right-anterior-superior"}[space]
    with pytest.raises(InputFileError, match="vectors in other axes than LPS"):
        read_transform(nrrd(tmp_path / "w.nrrd", long, frame))


def test_an_elastix_field_and_itk_s_own_file_are_read(tmp_path: Path) -> None:
    image = itk.imread(write(tmp_path / "warp.nii.gz", displacement() * FLIP, code=1007))
    for name in ("deformationField.mhd", "deformationField.nii.gz", "grid.nrrd"):
        itk.imwrite(image, str(tmp_path / name))
        check(read_transform(str(tmp_path / name)))


def test_the_field_reads_itself_on_its_own_grid(tmp_path: Path) -> None:
    path = write(tmp_path / "y_a.nii", world() + displacement(), descrip="Deformation")
    field = sample_transform(read_transform(path), header_grid(read_header(path)))
    np.testing.assert_allclose(np.moveaxis(field.numpy(), 0, -1), displacement(), atol=1e-3)
