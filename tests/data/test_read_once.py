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
"""A run reads each file once: its header when the case is checked, its voxels when the case is loaded."""

from __future__ import annotations

import os
import pickle
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import itk
import numpy as np
import pytest

from scripts.apply.run import apply_transforms, load_inputs
from scripts.data import image_file
from scripts.data.cases import cases_of_rows, load_cases
from scripts.data.opened_files import OPENED
from scripts.transforms.load import LoadVolumesd
from scripts.workflow import run_workflow
from tests.data.test_dicom import ramp, write_series
from tests.helpers.known_pair import write_known_pair
from tests.helpers.opens import counted_opens

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="opens are counted by Linux's inotify")

IMAGES = ("fixed", "moving")
QUICK: dict[str, Any] = {
    "model": "none",
    "device": "cpu",
    "network_shape": [16, 16, 16],
    "field_levels": {"default": [[16, 2]]},
    "progress": False,
    "summary": False,
}
MODALITIES = {"fixed_modality": "mr", "moving_modality": "mr"}
# Is it readable (one byte), its header, its voxels; text is read once. ITK opens a file to look whether it knows it,
# for its header, and for its voxels, before which it reads the header again: nothing it is handed spares that.
OPENS = {"nii.gz": 3, "csv": 2, "dcm": 2, "mha": 8, "nrrd": 8}


@pytest.fixture
def parses(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Count headers parsed, by path."""
    counts: Counter[str] = Counter()
    for name in ("open_nifti", "open_series", "open_by_itk"):
        parse = getattr(image_file, name)

        def counted(path: str, *args: Any, parse: Any = parse) -> Any:
            counts[path] += 1
            return parse(path, *args)

        monkeypatch.setattr(image_file, name, counted)
    return counts


def as_itk(pair: dict[str, Any], folder: Path, suffix: str) -> dict[str, str]:
    """Write a pair in a compressed format of ITK."""
    for key in IMAGES:
        itk.imwrite(itk.imread(pair[key]), str(folder / f"{key}.{suffix}"), compression=True)
    return {key: str(folder / f"{key}.{suffix}") for key in IMAGES}


def load(files: dict[str, str], tmp_path: Path) -> dict[Any, Any]:
    case = load_cases(**files, **MODALITIES, output_dir=tmp_path / "out")[0]
    return LoadVolumesd(keys=IMAGES)(case)


def test_a_run_opens_each_file_for_its_header_and_for_its_voxels(tmp_path: Path, parses: Counter[str]) -> None:
    pair = write_known_pair(tmp_path / "data")
    files = {key: str(path) for key, path in pair.items() if key not in MODALITIES}
    assert {"fixed_label", "fixed_landmarks"} <= set(files)
    with counted_opens(list(files.values())) as opens:
        run_workflow(["inference.yaml"], {**pair, **QUICK, "output_dir": str(tmp_path / "out")})
    for file, count in opens.items():
        assert count <= OPENS["csv" if file.endswith(".csv") else "nii.gz"], file
    images = [path for key, path in files.items() if "landmarks" not in key]
    assert parses == Counter(images)
    assert (tmp_path / "out" / "warped_landmarks.csv").is_file()


@pytest.mark.parametrize("suffix", ["mha", "nrrd"])
def test_a_file_that_itk_reads_is_opened_by_no_reader_but_its_own(
    tmp_path: Path, suffix: str, parses: Counter[str]
) -> None:
    files = as_itk(write_known_pair(tmp_path / "data"), tmp_path, suffix)
    with counted_opens(list(files.values())) as opens:
        load(files, tmp_path)
    assert max(opens.values()) <= OPENS[suffix]
    assert parses == Counter(files.values())


def test_each_slice_is_opened_for_its_tags_and_for_its_pixels(tmp_path: Path, parses: Counter[str]) -> None:
    files = {key: write_series(tmp_path / key, ramp()) for key in IMAGES}
    with counted_opens(list(files.values())) as opens:
        load(files, tmp_path)
    assert max(opens.values()) == OPENS["dcm"]
    assert parses == Counter(files.values())


def test_the_template_of_a_list_is_checked_once(tmp_path: Path, parses: Counter[str]) -> None:
    template = write_series(tmp_path / "template", ramp())
    movings = [write_series(tmp_path / f"moving_{k}", ramp()) for k in range(3)]
    rows = [{"fixed": template, "moving": moving} for moving in movings]
    cases = cases_of_rows(rows, "", tmp_path, MODALITIES, tmp_path / "out", isolate=True)
    assert not any("error" in case for case in cases)
    assert parses == Counter([template, *movings])


def test_apply_parses_each_image_once(tmp_path: Path, parses: Counter[str]) -> None:
    pair = write_known_pair(tmp_path / "data")
    transform = itk.TranslationTransform[itk.D, 3].New()
    itk.transformwrite([transform], str(tmp_path / "shift.h5"))
    inputs = load_inputs(
        transform=str(tmp_path / "shift.h5"),
        fixed=str(pair["fixed"]),
        image=str(pair["moving"]),
        label=str(pair["moving_label"]),
        output_dir=tmp_path / "out",
    )
    assert inputs is not None
    apply_transforms(inputs)
    assert parses == Counter(str(pair[key]) for key in ("fixed", "moving", "moving_label"))


def test_a_file_that_changes_while_it_waits_is_opened_anew(tmp_path: Path, parses: Counter[str]) -> None:
    files = as_itk(write_known_pair(tmp_path / "data"), tmp_path, "mha")
    case = load_cases(**files, **MODALITIES, output_dir=tmp_path / "out")[0]
    changed = itk.imread(files["fixed"])
    changed.SetSpacing([9.0, 9.0, 9.0])
    itk.imwrite(changed, files["fixed"])
    os.utime(files["fixed"], (1, 1))
    loaded = LoadVolumesd(keys=IMAGES)(case)
    np.testing.assert_allclose(np.linalg.norm(loaded["fixed"].affine[:3, :3], axis=0), 9)
    assert parses == Counter([*files.values(), files["fixed"]])


def test_what_waits_with_a_case_is_small_and_can_be_pickled(tmp_path: Path) -> None:
    stored = np.zeros((4, 4, 300), np.int64) + np.arange(300)
    files = {key: write_series(tmp_path / key, stored) for key in IMAGES}
    case = load_cases(**files, **MODALITIES, output_dir=tmp_path / "out")[0]
    assert sum(len(pickle.dumps(kept.opened)) for kept in case[OPENED].values()) < 2 * 20_000
    again = pickle.loads(pickle.dumps(case))
    expected = LoadVolumesd(keys=IMAGES)({key: files[key] for key in IMAGES})
    loaded = LoadVolumesd(keys=IMAGES)(again)
    for key in IMAGES:
        np.testing.assert_array_equal(loaded[key].numpy(), expected[key].numpy())
        np.testing.assert_array_equal(loaded[key].affine, expected[key].affine)
