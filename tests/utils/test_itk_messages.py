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
"""ITK's errors reach a user without source files and addresses."""

from __future__ import annotations

import re
from pathlib import Path

import itk
import numpy as np
import pytest

from scripts.utils.itk_messages import itk_reason

SOURCE = "/work/ITK-source/ITK/Modules/IO/"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            f"{SOURCE}NIFTI/src/itkNiftiImageIO.cxx:1070:\nITK ERROR: NiftiImageIO(0x557fe75306e0): dt.nii is not"
            " recognized as a NIFTI file",
            "dt.nii is not recognized as a NIFTI file",
        ),
        (
            f"{SOURCE}NRRD/src/itkNrrdImageIO.cxx:410:\nitk::ERROR: NrrdImageIO(0x557fe5b87cd0): ReadImageInformation:"
            ' Error reading enc.nrrd:\n[nrrd] nrrdLoad: trouble reading "enc.nrrd"\n[nrrd] nrrdRead: trouble\n'
            '[nrrd] _nrrdReadNrrdParse_encoding: couldn\'t parse encoding "foo"\n',
            'couldn\'t parse encoding "foo"',
        ),
        (
            f"{SOURCE}Meta/src/itkMetaImageIO.cxx:490:\nITK ERROR: MetaImageIO(0x5): Unknown component type:"
            " itk::CommonEnums::IOComponent::UNKNOWNCOMPONENTTYPE",
            "Unknown component type: UNKNOWNCOMPONENTTYPE",
        ),
        (
            'itkTxtTransformIO.hxx:12:\nITK ERROR: TxtTransformIOTemplate(0x5): Could not create an instance of "Foo"'
            '\nThe usual cause of this error is not registering the transform\n"A"\n"B"',
            'Could not create an instance of "Foo"',
        ),
        ("C:\\ITK\\Modules\\itkX.cxx:7:\nITK ERROR: X (0xAB): no\n  luck", "no luck"),
        ("ITK ERROR: the direction cosines are not orthonormal", "its affine has a shear, a zero spacing or no"),
        ("Could not create IO object for reading file a.nii", "Could not create IO object for reading file a.nii"),
        ("", "RuntimeError"),
        (1000 * "x", 300 * "x"),
    ],
)
def test_what_itk_says_is_one_line_of_reason(text: str, reason: str) -> None:
    found = itk_reason(RuntimeError(text))
    assert found.startswith(reason)
    assert "\n" not in found
    if "affine" not in found:
        assert found == reason


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("a.nrrd", b"encoding: raw", b"encoding: foo"),
        ("a.nrrd", b"type: short", b"type: shirt"),
        ("a.mha", b"NDims = 3", b"NDims = x"),
        ("a.mha", b"ElementDataFile = LOCAL", b"ElementDataFile = none.raw"),
        ("a.vtk", b"DIMENSIONS", b"DIMENSION"),
        ("a.nii", b"\x04\x00\x10\x00", b"\xff\x7f\x10\x00"),  # datatype
    ],
)
def test_itk_s_own_errors_name_no_source_file_and_no_address(name: str, old: bytes, new: bytes, tmp_path: Path) -> None:
    path = tmp_path / name
    itk.imwrite(itk.image_from_array(np.arange(504, dtype=np.int16).reshape(8, 9, 7)), str(path))
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new, 1))
    with pytest.raises((RuntimeError, TypeError, KeyError)) as caught:
        itk.imread(str(path))
    assert re.search(r"\.cxx|0x|itk::|ITK ERROR|\[nrrd\]", itk_reason(caught.value)) is None
