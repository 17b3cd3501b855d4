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
"""Reading displacement and deformation fields of other tools into displacements in LPS mm.

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

import itk
import nibabel as nib
import numpy as np

from .errors import InputFileError
from .field_formats import DISPVECT, FSL_INTENT, fsl_affine
from .file_form import check_complete, nifti_header
from .header import Header
from .itk_resampling import Grid, header_grid
from .reading import itk_reason, read_file, read_header
from .transform_io import LPS_RAS

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
ABSOLUTE_RESIDUAL = 1 / 3  # what coordinates leave, relative to themselves, without those of their own voxels
CHECKED_AT_MOST = 24  # voxels along each axis, to tell coordinates from displacements
_FLIP = LPS_RAS.diagonal()[:3].numpy()  # of components: from RAS to LPS, and back
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


def read_field(path: str, moving: Grid | None = None) -> tuple[np.ndarray, Header]:
    """Read a field of ITK, ANTs, elastix, greedy, 3D Slicer, SPM, NiftyReg or FSL.

    Args:
        path: an image with 3 values a voxel.
        moving: grid of the moving image, on which the numbers of FSL's warps depend.

    Returns:
        displacements (K, J, I, 3), LPS mm, fixed point -> moving point; the header of their grid.

    Raises:
        InputFileError: the file can't be read, is no field, or its numbers can be taken in more than one way.
    """
    check_complete(path)
    header, raw = read_header(path), nifti_header(path)
    if raw is None:
        kind, values = DISPLACEMENTS, _image_values(path)
        _check_nrrd_vectors(path)
    else:
        kind = nifti_kind(path, raw, header)
        values = _nifti_values(path)
    if not np.isfinite(values).all():
        raise InputFileError(f"transform '{path}' has displacements that are not finite numbers")
    affine = header_grid(header).affine_ras.numpy()
    if kind.space == "FSL":
        kind, values = _from_fsl(path, values, affine, moving)
    if not kind.stated:
        _check_absolute(path, kind, values, affine)
    if kind is not DISPLACEMENTS:
        logger.info("transform '%s' is read as %s", path, kind.name)
    if kind.absolute:
        values = values - _coordinates(affine, values.shape[:3])
    if kind.space != "LPS":
        values = values * _FLIP
    return values.transpose(2, 1, 0, 3), header


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
        f"transform '{path}' has 3 values a voxel and intent_code {code}, so mm or voxels, LPS or RAS are open; {EXPECTED}"
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


def _nifti_values(path: str) -> np.ndarray:
    """Return the numbers of a field (I, J, K, 3) as they are written: ITK changes the signs of some."""
    try:
        values = np.asanyarray(nib.load(path).dataobj)  # type: ignore[attr-defined]
    except MemoryError:
        raise
    except Exception as error:  # of many kinds: nibabel's, and those of the compressors
        raise InputFileError(f"transform '{path}' can't be read: {' '.join(str(error).split())}") from error
    if values.dtype.kind not in "fiu":
        raise InputFileError(f"transform '{path}' has values of the type {values.dtype}; give real numbers")
    values = values.reshape(*values.shape[:3], 3)
    return values if values.dtype.kind == "f" and values.dtype.itemsize >= 4 else values.astype(np.float64)


def _image_values(path: str) -> np.ndarray:
    """Return the numbers of a field (I, J, K, 3) of another format, which ITK reads as they are written."""
    try:
        image = read_file(path)
    except RuntimeError as error:
        raise InputFileError(f"transform '{path}' can't be read: {itk_reason(error)}") from error
    if image.GetImageDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 3:
        raise InputFileError(
            f"transform '{path}' is an image with {image.GetNumberOfComponentsPerPixel()} values a voxel and"
            f" {image.GetImageDimension()} axes; a displacement field is 3-D with 3 values (LPS mm)"
        )
    return itk.array_from_image(image).transpose(2, 1, 0, 3)


def _check_nrrd_vectors(path: str) -> None:
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
        matrix = _FLIP[:, None] * matrix
    if axes not in ("LPS", "RAS") or not np.allclose(matrix, np.eye(3), atol=1e-3):
        raise InputFileError(
            f"transform '{path}' has vectors in other axes than LPS (space {axes}, measurement frame {frame[1]}); write"
            " it with LPS displacements and without a measurement frame"
        )


def _coordinates(affine: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return affine @ voxel for all voxels, (I, J, K, 3)."""
    i, j, k = (np.arange(size, dtype=np.float64) for size in shape)
    along = (i[:, None, None, None], j[:, None, None], k[:, None])
    start = affine[:3, 3]
    return start + sum(places * affine[:3, axis] for axis, places in enumerate(along))


def _check_absolute(path: str, kind: Kind, values: np.ndarray, affine: np.ndarray) -> None:
    """Refuse coordinates where displacements are expected, and the other way round."""
    steps = [max(1, size // CHECKED_AT_MOST) for size in values.shape[:3]]
    some = values[tuple(slice(None, None, step) for step in steps)].astype(np.float64)
    world = _coordinates(affine @ np.diag([*steps, 1.0]), some.shape[:3])
    candidates = {"RAS mm": world, "LPS mm": world * _FLIP}
    found = next((name for name, own in candidates.items() if _follows(some, own)), None)
    if kind.absolute and found != f"{kind.space} mm":
        raise InputFileError(
            f"transform '{path}' says it is {kind.name}, and its numbers are no coordinates; {EXPECTED}"
        )
    if found and not kind.absolute:
        raise InputFileError(
            f"transform '{path}' looks like a deformation (absolute coordinates in {found}), not displacements; subtract"
            f" the coordinates of the voxels first (NiftyReg: reg_transform -ref FIXED -disp FIELD OUT), and {EXPECTED}"
        )


def _follows(values: np.ndarray, own: np.ndarray) -> bool:
    """Tell whether values (..., 3) are those of ``own`` with less than a third of their spread besides, in each axis."""
    axes = tuple(range(3))
    varied = own.std(axis=axes) > 0
    left = (values - own).std(axis=axes)
    return varied.sum() > 1 and bool((left < ABSOLUTE_RESIDUAL * values.std(axis=axes))[varied].all())


def _from_fsl(path: str, values: np.ndarray, affine: np.ndarray, moving: Grid | None) -> tuple[Kind, np.ndarray]:
    """Return coordinates in the moving image, RAS mm, of a warp of FSL.

    Absolute warps are told from relative ones as FSL does: those without their own coordinates vary less.
    """
    if moving is None:
        raise InputFileError(
            f"transform '{path}' is a warp of FSL, whose values depend on the moving image's header; give --moving FILE"
        )
    shape, moving_affine = values.shape[:3], moving.affine_ras.numpy()
    own = _coordinates(fsl_affine(shape, affine), shape)
    spread = [float(part.std(axis=(0, 1, 2), dtype=np.float64).sum()) for part in (values, values - own)]
    is_absolute = spread[0] > spread[1]
    there = values if is_absolute else values + own
    to_world = moving_affine @ np.linalg.inv(fsl_affine(moving.shape, moving_affine))
    name = f"{'an absolute' if is_absolute else 'a relative'} warp of FSL"
    return Kind(name, "RAS", absolute=True), nib.affines.apply_affine(to_world, there)
