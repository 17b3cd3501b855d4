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
"""Readers of text and small files: whatever the bytes, a result or one line (tools/campaigns does more)."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scripts.apply.point_files import carry_points
from scripts.utils.errors import InputError, InputFileError
from tools.campaigns.fuzz_targets import CSV, TARGETS, VTK, try_bytes

TOKENS = [
    b'"',
    b",",
    b"\n",
    b"-1",
    b"nan",
    b"1e999",
    b"{",
    b"}",
    b"[",
    b"]",
    b"null",
    b"true",
    b"\x00",
    b"\xff",
    b"9" * 20,
]


def changed(name: str) -> st.SearchStrategy[bytes]:
    """Return a seed of a reader with up to six parts replaced by tokens or random bytes."""
    part = st.tuples(
        st.floats(0, 1, exclude_max=True),
        st.integers(0, 12),
        st.sampled_from(TOKENS) | st.binary(max_size=6),
    )

    def apply(seed: bytes, changes: list[tuple[float, int, bytes]]) -> bytes:
        for at, length, new in changes:
            start = int(at * (len(seed) + 1))
            seed = seed[:start] + new + seed[start + length :]
        return seed

    return st.builds(apply, st.sampled_from(TARGETS[name].seeds), st.lists(part, max_size=6))


@pytest.mark.parametrize("name", list(TARGETS))
def test_a_reader_reads_or_refuses_in_one_line(name: str) -> None:
    outcomes = []

    @settings(max_examples=60, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(changed(name))
    def check(content: bytes) -> None:
        outcomes.append(try_bytes(name, content))

    check()
    assert len(outcomes) >= 50
    assert "refused" in outcomes or name in ("nifti", "metaimage")


@pytest.mark.parametrize("name", [name for name in TARGETS if name.startswith(("points", "landmarks", "voxels"))])
def test_the_seeds_themselves_are_read(name: str) -> None:
    assert "read" in {try_bytes(name, seed) for seed in TARGETS[name].seeds}


def test_a_message_is_one_line_whatever_it_names() -> None:
    for kind in (InputError, InputFileError):
        error = kind("'a\nb.nii' can't be\r\nread")
        assert str(error) == r"'a\nb.nii' can't be\nread"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (VTK.replace(b"POINTS 2", b"POINTS 99999999999"), "says it has 99999999999 points"),
        (VTK.replace(b"POINTS 2", b"PO\xffS 2"), "no points"),
        (VTK.replace(b"1 2 3 4", b"1\xb02 3 4"), "can't be read"),
        (VTK.replace(b"Version 3.0", b"Version 399999999999999999999.0"), "can't be read"),
    ],
)
def test_a_broken_mesh_is_one_line(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "a.vtk").write_bytes(content)
    with pytest.raises(InputError, match=words):
        carry_points(str(tmp_path / "a.vtk"), lambda points: points, tmp_path / "out.vtk")
    assert [path.name for path in tmp_path.iterdir()] == ["a.vtk"]


def test_a_quoted_line_end_in_a_header_stays_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(CSV.replace(b"x,y", b'"x\ny",y'))
    with pytest.raises(InputError) as caught:
        carry_points(str(tmp_path / "a.csv"), lambda points: points, tmp_path / "out.csv")
    assert "\n" not in str(caught.value)
