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
"""What the numbers of a field are that another tool wrote, by its header.

A field is three numbers a voxel, and only its header states what they are: displacements or coordinates, in LPS, RAS or
FSL's axes. What the tools write, by their own sources:

- ITK, ANTs, elastix, greedy, 3D Slicer: displacements, LPS mm. NIfTI: 5-D, intent VECTOR (1007), no intent name.
- NIfTI's intent DISPVECT (1006): displacements along NIfTI's axes, RAS mm (ITK turns them while it reads).
- SPM and CAT12, ``y_*.nii`` and ``iy_*.nii``: coordinates in the other image, RAS mm. Intent VECTOR and the name
  "Mapping" (spm_deformations), or no intent and the description "Deformation" (spm_preproc_write8).
- NiftyReg: intent VECTOR and the name "NREG_TRANS"; intent_p1 is 0 for coordinates, 1 for displacements, RAS mm.
- FSL: 4-D, intent 2006; displacements or coordinates in FSL's axes, which depend on the headers of both images.
"""

from __future__ import annotations

import logging
import re
from typing import Any, NamedTuple

import numpy as np

from scripts.data.field_formats import DISPVECT, FSL_INTENT
from scripts.data.header import Header
from scripts.geometry.world_axes import LPS_RAS
from scripts.utils.errors import InputFileError

logger = logging.getLogger(__name__)

VECTOR = 1007
EXPECTED = (
    "give displacements in LPS mm as ITK and ANTs write them (NIfTI: 5-D, I x J x K x 1 x 3, intent_code 1007), or in"
    " RAS mm with intent_code 1006"
)
FSL_OTHERS = {
    2007: "cubic spline coefficients of FSL's FNIRT",
    2008: "cosine coefficients of FSL's FNIRT",
    2009: "quadratic spline coefficients of FSL's FNIRT",
    2016: "cubic spline coefficients of FSL's topup",
    2017: "quadratic spline coefficients of FSL's topup",
    2018: "a field of FSL's topup in Hz",
}
NIFTYREG_OTHERS = {
    2: "a grid of cubic spline control points",
    3: "a velocity field",
    4: "a velocity field of displacements",
    5: "a velocity grid of spline control points",
    6: "a grid of linear spline control points",
}
_NRRD_SPACES = {"left-posterior-superior": "LPS", "lps": "LPS", "right-anterior-superior": "RAS", "ras": "RAS"}


class Kind(NamedTuple):
    """What the numbers of a field are."""

    name: str
    space: str
    """LPS, RAS or FSL."""
    absolute: bool = False
    """Coordinates in the moving image, not displacements."""
    stated: bool = True
    """The header alone decides; otherwise numbers that look like the opposite of ``absolute`` are refused."""


DISPLACEMENTS = Kind("displacements of ITK", "LPS", stated=False)


def nifti_kind(path: str, raw: Any, header: Header) -> Kind:
    """Return what the numbers of a NIfTI file are, by its intent, the intent's name and the description.

    Args:
        path: for messages.
        raw: the file's header as it is written.
        header: the same as it was read.

    Raises:
        InputFileError: they are not displacements or coordinates, or the header does not state what they are.
    """
    code, kind = int(raw["intent_code"]), _niftyreg_kind(path, raw)
    name, description = _text(raw, "intent_name"), _text(raw, "descrip")
    if code in FSL_OTHERS:
        raise InputFileError(
            f"transform '{path}' has intent_code {code}: {FSL_OTHERS[code]}; make a displacement field first"
            " (fnirtfileutils --in=COEFFICIENTS --ref=FIXED --out=FIELD --withaff) and give --moving with it"
        )
    if any(re.match("(initial )?(flow|velocity)", text) for text in (name, description)):
        raise InputFileError(
            f"transform '{path}' is a flow or velocity field ('{name or description}'), whose integral is the"
            " deformation; write the deformation first (SPM: Util, Deformations, y_*.nii)"
        )
    shape = tuple(int(size) for size in raw["dim"][1 : int(raw["dim"][0]) + 1])
    while len(shape) > 5 and shape[-1] == 1:
        shape = shape[:-1]
    is_vector = len(shape) == 5 and shape[3:] == (1, 3)
    if code == FSL_INTENT and (is_vector or (len(shape) == 4 and shape[3] == 3)):
        return Kind("a warp of FSL", "FSL")
    if not is_vector:
        _refuse_shape(path, shape, code, header)
    if kind is not None:
        return kind
    if name == "mapping" or description.startswith(("deformation", "inverse deformation")):
        stated = (code == VECTOR and name == "mapping") or code == 0
        return Kind("a deformation of SPM (coordinates in RAS mm)", "RAS", absolute=True, stated=stated)
    if code == DISPVECT:
        return Kind("displacements in RAS mm (intent_code 1006)", "RAS", stated=False)
    if code == VECTOR:
        return DISPLACEMENTS
    raise InputFileError(
        f"transform '{path}' has 3 values a voxel and intent_code {code}, which leaves units and axes open; {EXPECTED}"
    )


def _niftyreg_kind(path: str, raw: Any) -> Kind | None:
    """Return the kind of a field of NiftyReg, None for those of other tools."""
    name, number = _text(raw, "intent_name"), float(raw["intent_p1"])
    if not name.startswith("nreg"):
        return None
    if name == "nreg_trans" and number in (0, 1):
        what = ("deformation field (coordinates in RAS mm)", "displacement field (RAS mm)")[int(number)]
        return Kind(f"a {what} of NiftyReg", "RAS", absolute=number == 0)
    what = NIFTYREG_OTHERS.get(int(number) if np.isfinite(number) else -1, "of an unknown kind")
    raise InputFileError(
        f"transform '{path}' is {what} of NiftyReg (intent_name '{name.upper()}', intent_p1 {number:g}); make a"
        " deformation field first (reg_transform -ref FIXED -def TRANSFORM FIELD)"
    )


def _refuse_shape(path: str, shape: tuple[int, ...], code: int, header: Header) -> None:
    size = " x ".join(map(str, shape))
    if len(shape) == 4 and shape[3] == 3:
        raise InputFileError(
            f"transform '{path}' is {size} with intent_code {code}, which can be displacements in voxels (Learn2Reg,"
            f" MONAI, VoxelMorph), coordinates (MRtrix) or a warp of FSL (intent_code {FSL_INTENT}); {EXPECTED}"
        )
    raise InputFileError(
        f"transform '{path}' is an image with {header.components} values a voxel and {len(shape)} axes ({size});"
        f" {EXPECTED}"
    )


def _text(raw: Any, field: str) -> str:
    """Return a text of a NIfTI header in small letters."""
    return bytes(raw[field].item()).split(b"\0")[0].decode("latin-1").strip().lower()


def check_nrrd_vectors(path: str) -> None:
    """Refuse an NRRD field whose header places the vectors in other axes than LPS, which ITK and 3D Slicer take.

    The measurement frame of NRRD's standard is the matrix from the vectors to the axes of ``space``.
    """
    if not path.lower().endswith((".nrrd", ".nhdr")):
        return
    with open(path, "rb") as file:
        text = file.read(65536).split(b"\n\n")[0].split(b"\r\n\r\n")[0].decode("latin-1")
    space = re.search(r"(?im)^space:\s*(.+?)\s*$", text)
    axes = _NRRD_SPACES.get(space[1].lower(), space[1]) if space else "LPS"
    frame = re.search(r"(?im)^measurement frame:\s*(.+?)\s*$", text)
    if frame is None:
        if axes != "LPS":
            logger.warning(
                "transform '%s' has the space %s; its vectors are taken in LPS, as 3D Slicer does", path, axes
            )
        return
    numbers = [float(number) for number in re.findall(r"[-+.\deE]+", frame[1])]
    matrix = np.array(numbers).reshape(3, 3).T if len(numbers) == 9 else np.full((3, 3), np.nan)  # columns are listed
    if axes == "RAS":
        matrix = LPS_RAS[:3, :3].numpy() @ matrix
    if axes not in ("LPS", "RAS") or not np.allclose(matrix, np.eye(3), atol=1e-3):
        raise InputFileError(
            f"transform '{path}' has vectors in other axes than LPS (space {axes}, measurement frame {frame[1]}); write"
            " it with LPS displacements and without a measurement frame"
        )
