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
"""Headers that can be read in two ways: by the standard's rule and said in a line, or refused; for every use alike."""

from __future__ import annotations

import gzip
import logging
from pathlib import Path
from typing import Any

import itk
import nibabel as nib
import numpy as np
import pytest

from scripts.data.header_checks import check_header
from scripts.data.modality import outside_value
from scripts.data.reading import read_header, read_volume
from scripts.transforms.load import LoadVolumesd
from scripts.utils.errors import InputError
from scripts.workflow import run_workflow

SHAPE = (24, 20, 16)


def rotation(degrees: float, axis: int = 2) -> np.ndarray:
    """Return a rotation about an axis, (3, 3)."""
    cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    first, second = (n for n in range(3) if n != axis)
    matrix = np.eye(3)
    matrix[first, first] = matrix[second, second] = cosine
    matrix[first, second], matrix[second, first] = -sine, sine
    return matrix


def affine_of(turn: np.ndarray, spacing: tuple[float, ...], origin: tuple[float, ...]) -> np.ndarray:
    """Return an affine (4, 4) without shear."""
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = turn * np.array(spacing), origin
    return affine


A = affine_of(rotation(12) @ rotation(-7, 0), (1.5, 1.5, 3.0), (-20.0, 31.0, 5.0))
NEAR = A + np.array([[0, 0, 0, 0.1], [0] * 4, [0] * 4, [0] * 4])
SHIFTED = A + np.array([[0, 0, 0, 24.0], [0] * 4, [0] * 4, [0] * 4])
SHEAR = A @ np.array([[1, 0.3, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])


def values(shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    grid = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape[:3]), indexing="ij")
    radius = np.sqrt(sum(((axis - shift) / 0.6) ** 2 for axis, shift in zip(grid, (0.1, -0.1, 0.05), strict=True)))
    return np.asarray(1000 / (1 + np.exp(12 * (radius - 1))) + 30 * grid[0]).astype(np.int16)


def write(
    path: Path,
    sform: np.ndarray | None = None,
    qform: np.ndarray | None = None,
    codes: tuple[int, int] = (0, 0),
    voxels: np.ndarray | None = None,
    **fields: Any,
) -> str:
    """Write a NIfTI file with its header as it is given, unrepaired; codes are those of sform and qform."""
    voxels = values() if voxels is None else voxels
    image = nib.Nifti1Image(voxels, None, dtype=voxels.dtype)
    header = image.header
    header.set_sform(np.eye(4) if sform is None else sform, code=1)
    header.set_qform(np.eye(4) if qform is None else qform, code=1, strip_shears=True)
    header["sform_code"], header["qform_code"] = codes
    header["magic"], header["vox_offset"] = b"n+1", 352
    for name, value in fields.items():
        field, _, index = name.partition("_at_")
        if index:
            header[field][int(index)] = value
        else:
            header[field] = value
    path.write_bytes(header.binaryblock + bytes(4) + voxels.tobytes(order="F"))
    return str(path)


def load(path: str) -> Any:
    check_header("fixed", path)
    return LoadVolumesd(keys=["fixed"])({"fixed": path})["fixed"]


CONTRADICTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "scanner and aligned": ({"qform": A, "sform": SHIFTED, "codes": (2, 1)}, "contradict each other by up to 24 mm"),
    "scanner and MNI": ({"qform": A, "sform": SHIFTED, "codes": (4, 1)}, "contradict each other by up to 24 mm"),
    "both scanner": ({"qform": A, "sform": SHIFTED, "codes": (1, 1)}, "contradict each other by up to 24 mm"),
    "turned": (
        {"qform": A, "sform": affine_of(rotation(40), (1.5, 1.5, 3.0), (-20.0, 31.0, 5.0)), "codes": (1, 1)},
        "contradict each other",
    ),
    "mirrored": ({"qform": A, "sform": A @ np.diag([-1, 1, 1, 1]), "codes": (2, 1)}, "contradict each other"),
    "half size": ({"sform": A, "codes": (1, 0), "pixdim": [1, 3, 3, 6, 1, 1, 1, 1]}, "pixdim is 3 x 3 x 6 mm"),
    "double size": ({"sform": A, "codes": (2, 0), "pixdim": [1, 0.75, 0.75, 1.5, 1, 1, 1, 1]}, "pixdim is 0.75"),
    "size and qform": ({"qform": A, "sform": A, "codes": (1, 1), "pixdim": [1, 3, 3, 6, 1, 1, 1, 1]}, "contradict"),
    "below zero": ({"qform": A, "sform": A, "codes": (1, 1), "pixdim_at_2": -1.5}, "pixdim is 1.5 x -1.5 x 3 mm"),
    "zero": ({"qform": A, "sform": A, "codes": (1, 1), "pixdim_at_3": 0}, "pixdim is 1.5 x 1.5 x 0 mm"),
    "no rotation": ({"qform": A, "sform": A, "codes": (1, 1), "quatern_b": 1.2}, "no rotation"),
}


@pytest.mark.parametrize(("given", "line"), CONTRADICTIONS.values(), ids=CONTRADICTIONS)
def test_of_two_affines_the_sform_is_used_as_nibabel_does_and_said(
    tmp_path: Path, given: dict[str, Any], line: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path / "a.nii", **given)
    with caplog.at_level(logging.WARNING):
        volume = load(path)
    np.testing.assert_allclose(np.asarray(volume.affine), given["sform"], atol=1e-4)
    np.testing.assert_allclose(np.asarray(volume.affine), nib.load(path).affine, atol=1e-4)
    (said,) = volume.meta["warnings"]
    assert line in said
    assert "a.nii" in said
    assert said in caplog.text


AGREEMENTS: dict[str, dict[str, Any]] = {
    "both": {"qform": A, "sform": A, "codes": (1, 1)},
    "less than a tenth of a voxel apart": {"qform": A, "sform": NEAR, "codes": (2, 1)},
    "sform alone": {"sform": A, "codes": (4, 0), "pixdim": [1, 1.5, 1.5, 3, 1, 1, 1, 1]},
    "qform alone": {"qform": A, "codes": (0, 1)},
    "left-handed qform": {"qform": A @ np.diag([1, 1, -1, 1]), "codes": (0, 1)},
    "qfac of zero": {"qform": A, "codes": (0, 1), "pixdim_at_0": 0},
    "a quaternion that was rounded": {
        "qform": affine_of(np.diag([1.0, -1, -1]), (1, 1, 1), (0, 0, 0)),
        "codes": (0, 1),
        "quatern_b": 1.0001,
    },
}


@pytest.mark.parametrize("given", AGREEMENTS.values(), ids=AGREEMENTS)
def test_headers_that_agree_are_read_without_a_word(tmp_path: Path, given: dict[str, Any]) -> None:
    path = write(tmp_path / "a.nii", **given)
    volume = load(path)
    expected = given["sform"] if given["codes"][0] else given["qform"]
    np.testing.assert_allclose(np.asarray(volume.affine), expected, atol=1e-4)
    assert volume.meta["warnings"] == []
    image = itk.imread(path)  # and as ITK reads it
    lps = np.diag([-1, -1, 1]) @ np.asarray(volume.affine)[:3]
    axes = itk.array_from_matrix(image.GetDirection()) * np.array(image.GetSpacing())
    np.testing.assert_allclose(lps[:, 3], list(image.GetOrigin()), atol=0.1)
    np.testing.assert_allclose(lps[:, :3], axes, atol=1e-3)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "sheared sform": ({"sform": SHEAR, "codes": (1, 0)}, "sheared axes"),
    "sheared sform beside a valid qform": ({"sform": SHEAR, "qform": A, "codes": (2, 1)}, "sheared axes"),
    "qform with a spacing below zero": ({"qform": A, "codes": (0, 1), "pixdim_at_2": -1.5}, "pixdim = 1.5 x -1.5 x 3"),
    "qform with a spacing of zero": ({"qform": A, "codes": (0, 1), "pixdim_at_3": 0}, "pixdim = 1.5 x 1.5 x 0"),
    "qform with a quaternion beyond rounding": ({"qform": A, "codes": (0, 1), "quatern_b": 1.006}, "no rotation"),
    "qform without a place": ({"qform": A, "codes": (0, 1), "qoffset_x": np.nan}, "qoffset_x = "),
    "qform without a rotation": ({"qform": A, "codes": (0, 1), "quatern_b": 1.2}, "no rotation"),
    "a code of no world": ({"sform": A, "qform": A, "codes": (1000, 1)}, "sform_code = 1000"),
    "a code below zero": ({"sform": A, "qform": A, "codes": (1, -1)}, "qform_code = -1"),
    "no affine and no spacing": ({"codes": (0, 0), "pixdim_at_1": 0}, "no affine"),
}


@pytest.mark.parametrize(("given", "line"), REFUSED.values(), ids=REFUSED)
@pytest.mark.parametrize("use", ["register", "apply"])
def test_headers_without_a_safe_reading_are_refused(tmp_path: Path, given: dict[str, Any], line: str, use: str) -> None:
    path, good = write(tmp_path / "a.nii", **given), write(tmp_path / "good.nii", sform=A, codes=(1, 0))
    shift = tmp_path / "shift.txt"
    itk.transformwrite([itk.TranslationTransform[itk.D, 3].New()], str(shift))
    options = (
        {"fixed": path, "moving": good}
        if use == "register"
        else {"transform": str(shift), "fixed": path, "image": good}
    )
    with pytest.raises(InputError, match=rf"a\.nii' has .*{line}"):
        run_workflow(
            ["inference.yaml" if use == "register" else "apply.yaml"], {**options, "output_dir": str(tmp_path)}
        )


@pytest.mark.parametrize("digits", [3, 4])
def test_a_rounded_oblique_sform_is_taken_with_the_nearest_rotation(tmp_path: Path, digits: int) -> None:
    exact = affine_of(rotation(23) @ rotation(17, 1) @ rotation(-8, 0), (0.7, 0.9, 2.5), (-31.3, 40.1, 7.7))
    rounded = np.round(exact, digits)
    volume = load(write(tmp_path / "a.nii", sform=rounded, codes=(1, 0)))
    affine = np.asarray(volume.affine)
    unit = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    np.testing.assert_allclose(unit.T @ unit, np.eye(3), atol=1e-6)
    ends = np.array([[i, j, k, 1] for i in (0, 23) for j in (0, 19) for k in (0, 15)])
    assert np.abs(ends @ (affine - rounded).T).max() < 0.1 * 0.7
    middle = np.array([11.5, 9.5, 7.5, 1])
    np.testing.assert_allclose(affine @ middle, rounded @ middle, atol=1e-5)  # the error is shared out


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("name", ["a.hdr", "a.img"])
def test_pairs_of_header_and_image_follow_the_same_rule(tmp_path: Path, suffix: str, name: str) -> None:
    pair = nib.Nifti1Pair(values(), A)
    pair.set_qform(A, 1)
    pair.set_sform(SHIFTED, 4)
    nib.save(pair, tmp_path / "a.img")
    if suffix:
        for part in ("a.hdr", "a.img"):
            (tmp_path / f"{part}.gz").write_bytes(gzip.compress((tmp_path / part).read_bytes()))
            (tmp_path / part).unlink()
    volume = load(str(tmp_path / (name + suffix)))
    np.testing.assert_allclose(np.asarray(volume.affine), SHIFTED, atol=1e-4)
    np.testing.assert_array_equal(volume[0].numpy(), values())
    (said,) = volume.meta["warnings"]
    assert "contradict each other by up to 24 mm" in said


@pytest.mark.parametrize(("name", "packed"), [("a.nii.gz", False), ("a.nii", True), ("a.nrrd", True), ("a.mha", True)])
def test_a_name_that_contradicts_the_compression_is_said(tmp_path: Path, name: str, packed: bool) -> None:
    good = Path(write(tmp_path / "good.nii", sform=A, codes=(1, 0))).read_bytes()
    (tmp_path / name).write_bytes(gzip.compress(good) if packed else good)
    with pytest.raises(InputError, match=r"is compressed with gzip; rename" if packed else "is not compressed.*rename"):
        load(str(tmp_path / name))


def test_without_codes_the_axes_are_taken_as_itk_does_and_results_say_no_more(tmp_path: Path) -> None:
    path = write(tmp_path / "a.nii", codes=(0, 0), pixdim=[1, 1.5, 1.5, 3, 1, 1, 1, 1])
    volume = load(path)
    assert "records no orientation" in volume.meta["warnings"][0]
    image = itk.imread(path)
    np.testing.assert_allclose(np.diag(np.asarray(volume.affine)), [-1.5, -1.5, 3, 1])
    assert list(image.GetOrigin()) == [0, 0, 0]
    np.testing.assert_allclose(itk.array_from_matrix(image.GetDirection()), np.eye(3))
    applied = apply_identity(tmp_path, path, path)
    assert (int(applied.header["sform_code"]), int(applied.header["qform_code"])) == (0, 0)
    np.testing.assert_allclose(applied.header["pixdim"][1:4], [1.5, 1.5, 3])


def apply_identity(folder: Path, fixed: str, image: str, **options: Any) -> Any:
    """Apply the transform that changes nothing; return the result as nibabel reads it."""
    itk.transformwrite([itk.TranslationTransform[itk.D, 3].New()], str(folder / "identity.txt"))
    key = "label" if options.pop("is_label", False) else "image"
    given = {"transform": str(folder / "identity.txt"), "fixed": fixed, key: image, "output_dir": str(folder / "out")}
    run_workflow(["apply.yaml"], {**given, **options})
    (written,) = (folder / "out").glob(f"{Path(image).name.split('.')[0]}_warped.nii.gz")
    return nib.load(written)


@pytest.mark.parametrize("code", [1, 2, 3, 4, 5])
def test_results_are_in_the_world_that_the_fixed_image_names(tmp_path: Path, code: int) -> None:
    path = write(tmp_path / "a.nii", sform=A, qform=A, codes=(code, 1))
    image = apply_identity(tmp_path, path, path)
    assert (int(image.header["sform_code"]), int(image.header["qform_code"])) == (code, code)
    np.testing.assert_allclose(image.affine, A, atol=1e-4)


@pytest.mark.parametrize("given", [CONTRADICTIONS["scanner and MNI"][0], CONTRADICTIONS["half size"][0]])
def test_apply_follows_the_same_rule_for_fixed_and_moving(tmp_path: Path, given: dict[str, Any]) -> None:
    path = write(tmp_path / "a.nii", **given)
    plain = write(tmp_path / "b.nii", sform=given["sform"], qform=given["sform"], codes=(1, 1))
    for fixed, moving in ((path, plain), (plain, path)):
        image = apply_identity(tmp_path, fixed, moving)
        np.testing.assert_allclose(image.affine, given["sform"], atol=1e-4)
        np.testing.assert_array_equal(np.asanyarray(image.dataobj), values())


NRRD = """NRRD0004
type: short
dimension: 3
sizes: 24 20 16
encoding: raw
endian: little
{}
space origin: (10,20,30)
kinds: domain domain domain

"""
MHA = """ObjectType = Image
NDims = 3
BinaryData = True
BinaryDataByteOrderMSB = False
TransformMatrix = 1 0 0 0 1 0 0 0 1
Offset = 10 20 30
{}ElementSpacing = 2 2 3
DimSize = 24 20 16
ElementType = MET_SHORT
ElementDataFile = LOCAL
"""
DIRECTIONS = "space directions: (2,0,0) (0,2,0) (0,0,3)"
SPACE = "space: left-posterior-superior\n"


def text_file(path: Path, fields: str) -> str:
    header = NRRD.format(fields) if path.suffix == ".nrrd" else MHA.format(fields)
    path.write_bytes(header.encode() + values().tobytes(order="F"))
    return str(path)


@pytest.mark.parametrize(
    ("name", "fields", "scale"),
    [
        ("a.nrrd", f'{SPACE}{DIRECTIONS}\nspace units: "um" "um" "um"', 1e-3),
        ("a.nrrd", f'{SPACE}{DIRECTIONS}\nspace units: "microns" "microns" "microns"', 1e-3),
        ("a.nrrd", f'{SPACE}{DIRECTIONS}\nspace units: "\u00b5m" "\u00b5m" "\u00b5m"', 1e-3),
        ("a.nrrd", f'{SPACE}{DIRECTIONS}\nspace units: "cm" "cm" "cm"', 10),
        ("a.nrrd", f'{SPACE}{DIRECTIONS}\nspace units: "m" "m" "m"', 1000),
        ("a.mha", "DistanceUnits = um\n", 1e-3),
        ("a.mha", "DistanceUnits = cm\n", 10),
        ("a.nrrd", f'{SPACE}{DIRECTIONS}\nspace units: "micrometres" "micrometres" "micrometres"', 1e-3),
        ("a.nrrd", f'{SPACE}{DIRECTIONS}\nspace units: "mm" "mm" "mm"', 1),
        ("a.nrrd", f"{SPACE}{DIRECTIONS}", 1),
        ("a.mha", "DistanceUnits = mm\n", 1),
        ("a.mha", "", 1),
    ],
)
def test_other_units_than_mm_are_converted_and_said(tmp_path: Path, name: str, fields: str, scale: float) -> None:
    path = text_file(tmp_path / name, fields)
    volume = load(path)
    expected = np.diag([-2.0, -2.0, 3.0, 1.0])
    expected[:3, 3] = (-10, -20, 30)
    expected[:3] *= scale
    np.testing.assert_allclose(np.asarray(volume.affine), expected, rtol=1e-6)
    assert len(volume.meta["warnings"]) == (scale != 1)
    np.testing.assert_allclose(apply_identity(tmp_path, path, path).affine, expected, rtol=1e-5)


@pytest.mark.parametrize("units", ['"furlong" "furlong" "furlong"', '"mm" "mm" "um"'])
def test_units_that_are_unknown_or_differ_are_refused(tmp_path: Path, units: str) -> None:
    with pytest.raises(InputError, match=r"a\.nrrd' states lengths in .*give it in mm"):
        load(text_file(tmp_path / "a.nrrd", f"{SPACE}{DIRECTIONS}\nspace units: {units}"))


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("a.nrrd", f"{SPACE}space directions: (2,0,0) (0.6,2,0) (0,0,3)"),
        ("a.nrrd", f"{SPACE}space directions: (2,0,0) (0,2,0) (0,1.6,3)"),
        ("a.mha", ""),
    ],
)
def test_sheared_axes_are_refused_whatever_the_format(tmp_path: Path, name: str, fields: str) -> None:
    path = text_file(tmp_path / name, fields)
    if name == "a.mha":
        content = Path(path).read_bytes()
        Path(path).write_bytes(content.replace(b"1 0 0 0 1 0 0 0 1", b"1 0 0 0.3 0.954 0 0 0 1"))
    with pytest.raises(InputError, match=r"fixed: .*sheared axes"):
        check_header("fixed", path)
    good = text_file(tmp_path / "good.nrrd", SPACE + DIRECTIONS)
    for fixed, image in ((path, good), (good, path)):
        with pytest.raises(InputError, match="sheared axes"):
            apply_identity(tmp_path, fixed, image)


@pytest.mark.parametrize(
    ("space", "signs"),
    [
        ("right-anterior-superior", (1, 1, 1)),
        ("RAS", (1, 1, 1)),
        ("left-anterior-superior", (-1, 1, 1)),
        ("left-posterior-superior", (-1, -1, 1)),
    ],
)
def test_the_spaces_of_nrrd_are_those_of_patients(tmp_path: Path, space: str, signs: tuple[int, ...]) -> None:
    volume = load(text_file(tmp_path / "a.nrrd", f"space: {space}\n{DIRECTIONS}"))
    np.testing.assert_allclose(np.asarray(volume.affine)[:3, :3], np.diag(signs) @ np.diag([2, 2, 3]), atol=1e-9)
    np.testing.assert_allclose(np.asarray(volume.affine)[:3, 3], np.array(signs) * (10, 20, 30), atol=1e-9)
    assert volume.meta["warnings"] == []


@pytest.mark.parametrize(
    "fields",
    [
        f"space dimension: 3\n{DIRECTIONS}",
        f"space: scanner-xyz\n{DIRECTIONS}",
        f"{SPACE}space directions: none none none",
    ],
)
def test_an_nrrd_without_a_world_of_patients_is_said(tmp_path: Path, fields: str) -> None:
    (said,) = load(text_file(tmp_path / "a.nrrd", fields)).meta["warnings"]
    assert "records no orientation" in said


def test_a_metaimage_without_place_or_scaled_is_said(tmp_path: Path) -> None:
    path = Path(text_file(tmp_path / "a.mha", "ElementToIntensityFunctionSlope = 2.5\n"))
    (said,) = load(str(path)).meta["warnings"]
    assert "scales the values" in said
    lines = path.read_bytes().replace(b"TransformMatrix = 1 0 0 0 1 0 0 0 1\nOffset = 10 20 30\n", b"")
    path.write_bytes(lines.replace(b"ElementToIntensityFunctionSlope = 2.5\n", b""))
    (said,) = load(str(path)).meta["warnings"]
    assert "records no orientation" in said


@pytest.mark.parametrize("kind", ["scale", "matrix"])
def test_an_analyze_file_that_only_spm_reads_rightly_is_refused(tmp_path: Path, kind: str) -> None:
    image = nib.Spm99AnalyzeImage(values(), A) if kind == "matrix" else nib.AnalyzeImage(values(), A)
    image.to_filename(tmp_path / "a.img")
    if kind == "scale":
        header = bytearray((tmp_path / "a.hdr").read_bytes())
        header[112:116] = np.float32(2.5).tobytes()
        (tmp_path / "a.hdr").write_bytes(bytes(header))
    with pytest.raises(InputError, match=r"2\.5 that only SPM" if kind == "scale" else r"geometry in '.*a\.mat'"):
        load(str(tmp_path / "a.img"))


def test_an_analyze_file_has_no_orientation_and_says_so(tmp_path: Path) -> None:
    nib.AnalyzeImage(values(), np.diag([-1.5, 1.2, 2.0, 1.0])).to_filename(tmp_path / "a.img")
    for name in ("a.img", "a.hdr"):
        volume = load(str(tmp_path / name))
        assert "records no orientation" in volume.meta["warnings"][0]
        np.testing.assert_array_equal(volume[0].numpy(), values())
        np.testing.assert_allclose(
            np.linalg.norm(np.asarray(volume.affine)[:3, :3], axis=0), [1.5, 1.2, 2.0], atol=1e-6
        )


def test_colors_are_refused_where_they_would_be_read(tmp_path: Path) -> None:
    colors = np.zeros(SHAPE, dtype=[(letter, "u1") for letter in "RGB"])
    nib.save(nib.Nifti1Image(colors, A), tmp_path / "a.nii")
    assert read_header(str(tmp_path / "a.nii")).components == 3
    with pytest.raises(InputError, match="has colors"):
        read_volume(str(tmp_path / "a.nii"))


def test_nifti_2_is_read(tmp_path: Path) -> None:
    image = nib.Nifti2Image(values(), OBLIQUE_STRAIGHT)
    nib.save(image, tmp_path / "a.nii.gz")
    volume = load(str(tmp_path / "a.nii.gz"))
    np.testing.assert_allclose(np.asarray(volume.affine), OBLIQUE_STRAIGHT, atol=1e-6)
    np.testing.assert_array_equal(volume[0].numpy(), values())


OBLIQUE_STRAIGHT = affine_of(rotation(10) @ rotation(5, 1), (1.9, 2.0, 3.0), (-31.0, 12.0, 40.0))
INTEGERS = ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64")


@pytest.mark.parametrize("dtype", [*INTEGERS, "float32", "float64"])
@pytest.mark.parametrize("is_label", [True, False])
def test_apply_keeps_type_and_numbers(tmp_path: Path, dtype: str, is_label: bool) -> None:
    voxels = np.zeros(SHAPE, dtype=dtype)
    kind = np.dtype(dtype)
    largest = min(np.iinfo(kind).max, 614454277 if kind.itemsize < 8 else 2**53 - 1) if kind.kind in "iu" else 12345
    voxels[2:9, 3:8, 4:9], voxels[12:20, 9:15, 5:12] = 3, largest
    voxels[10, 10, 10] = min(16777217, largest)
    path = write(tmp_path / "a.nii", sform=A, codes=(1, 0), voxels=voxels)
    image = apply_identity(tmp_path, path, path, is_label=is_label)
    assert image.get_data_dtype() == dtype
    found = np.asanyarray(image.dataobj)
    if is_label:
        np.testing.assert_array_equal(found, voxels)
    else:  # interpolated
        np.testing.assert_allclose(found, voxels, rtol=1e-6, atol=largest * 1e-6)


@pytest.mark.parametrize("value", [2**53 + 1, -(2**53) - 1])
def test_label_ids_that_would_be_rounded_are_refused_by_apply(tmp_path: Path, value: int) -> None:
    voxels = np.zeros(SHAPE, np.int64)
    voxels[2:9, 3:8, 4:9] = value
    path = write(tmp_path / "a.nii", sform=A, codes=(1, 0), voxels=voxels)
    with pytest.raises(InputError, match="would be rounded"):
        apply_identity(tmp_path, path, path, is_label=True)


@pytest.mark.parametrize(("modality", "low", "outside"), [("mr", -2000, 0), ("ct", -1000, -1000)])
def test_register_and_apply_put_the_same_value_outside(tmp_path: Path, modality: str, low: int, outside: int) -> None:
    voxels = (
        values().astype(np.int32) * 4 + low if modality == "mr" else np.where(values() > 500, 40, low) + values() % 7
    )
    fixed = write(tmp_path / "f.nii", sform=A, codes=(1, 0), voxels=voxels.astype(np.int16))
    beside = A @ np.array([[1, 0, 0, 12], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    moving = write(tmp_path / "m.nii", sform=beside, codes=(1, 0), voxels=voxels.astype(np.int16))
    result = apply_identity(tmp_path, fixed, moving)
    assert set(np.asanyarray(result.dataobj)[0].ravel().tolist()) == {outside}
    assert outside_value(voxels, modality) == outside


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_apply_keeps_nan_where_it_is(tmp_path: Path, suffix: str) -> None:
    voxels = values().astype(np.float32)
    voxels[5, 6, 7] = np.nan
    nib.save(nib.Nifti1Image(voxels, A), tmp_path / f"a{suffix}")
    path = str(tmp_path / f"a{suffix}")
    result = np.asanyarray(apply_identity(tmp_path, path, path).dataobj)
    assert np.isnan(result[5, 6, 7])
    far = np.ones(SHAPE, bool)
    far[4:7, 5:8, 6:9] = False
    np.testing.assert_allclose(result[far], voxels[far], atol=1e-3)
    with pytest.raises(InputError, match="NaN or infinite"):
        apply_identity(tmp_path, path, path, interpolation="bspline")
    with pytest.raises(InputError, match="NaN or infinite"):
        apply_identity(tmp_path, path, path, is_label=True)


def test_warnings_reach_log_report_table_and_pages(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fixed = write(tmp_path / "a.nii", **CONTRADICTIONS["scanner and MNI"][0])
    moving = write(tmp_path / "b.nii", sform=SHIFTED, codes=(1, 0), pixdim=[1, 1.5, 1.5, 3, 1, 1, 1, 1])
    (tmp_path / "pairs.csv").write_text("case,fixed,moving\np,a.nii,b.nii\n")
    small = {"image_shape": [48, 48, 48], "field::levels": {"default": [[16, 2]]}, "model": "none", "progress": False}
    options = {**small, "save::overview": False, "datalist": str(tmp_path / "pairs.csv")}
    with caplog.at_level(logging.WARNING):
        run_workflow(["inference.yaml", "cohort.yaml"], {**options, "output_dir": str(tmp_path / "out")})
    line = "contradict each other by up to 24 mm"
    assert line in caplog.text
    for name in ("p/report.json", "p/report.html", "cohort.csv", "cohort.html", "cohort.json"):
        assert line in (tmp_path / "out" / name).read_text(encoding="utf-8"), name
    assert str(tmp_path) not in (tmp_path / "out/p/report.html").read_text(encoding="utf-8")
    assert read_header(fixed).warnings
    assert not read_header(moving).warnings
