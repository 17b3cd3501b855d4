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
"""DIR-Lab's raw files, made in its form, become volumes and landmarks of the right place."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from scripts.data import dirlab
from scripts.data.cases import load_cases
from scripts.data.datalist_builders import main
from scripts.data.landmarks import read_landmarks
from scripts.utils.errors import InputError

SMALL = dirlab.CaseGrid((8, 6, 4), (0.9, 0.8, 2.5))


@pytest.fixture(autouse=True)
def _small_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the cases of the table small."""
    monkeypatch.setattr(dirlab, "CASES", dict.fromkeys(dirlab.CASES, SMALL))


def write_case(folder: Path, images: tuple[str, str], points: tuple[str, str]) -> tuple[np.ndarray, np.ndarray]:
    """Write both volumes (fixed first) and landmarks; return the raw values (z, y, x) and the voxel numbers."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(1)
    raw = random.integers(-2000, 3000, (2, 4, 6, 8)).astype("<i2")
    numbers = np.stack([random.integers(1, np.array(SMALL.size) + 1, (5, 3)) for _ in range(2)])
    for n in range(2):
        (folder / images[n]).write_bytes(raw[n].tobytes())
        (folder / points[n]).write_text("".join("\t".join(map(str, row)) + "\t\n" for row in numbers[n]))
    return raw, numbers


def test_the_table_is_that_of_the_provider() -> None:
    import importlib

    cases = importlib.reload(dirlab).CASES
    assert len(cases) == 20
    assert cases["copd1"] == ((512, 512, 121), (0.625, 0.625, 2.5))
    assert cases["copd10"] == ((512, 512, 135), (0.742, 0.742, 2.5))
    assert cases["case1"] == ((256, 256, 94), (0.97, 0.97, 2.5))
    assert cases["case10"] == ((512, 512, 120), (0.97, 0.97, 2.5))


def test_both_collections_become_pairs_of_a_list(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw, numbers = write_case(
        tmp_path / "in/copd1/copd1",
        ("copd1_eBHCT.img", "copd1_iBHCT.img"),
        ("copd1_300_eBH_xyz_r1.txt", "copd1_300_iBH_xyz_r1.txt"),
    )
    write_case(
        tmp_path / "in/Case8Deploy/Images",
        ("case8_T50.img", "case8_T00.img"),
        ("case8_dirLab300_T50_xyz.txt", "case8_dirLab300_T00_xyz.txt"),
    )
    main(["dirlab", str(tmp_path / "in"), str(tmp_path / "lists" / "copd.json")])
    assert "2 pairs" in capsys.readouterr().out
    cases = load_cases(datalist=str(tmp_path / "lists" / "copd.json"), output_dir=str(tmp_path / "out"))
    assert [case["case"] for case in cases] == ["case8", "copd1"]
    copd = cases[1]
    assert copd["fixed_modality"] == copd["moving_modality"] == "ct"
    for n, side in enumerate(("fixed", "moving")):
        image = nib.load(copd[side])
        expected = np.maximum(raw[n].astype(int).transpose(2, 1, 0) - 1024, -1024)
        assert (np.asarray(image.dataobj) == expected).all()
        points = read_landmarks(copd[f"{side}_landmarks"]).points_ras_mm.numpy()
        voxels = np.linalg.solve(image.affine[:3, :3], (points - image.affine[:3, 3]).T).T
        np.testing.assert_allclose(voxels, numbers[n] - 1, atol=1e-4)
        np.testing.assert_allclose(np.abs(image.header.get_zooms()), SMALL.spacing_mm, rtol=1e-6)


def test_masks_that_were_added_go_into_the_list(tmp_path: Path) -> None:
    names = (("case1_T50_s.img", "case1_T00_s.img"), ("Case1_300_T50_xyz.txt", "Case1_300_T00_xyz.txt"))
    write_case(tmp_path / "in", *names)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "case1_fixed_mask.nii.gz").write_bytes(b"")
    (entry,) = dirlab.convert_dirlab(tmp_path / "in", tmp_path / "out")
    assert entry["fixed_mask"].endswith("case1_fixed_mask.nii.gz")
    assert "moving_mask" not in entry


def test_errors_name_the_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no complete DIR-Lab case"):
        dirlab.convert_dirlab(tmp_path, tmp_path / "out")
    names = (("copd1_eBHCT.img", "copd1_iBHCT.img"), ("copd1_300_eBH_xyz_r1.txt", "copd1_300_iBH_xyz_r1.txt"))
    write_case(tmp_path / "in", *names)
    image, points = tmp_path / "in" / names[0][0], tmp_path / "in" / names[1][0]
    points.write_text("1 2 9\n")
    with pytest.raises(InputError, match=r"copd1_300_eBH_xyz_r1.txt' must be voxel numbers from 1 to \(8, 6, 4\)"):
        dirlab.convert_dirlab(tmp_path / "in", tmp_path / "out")
    points.write_text("one two three\n")
    with pytest.raises(InputError, match=r"can't be read as lines of three numbers"):
        dirlab.convert_dirlab(tmp_path / "in", tmp_path / "out")
    image.write_bytes(b"half")
    with pytest.raises(InputError, match=r"copd1_eBHCT.img' has 4 bytes, and 8 x 6 x 4 voxels of int16 have 384"):
        dirlab.convert_dirlab(tmp_path / "in", tmp_path / "out")
    assert json.dumps(sorted(path.name for path in (tmp_path / "out").glob("*"))).count("part") == 0
