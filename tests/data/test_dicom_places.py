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
"""DICOM geometry: positions alone decide; what is no single regular volume is refused in one line that says why."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import NuclearMedicineImageStorage, RTDoseStorage, SecondaryCaptureImageStorage, SegmentationStorage

from scripts.apply.run import apply_transforms, load_inputs
from scripts.data.dicom_series import is_dicom
from scripts.data.itk_resampling import read_scalars
from scripts.data.reading import read_header
from scripts.transforms.load import LoadVolumesd
from scripts.utils.errors import InputError
from tests.helpers.dicom_files import (
    AXES,
    ORIGIN,
    SHAPE,
    SPACING,
    affine_ras,
    base,
    classic,
    enhanced,
    item,
    load,
    pixel_module,
    ramp,
    save,
)


def check_all_refuse(path: str, words: str) -> None:
    """A header, a registration and ``apply`` refuse a series alike."""
    for read in (read_header, read_scalars, lambda p: LoadVolumesd(keys=["fixed"])({"fixed": p})):
        with pytest.raises(InputError, match=words) as caught:
            read(path)
        assert path in str(caught.value)


@pytest.mark.parametrize("name", AXES)
def test_voxels_lie_where_positions_say(tmp_path: Path, name: str) -> None:
    values, affine, _ = load(save(tmp_path / "a", classic(axes=AXES[name])[::-1]))
    np.testing.assert_array_equal(values, ramp())
    np.testing.assert_allclose(affine, affine_ras(AXES[name]), atol=2e-5)


@pytest.mark.parametrize(
    "tags",
    [
        {"SpacingBetweenSlices": -3},
        {"SpacingBetweenSlices": 7.5},
        {"SpacingBetweenSlices": 0, "SliceThickness": 0},
        {"SliceThickness": -2.5, "SliceLocation": "5"},
        {"SliceThickness": 40, "SpacingBetweenSlices": "nonsense"},
    ],
)
def test_written_spacings_decide_nothing(tmp_path: Path, tags: dict[str, Any]) -> None:
    slices = classic()
    with pydicom.config.disable_value_validation():
        for one in slices:
            for tag, value in tags.items():
                if value == "nonsense":
                    one.add_new(tag, "LO", value)
                else:
                    setattr(one, tag, value)
        folder = save(tmp_path / "a", slices)
    values, affine, _ = load(folder)
    np.testing.assert_array_equal(values, ramp())
    np.testing.assert_allclose(affine, affine_ras(), atol=2e-5)


@pytest.mark.parametrize("name", ["axial", "oblique"])
def test_apply_does_not_mirror(tmp_path: Path, name: str) -> None:
    """With the identity and a negative SpacingBetweenSlices, ``apply`` gives the same voxels at the same places."""
    folder = save(tmp_path / "a", classic(axes=AXES[name], SpacingBetweenSlices=-3))
    identity = tmp_path / "identity.txt"
    identity.write_text(
        "#Insight Transform File V1.0\n#Transform 0\nTransform: AffineTransform_double_3_3\n"
        "Parameters: 1 0 0 0 1 0 0 0 1 0 0 0\nFixedParameters: 0 0 0\n"
    )
    fixed = tmp_path / "fixed.nii.gz"
    nib.Nifti1Image(np.zeros(SHAPE, np.float32), affine_ras(AXES[name])).to_filename(fixed)
    inputs = load_inputs(transform=str(identity), fixed=str(fixed), image=folder, output_dir=str(tmp_path / "out"))
    assert inputs is not None
    (result,) = apply_transforms(inputs)
    image: Any = nib.load(result)
    np.testing.assert_allclose(image.affine, affine_ras(AXES[name]), atol=1e-4)
    inner = (slice(1, -1),) * 3
    np.testing.assert_allclose(image.get_fdata()[inner], ramp()[inner], atol=0.1)


def test_frames_lie_where_their_positions_say(tmp_path: Path) -> None:
    """Interleaved in the file, with a SpacingBetweenSlices of -7; as a folder and as a file."""
    folder = save(tmp_path / "a", enhanced(order=[0, 2, 4, 1, 3, 5]))
    for path in (folder, str(next(Path(folder).iterdir()))):
        values, affine, header = load(path)
        np.testing.assert_array_equal(values, ramp())
        np.testing.assert_allclose(affine, affine_ras(), atol=2e-5)
        assert header.warnings == ()


def test_frames_of_several_files_make_one_volume(tmp_path: Path) -> None:
    first, second = enhanced(order=[0, 2, 4]), enhanced(order=[5, 3, 1])
    second.SOPInstanceUID = second.file_meta.MediaStorageSOPInstanceUID = "1.2.3.1.2"
    values, affine, _ = load(save(tmp_path / "a", [first, second]))
    np.testing.assert_array_equal(values, ramp())
    np.testing.assert_allclose(affine, affine_ras(), atol=2e-5)


def two(**tags: Any) -> list[Dataset]:
    """Two volumes at the same places whose slices differ in the given tags (two values each)."""
    slices = classic()
    for volume in range(2):
        more = slices if volume == 0 else classic(ramp() + 1000)
        for k, one in enumerate(more):
            one.SOPInstanceUID = one.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.1.{1 + k + 100 * volume}"
            one.InstanceNumber = 1 + k + len(more) * volume
            for tag, values in tags.items():
                setattr(one, tag, values[volume])
        if volume:
            slices = [*slices, *more]
    return slices


def phases(key: str, values: Any) -> Dataset:
    order = [k for k in range(SHAPE[2]) for _ in range(2)]
    return enhanced(order=order, content=[{key: values[n % 2]} for n in range(len(order))])


VOLUMES: dict[str, tuple[Any, str]] = {
    "instance": (lambda: two(), "InstanceNumber.* at 6 of 6 places: 2 volumes"),
    "temporal": (lambda: two(TemporalPositionIdentifier=(1, 2)), "TemporalPositionIdentifier.*2 volumes"),
    "echo": (lambda: two(EchoTime=(2.3, 4.6)), "EchoTime.*2 volumes"),
    "acquisition": (lambda: two(AcquisitionNumber=(1, 2)), "AcquisitionNumber.*2 volumes"),
    "frames by time": (lambda: phases("TemporalPositionIndex", (1, 2)), "TemporalPositionIndex.*2 volumes"),
    "frames by stack": (lambda: phases("StackID", ("1", "2")), "StackID.*2 volumes"),
    "frames by index": (
        lambda: phases("DimensionIndexValues", ([1, 1], [1, 2])),
        "DimensionIndexValues.*2 volumes",
    ),
    "one slice more": (
        lambda: two(TemporalPositionIdentifier=(1, 1))[:7],
        "at 1 of 6 places: some slices are there more than once",
    ),
    "nearly one place": (
        lambda: [*classic(), *(_moved(one, 0.004) for one in classic(ramp() + 9))],
        "lie at one place.*2 volumes",
    ),
    "echoes between each other": (
        lambda: [_set(one, EchoTime=(2.3, 4.6)[k % 2]) for k, one in enumerate(classic())],
        r"holds 2 volumes \(EchoTime 2.3, 4.6\)",
    ),
    "interleaved phases": (
        lambda: [_set(one, TemporalPositionIdentifier=1 + k % 3) for k, one in enumerate(classic())],
        r"holds 3 volumes \(TemporalPositionIdentifier 1, 2, 3\)",
    ),
}


def _set(dataset: Dataset, **tags: Any) -> Dataset:
    for tag, value in tags.items():
        setattr(dataset, tag, value)
    return dataset


def _moved(dataset: Dataset, mm: float) -> Dataset:
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = f"{dataset.SOPInstanceUID}.7"
    place = np.array(dataset.ImagePositionPatient, float) + AXES["oblique"][:, 2] * mm
    return _set(dataset, ImagePositionPatient=[f"{v:.6f}" for v in place])


@pytest.mark.parametrize("name", VOLUMES)
def test_several_volumes_are_refused_with_what_tells_them_apart(tmp_path: Path, name: str) -> None:
    make, words = VOLUMES[name]
    check_all_refuse(save(tmp_path / "a", make()), f"(?s){words}.*give one of them")


def test_exact_copies_are_read_once(tmp_path: Path) -> None:
    folder = save(tmp_path / "a", classic())
    for path in sorted((tmp_path / "a").iterdir())[1:3]:
        shutil.copy(path, path.with_name(f"copy of {path.name}"))
    values, affine, header = load(folder)
    np.testing.assert_array_equal(values, ramp())
    np.testing.assert_allclose(affine, affine_ras(), atol=2e-5)
    assert len(header.warnings) == 1
    assert "exact copies" in header.warnings[0]
    changed = sorted((tmp_path / "a").glob("copy*"))[0]
    dataset = pydicom.dcmread(changed)
    dataset.PixelData = dataset.PixelData[:-1] + b"\x01"
    dataset.save_as(changed)
    check_all_refuse(folder, "lie at one place")


def _without(tag: str, slices: list[Dataset], count: int | None = None) -> list[Dataset]:
    for one in slices[1 : None if count is None else 1 + count] if count else slices:
        delattr(one, tag)
    return slices


def _of_another(what: str) -> list[Dataset]:
    slices = classic()
    if what == "size":
        pixel_module(slices[2], ramp()[:-1, :, 2].T)
    elif what == "both":
        pixel_module(slices[2], ramp()[:, :-1, 2].T)
    else:
        slices[2].PixelSpacing = [0.6, 0.75]
    return slices


def _jumping() -> list[Dataset]:
    slices = classic()
    place = np.array(slices[3].ImagePositionPatient, float) + AXES["oblique"][:, 0] * 5
    return [*slices[:3], _set(slices[3], ImagePositionPatient=[f"{v:.6f}" for v in place]), *slices[4:]]


REFUSED: dict[str, tuple[Any, str]] = {
    "no position": (lambda: _without("ImagePositionPatient", classic()), "6 of 6 slices .* no ImagePositionPatient"),
    "one without": (lambda: _without("ImagePositionPatient", classic(), 1), "1 of 6 slices .* no ImagePositionPatient"),
    "empty position": (lambda: classic(ImagePositionPatient=None), "6 of 6 slices .* no ImagePositionPatient"),
    "no orientation": (lambda: _without("ImageOrientationPatient", classic()), "have no ImageOrientationPatient"),
    "one no orientation": (
        lambda: _without("ImageOrientationPatient", classic(), 2),
        "2 of 6 slices .* no ImageOrientationPatient",
    ),
    "no spacing": (lambda: _without("PixelSpacing", classic(ImagerPixelSpacing=[1, 1])), "have no PixelSpacing"),
    "aspect only": (lambda: _without("PixelSpacing", classic(PixelAspectRatio=[2, 1])), "have no PixelSpacing"),
    "zero spacing": (lambda: classic(PixelSpacing=[0, 1]), "PixelSpacing .* must be above 0, got 0, 1"),
    "another size": (
        lambda: _of_another("size"),
        r"1 of 6 slices .* another size \(rows, columns\): .* has 10, 11, most",
    ),
    "fewer rows": (lambda: _of_another("both"), "another size .* has 9, 12, most have 10, 12"),
    "another spacing": (lambda: _of_another("spacing"), "another PixelSpacing: .* has 0.6, 0.75, most have 0.5, 0.75"),
    "skew": (lambda: classic(ImageOrientationPatient=[1, 0, 0, 0.1, 1, 0]), "two unit vectors at a right angle"),
    "long": (lambda: classic(ImageOrientationPatient=[2, 0, 0, 0, 1, 0]), "two unit vectors at a right angle"),
    "jump": (_jumping, "shifted sideways .* up to 5 mm"),
    "frames without positions": (
        lambda: _set(_stepped(-3.0)),
        "frames without positions of their own, and SpacingBetweenSlices is -3",
    ),
    "frames without spacing": (lambda: _stepped(0), "frames without positions of their own"),
    "other frame count": (lambda: _short_groups(), "has 6 frames but functional groups of 5"),
    "no frames": (lambda: classic(NumberOfFrames=0)[0], "NumberOfFrames must be at least 1"),
    "two views": (lambda: _set(_stepped(2.5), PhaseVector=[1, 1, 1, 2, 2, 2]), r"2 volumes or views \(PhaseVector\)"),
    "capture": (lambda: _capture(), "have no ImagePositionPatient"),
    "segmentation": (lambda: _segmentation(), "without DICOM images .*Segmentation Storage"),
    "mixed": (lambda: _mixed(), "mixes CT Image Storage and MR Image Storage"),
}


def _stepped(spacing: float) -> Dataset:
    """Return a file of nuclear medicine: the first frame's place and a spacing."""
    dataset = base("1.2.3.1", "1.2.3.1.1", NuclearMedicineImageStorage)
    first = classic()[0]
    dataset.DetectorInformationSequence = item(
        ImagePositionPatient=first.ImagePositionPatient, ImageOrientationPatient=first.ImageOrientationPatient
    )
    dataset.PixelSpacing, dataset.SliceThickness = first.PixelSpacing, 1.0
    dataset.NumberOfFrames, dataset.SpacingBetweenSlices = SHAPE[2], spacing
    pixel_module(dataset, ramp().transpose(2, 1, 0))
    return dataset


def _short_groups() -> Dataset:
    dataset = enhanced()
    del dataset.PerFrameFunctionalGroupsSequence[-1]
    return dataset


def _capture() -> Dataset:
    dataset = base("1.2.3.1", "1.2.3.1.99", SecondaryCaptureImageStorage)
    pixel_module(dataset, ramp()[:, :, 0].T)
    return dataset


def _segmentation() -> Dataset:
    dataset = enhanced()
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = SegmentationStorage
    dataset.Modality = "SEG"
    return dataset


def _mixed() -> list[Dataset]:
    slices = classic()
    slices[1].SOPClassUID = slices[1].file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.4"
    return slices


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_certain_place_is_refused(tmp_path: Path, name: str) -> None:
    make, words = REFUSED[name]
    check_all_refuse(save(tmp_path / "a", make()), words)


def test_a_spacing_places_frames_that_have_no_positions_with_a_warning(tmp_path: Path) -> None:
    values, affine, header = load(save(tmp_path / "a", _stepped(2.5)))
    np.testing.assert_array_equal(values, ramp())
    np.testing.assert_allclose(affine, affine_ras(), atol=2e-5)
    assert any("only the first frame" in line and "every 2.5 mm" in line for line in header.warnings)


def dose(uid: str = "1.2.3.5", first: float = 0.0) -> Dataset:
    dataset = base(uid, f"{uid}.1", RTDoseStorage)
    dataset.Modality = "RTDOSE"
    axes = AXES["axial"]
    dataset.ImagePositionPatient = [float(v) for v in ORIGIN]
    dataset.ImageOrientationPatient = [float(v) for v in (*axes[:, 0], *axes[:, 1])]
    dataset.PixelSpacing = [SPACING[1], SPACING[0]]
    dataset.NumberOfFrames, dataset.DoseGridScaling, dataset.DoseUnits = SHAPE[2], "0.001", "GY"
    dataset.GridFrameOffsetVector = [first + SPACING[2] * k for k in range(SHAPE[2])]
    pixel_module(dataset, ramp().transpose(2, 1, 0), "<u4")
    return dataset


@pytest.mark.parametrize("first", [0.0, ORIGIN[2]])
def test_a_dose_has_its_places_and_its_scale(tmp_path: Path, first: float) -> None:
    values, affine, _ = load(save(tmp_path / "a", dose(first=first)))
    np.testing.assert_allclose(values, ramp() * 0.001, rtol=1e-6)
    np.testing.assert_allclose(affine, affine_ras(AXES["axial"]), atol=2e-5)


@pytest.mark.parametrize("uid", ["1.2.3.1", "1.2.3.5"])
def test_what_lies_beside_a_volume_is_not_stacked_with_it(tmp_path: Path, uid: str) -> None:
    beside = [dose(uid), _set(_segmentation(), SeriesInstanceUID=uid), _set(_capture(), SeriesInstanceUID="1.2.3.1")]
    for number, one in enumerate(beside):
        one.SOPInstanceUID = one.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.8.{number}"
    values, affine, header = load(save(tmp_path / "a", [*classic(), *beside]))
    np.testing.assert_array_equal(values, ramp())
    np.testing.assert_allclose(affine, affine_ras(), atol=2e-5)
    assert any("left out" in line for line in header.warnings)


def test_a_localizer_among_the_slices_is_left_out(tmp_path: Path) -> None:
    scout = _set(
        classic()[0], ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"], ImageOrientationPatient=[1, 0, 0, 0, 0, -1]
    )
    scout.SOPInstanceUID = scout.file_meta.MediaStorageSOPInstanceUID = "1.2.3.1.77"
    pixel_module(scout, np.zeros((40, 30)))
    values, _, header = load(save(tmp_path / "a", [scout, *classic()]))
    np.testing.assert_array_equal(values, ramp())
    assert any("localizers" in line for line in header.warnings)


def test_a_missing_slice_gives_the_shape_that_is_read(tmp_path: Path) -> None:
    slices = classic(np.broadcast_to(np.arange(6) * 10, SHAPE))
    values, _, header = load(save(tmp_path / "a", [*slices[:2], *slices[3:]]))
    assert header.shape == SHAPE
    np.testing.assert_array_equal(values[3, 4], np.arange(6) * 10)
    assert any("2.5 to 5 mm apart" in line for line in header.warnings)


def test_gaps_that_add_up_are_resampled(tmp_path: Path) -> None:
    """Each gap is near the median, but slices in the middle would lie half a millimeter off."""
    places = np.concatenate([np.arange(60) * 1.0, 59 + np.arange(1, 61) * 1.015])
    slices = []
    for k, place in enumerate(places):
        one = classic(np.full((4, 4, 1), k))[0]
        one.SOPInstanceUID = one.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.1.{k + 1}"
        slices.append(_set(one, ImagePositionPatient=[f"{v:.6f}" for v in ORIGIN + AXES["oblique"][:, 2] * place]))
    values, affine, header = load(save(tmp_path / "a", slices))
    spacing = np.linalg.norm(affine[:3, 2])
    np.testing.assert_allclose(
        values[2, 2], np.interp(np.arange(values.shape[2]) * spacing, places, np.arange(120)), atol=0.51
    )
    assert any("resampled" in line for line in header.warnings)


def test_a_slow_drift_is_said(tmp_path: Path) -> None:
    slices = classic()
    for k, one in enumerate(slices):
        place = np.array(one.ImagePositionPatient, float) + AXES["oblique"][:, 0] * 0.019 * k
        one.ImagePositionPatient = [f"{v:.6f}" for v in place]
    _, _, header = load(save(tmp_path / "a", slices))
    assert any("drift sideways by 0.095 mm" in line for line in header.warnings)


def test_rounded_directions_are_the_nearest_rotation(tmp_path: Path) -> None:
    axes = AXES["oblique"]
    rounded = [f"{v:.3f}" for v in (*axes[:, 0], *axes[:, 1])]
    _, affine, _ = load(save(tmp_path / "a", classic(ImageOrientationPatient=rounded)))
    direction = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    np.testing.assert_allclose(direction.T @ direction, np.eye(3), atol=1e-6)
    np.testing.assert_allclose(affine, affine_ras(), atol=2e-3)


@pytest.mark.parametrize("name", ["a.dcm", "a.IMA", "IM0001"])
def test_files_without_a_preamble_are_dicom(tmp_path: Path, name: str) -> None:
    dataset = enhanced(order=[0, 2, 4, 1, 3, 5])
    plain = Dataset()
    plain.update(dataset)
    plain.save_as(tmp_path / name, implicit_vr=True, little_endian=True)
    assert is_dicom(str(tmp_path / name))
    values, affine, _ = load(str(tmp_path / name))
    np.testing.assert_array_equal(values, ramp())
    np.testing.assert_allclose(affine, affine_ras(), atol=2e-5)


def test_what_is_no_dicom_is_not_taken_for_it(tmp_path: Path) -> None:
    nib.Nifti1Image(np.zeros((3, 3, 3), np.int16), np.eye(4)).to_filename(tmp_path / "a.nii")
    assert not is_dicom(str(tmp_path / "a.nii"))
    assert not is_dicom(str(tmp_path))
    (tmp_path / "b.dcm").write_text("no image")
    check_all_refuse(str(tmp_path / "b.dcm"), "is not a DICOM image")


def test_a_slice_that_is_cut_off_in_its_header_is_said(tmp_path: Path) -> None:
    """The last slice: without it, the gaps are even."""
    folder = save(tmp_path / "a", classic())
    last = next((tmp_path / "a").glob("*_005.dcm"))
    raw = last.read_bytes()
    last.write_bytes(raw[:150])
    _, _, header = load(folder)
    assert header.shape == (*SHAPE[:2], 5)
    assert any("_005.dcm' can't be read as DICOM" in line for line in header.warnings)
    last.write_bytes(raw[: raw.index(b"\x28\x00\x02\x00")])  # after its series, before its size
    check_all_refuse(folder, "Rows and Columns must be at least 1")
