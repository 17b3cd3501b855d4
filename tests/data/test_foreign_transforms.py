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
"""Transform files of other tools, read as hand-computed points, SimpleITK and ANTs say, or refused by name."""

from __future__ import annotations

from pathlib import Path

import itk
import numpy as np
import pytest

from scripts.data.itk_transforms import write_itk
from scripts.data.transform_files import invert, read_transform
from scripts.utils.errors import InputFileError
from tests.data.test_transform_files import at

MATRIX = np.array([[1.1, 0.0, 0.1], [0.0, 0.9, 0.0], [0.0, 0.2, 1.0]])
SHIFT, CENTER, POINT = np.array([1.0, 2.0, 3.0]), np.array([5.0, 6.0, 7.0]), (10.0, 20.0, 30.0)
MOVED = MATRIX @ (np.array(POINT) - CENTER) + CENTER + SHIFT
AFFINE = [*MATRIX.ravel(), *SHIFT]
RIGID = [0.1, 0.2, 0.3, *SHIFT]
ANGLES = [*CENTER, 0.0]


def write_text(path: Path, kind: str, parameters: list[float], fixed: list[float]) -> str:
    """Write a transform in ITK's text form by hand."""
    path.write_text(
        "#Insight Transform File V1.0\n#Transform 0\n"
        f"Transform: {kind}\nParameters: {' '.join(map(str, parameters))}\n"
        f"FixedParameters: {' '.join(map(str, fixed))}\n"
    )
    return str(path)


def write_matlab(path: Path, kind: str, parameters: list[float], fixed: list[float]) -> str:
    """Write a transform by hand as ITK and ANTs do in MATLAB 4 files: arrays of double or float with their names."""
    content = b""
    for name, numbers in ((kind, parameters), ("fixed", fixed)):
        number = 10 if "_float_" in kind else 0
        content += np.array([number, len(numbers), 1, 0, len(name)], dtype="<i4").tobytes() + name.encode()
        content += np.array(numbers, dtype="<f4" if number else "<f8").tobytes()
    path.write_bytes(content)
    return str(path)


WRITERS = {".txt": write_text, ".tfm": write_text, ".mat": write_matlab}


@pytest.mark.parametrize("ending", WRITERS)
@pytest.mark.parametrize("precision", ["double", "float"])
@pytest.mark.parametrize("kind", ["MatrixOffsetTransformBase", "AffineTransform", "Rigid3DTransform"])
def test_matrix_translation_and_center_are_read_under_each_name(
    tmp_path: Path, kind: str, precision: str, ending: str
) -> None:
    path = WRITERS[ending](tmp_path / f"0GenericAffine{ending}", f"{kind}_{precision}_3_3", AFFINE, list(CENTER))
    before = Path(path).read_bytes()
    transform = read_transform(path)
    np.testing.assert_allclose(at(transform, POINT), MOVED, rtol=1e-6)
    np.testing.assert_allclose(at(invert(transform), tuple(MOVED)), POINT, rtol=1e-6)
    write_itk(transform, tmp_path / "again.h5")
    np.testing.assert_allclose(at(read_transform(str(tmp_path / "again.h5")), POINT), MOVED, rtol=1e-6)
    assert Path(path).read_bytes() == before


@pytest.mark.parametrize("ending", [".h5", ".txt", ".tfm"])
def test_composites_with_ants_parts_are_read(tmp_path: Path, ending: str) -> None:
    part = itk.MatrixOffsetTransformBase[itk.D, 3, 3].New()
    part.SetMatrix(itk.matrix_from_array(MATRIX))
    part.SetCenter(CENTER.tolist())
    part.SetTranslation(SHIFT.tolist())
    other = itk.TranslationTransform[itk.D, 3].New()
    other.SetOffset([0.5, 0.0, -0.5])
    composite = itk.CompositeTransform[itk.D, 3].New()
    composite.AddTransform(part)
    composite.AddTransform(other)
    itk.transformwrite([composite], str(tmp_path / f"c{ending}"))
    np.testing.assert_allclose(at(read_transform(str(tmp_path / f"c{ending}")), POINT), at(composite, POINT))


@pytest.mark.parametrize("kind", ["MatrixOffsetTransformBase_float_3_3", "AffineTransform_double_3_3"])
def test_ants_reads_such_a_file_as_we_do(tmp_path: Path, kind: str) -> None:
    ants = pytest.importorskip("ants", reason="antspyx is not installed (make dev)")
    path = write_matlab(tmp_path / "0GenericAffine.mat", kind, AFFINE, list(CENTER))
    by_ants = ants.apply_ants_transform_to_point(ants.read_transform(path), POINT)
    np.testing.assert_allclose(at(read_transform(path), POINT), by_ants, rtol=1e-5)


KINDS: dict[str, tuple[list[float], list[float]]] = {
    "Euler3DTransform": (RIGID, ANGLES),
    "VersorRigid3DTransform": (RIGID, list(CENTER)),
    "Similarity3DTransform": ([*RIGID, 1.1], list(CENTER)),
    "ScaleVersor3DTransform": ([*RIGID, 1.1, 1.2, 0.9], list(CENTER)),
    "ScaleSkewVersor3DTransform": ([*RIGID, 1.1, 1.2, 0.9, 0, 0, 0.1, 0, 0, 0], list(CENTER)),
    "VersorTransform": ([0.1, 0.2, 0.3], list(CENTER)),
    "ScaleTransform": ([1.1, 1.2, 0.9], list(CENTER)),
    "TranslationTransform": (list(SHIFT), []),
    "IdentityTransform": ([], []),
    "BSplineTransform": (
        np.linspace(-2, 3, 3 * 6**3).tolist(),
        [6, 6, 6, -60, -60, -60, 30, 30, 30, 1, 0, 0, 0, 1, 0, 0, 0, 1],
    ),
}


@pytest.mark.parametrize("precision", ["double", "float"])
@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_that_itk_reads_is_read_as_simpleitk_reads_it(tmp_path: Path, kind: str, precision: str) -> None:
    sitk = pytest.importorskip("SimpleITK", reason="SimpleITK is not installed (make dev)")
    path = write_text(tmp_path / "a.tfm", f"{kind}_{precision}_3_3", *KINDS[kind])
    np.testing.assert_allclose(at(read_transform(path), POINT), sitk.ReadTransform(path).TransformPoint(POINT))


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.txt", "MRI", "can't be read"),
        (
            "a.txt",
            "# mrtransform\n1 0 0 0\n0 1 0 0\n0 0 1 0\n0 0 0 1\n",
            "4 x 4 matrix without.*c3d_affine_tool",
        ),
        ("a.mat", "1 0 0 0\n0 1 0 0\n0 0 1 0\n0 0 0 1\n", "FSL, NiftyReg, greedy.*c3d_affine_tool"),
        ("a.txt", '(Transform "EulerTransform")\n(NumberOfParameters 6)\n', "elastix.*transformix"),
        ("a.txt", '// made by elastix\n(Direction 1 0)\n(Transform "BSplineTransform")\n', "elastix.*transformix"),
        ("a.mat", "MATLAB 5.0 MAT-file, Platform: PCWIN64", "MATLAB file, as of SPM"),
        ("a.lta", "type = 0\n", "FreeSurfer.*lta_convert"),
        ("a.m3z", "", "FreeSurfer.*mri_warp_convert"),
        ("a.xfm", "MNI Transform File\n", "MINC"),
        ("a.aff12.1D", "1 0 0 0 0 1 0 0 0 0 1 0\n", "AFNI"),
        ("a.dcm", "", "DICOM"),
    ],
)
def test_other_tools_are_named_with_what_to_do(tmp_path: Path, name: str, content: str, words: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(InputFileError, match=words) as caught:
        read_transform(str(tmp_path / name))
    assert "\n" not in str(caught.value)
    assert name in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "parameters", "fixed", "words"),
    [
        ("BSplineDeformableTransform_double_3_3", [0.0], [], "kind BSplineDeformableTransform_double_3_3"),
        ("ThinPlateSplineKernelTransform_double_3_3", [0.0], [], "kind ThinPlateSplineKernelTransform_double_3_3"),
        ("Rigid3DPerspectiveTransform_double_3_2", RIGID, [], "kind Rigid3DPerspectiveTransform_double_3_2"),
        ("MatrixOffsetTransformBase_double_2_2", [1, 0, 0, 1, 0, 0], [0, 0], "MatrixOffsetTransformBase_double_2_2"),
        ("AffineTransform_double_2_2", [1, 0, 0, 1, 0, 0], [0, 0], "not 3-D"),
        ("MatrixOffsetTransformBase_double_3_3", [1, 0, 0], [0, 0, 0], "can't be read"),
    ],
)
@pytest.mark.parametrize("ending", [".txt", ".mat"])
def test_kinds_that_can_not_be_used_are_named_in_a_short_line(
    tmp_path: Path, ending: str, kind: str, parameters: list[float], fixed: list[float], words: str
) -> None:
    path = WRITERS[ending](tmp_path / f"a{ending}", kind, parameters, fixed)
    with pytest.raises(InputFileError, match=words) as caught:
        read_transform(path)
    text = str(caught.value)
    assert "\n" not in text
    assert "0x" not in text
    assert "Currently registered" not in text


@pytest.mark.parametrize("kind", ["MatrixOffsetTransformBase", "AffineTransform"])
def test_a_damaged_matlab_file_is_refused(tmp_path: Path, kind: str) -> None:
    whole = Path(write_matlab(tmp_path / "a.mat", f"{kind}_double_3_3", AFFINE, list(CENTER)))
    content = whole.read_bytes()
    for length in (10, 40, 90, len(content) - 12):
        whole.write_bytes(content[:length])
        with pytest.raises(InputFileError, match=r"can't be read|is cut off"):
            read_transform(str(whole))
