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
"""Paths that users give: home folders, long names, names that look like options, suffixes in results' names."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import itk
import pytest

from scripts.apply.run import output_name
from scripts.cli import main
from scripts.data.cases import load_cases
from scripts.utils.atomic import replacing, unwritable
from scripts.utils.errors import InputError, InputFileError
from scripts.utils.output_lock import alone_in
from scripts.utils.paths import check_output_dir, existing_path, from_home, stem
from tests.helpers.chain import noise, write

ROOT = Path(__file__).resolve().parents[2]
NO_USER = "~no_such_user_xyz"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    home, work = tmp_path / "home", tmp_path / "work"
    home.mkdir()
    work.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(work)
    return work


@pytest.mark.parametrize("name", ["~x.nii.gz", "~/x.nii.gz", "~", f"{NO_USER}/x.nii.gz", "~root.nii.gz"])
def test_a_tilde_is_the_home_folder_or_a_letter(name: str, folder: Path) -> None:
    at_home = name == "~" or name.startswith("~/")
    path = (folder.parent / "home" / name[2:]) if at_home else folder / name
    if name != "~":
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x")
    found = existing_path("fixed", name, Path())
    assert os.path.samefile(found, path)
    assert os.path.samefile(existing_path("fixed", name, folder), path)


def test_a_tilde_without_such_a_user_or_file_is_said_in_one_line(folder: Path) -> None:
    with pytest.raises(InputFileError, match=r"fixed: '~x\.nii\.gz' does not exist"):
        existing_path("fixed", "~x.nii.gz", Path())
    with pytest.raises(InputError, match=r"there is no user 'no_such_user_xyz' .*; write \./~no_such_user_xyz/x"):
        check_output_dir(f"{NO_USER}/x")
    (folder / NO_USER).mkdir()
    assert check_output_dir(f"{NO_USER}/x") == (Path(NO_USER) / "x").absolute()
    assert check_output_dir("~/out") == folder.parent / "home" / "out"
    with alone_in("~/out"):
        assert (folder.parent / "home" / "out").is_dir()
    assert not (folder / "~").exists()


def test_no_home_at_all_is_no_traceback(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(self: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", unknown)
    assert from_home("~/x") == Path("~/x")
    with pytest.raises(InputError, match="there is no user"):
        check_output_dir("~/x")


LONG = 300 * "n"


@pytest.mark.parametrize(
    "give",
    [
        lambda: existing_path("fixed", f"{LONG}.nii.gz", Path()),
        lambda: existing_path("fixed", "d/" * 3000 + "x.nii.gz", Path()),
        lambda: check_output_dir(f"out/{LONG}"),
        lambda: check_output_dir(LONG),
    ],
)
def test_a_name_that_is_too_long_is_called_that(give: object, folder: Path) -> None:
    with pytest.raises(InputError, match="is too long for this system; give a shorter one"):
        give()  # type: ignore[operator]


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.ENAMETOOLONG, "its name has 303 bytes: give the inputs shorter names"),
        (errno.ENOSPC, "free space on the disk"),
        (errno.EACCES, "check the permissions"),
        (errno.EROFS, "check the permissions"),
    ],
)
def test_what_helps_depends_on_why_a_file_cannot_be_written(number: int, advice: str) -> None:
    assert advice in str(unwritable(f"/x/{LONG}.gz", os.strerror(number)))


def test_writing_under_a_name_that_is_too_long_says_so(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="its name has 250 bytes"), replacing(tmp_path / (250 * "n")) as temporary:
        temporary.write_text("x")


def test_long_names_of_files_give_names_of_cases_that_fit(tmp_path: Path) -> None:
    sides = {side: write(tmp_path / f"{150 * side[0]}_{side}.nii.gz", noise()) for side in ("fixed", "moving")}
    options = {**sides, "fixed_modality": "ct", "moving_modality": "ct", "output_dir": tmp_path / "out"}
    (case,) = load_cases(**options)
    assert len(case["case"]) <= 200
    assert case["case"].startswith(150 * "m")
    assert load_cases(**options)[0]["case"] == case["case"]
    listed = tmp_path / "list.csv"
    listed.write_text(f"case,fixed,moving\n{LONG},{sides['fixed']},{sides['moving']}\n")
    with pytest.raises(InputError, match="has 300 bytes; give one of 200 at most"):
        load_cases(datalist=listed, fixed_modality="ct", moving_modality="ct", output_dir=tmp_path / "out")


@pytest.mark.parametrize(
    "arguments",
    [
        ["register", "-dash.nii.gz", "fixed.nii.gz"],
        ["register", "moving.nii.gz", "-dash.nii.gz"],
        ["register", "moving.nii.gz", "fixed.nii.gz", "--moving_label", "-dash.nii.gz"],
        ["register", "moving.nii.gz", "fixed.nii.gz", "--output_dir", "-dash.nii.gz"],
        ["apply", "t.h5", "--image", "-dash.nii.gz"],
        ["register", "--dash.nii.gz", "fixed.nii.gz"],
        ["register", "-hidden.nii.gz", "fixed.nii.gz"],
    ],
)
def test_a_name_that_looks_like_an_option_is_called_that(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    name = next(word for word in arguments if word.endswith(".nii.gz") and word.startswith("-"))
    assert line.startswith(f"error: '{name}' begins with -")
    assert f"write ./{name}" in line


@pytest.mark.parametrize("option", ["fixed", "moving_label"])
def test_an_option_without_a_value_is_explained(option: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"{option} must be a path, got True .*write ./-NAME"):
        existing_path(option, True, tmp_path)


def test_the_suffix_of_every_format_is_left_out_of_results_names() -> None:
    kinds = [name for name in dir(itk) if name.endswith("ImageIO")]
    suffixes = {suffix for name in kinds for suffix in getattr(itk, name).New().GetSupportedReadExtensions()}
    assert {".hdr", ".img", ".tif", ".nii.gz", ".mha"} <= suffixes
    for suffix in sorted(suffixes | {".gz", ".hdr.gz", ".IMG.GZ", ".gipl", ".ima"}):
        assert stem(f"folder/a.b{suffix}") == "a.b", suffix
        if suffix != ".vtk":  # points
            assert output_name(f"a.b{suffix}") == "a.b_warped.nii.gz"
    assert stem("folder/.nii.gz") == ".nii.gz"
    assert stem("folder/series.2") == "series.2"


def test_one_line_ends_a_run_that_meets_a_bad_image(tmp_path: Path) -> None:
    """In a fresh process: engines log errors before they are raised."""
    fixed = write(tmp_path / "fixed.nii.gz", noise())
    flat = write(tmp_path / "flat.nii.gz", 0 * noise())
    command = [sys.executable, "-m", "scripts", "register", flat, fixed, "--output_dir", str(tmp_path / "out")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert "ERROR" not in done.stdout + done.stderr
    assert [line for line in done.stderr.splitlines() if line.startswith("error: ")] == [
        f"error: moving: '{flat}' is constant (all voxels are 0); nothing to register"
    ]
