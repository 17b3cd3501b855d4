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
from __future__ import annotations

import json
import platform
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from scripts.utils import memory
from scripts.utils.memory import available_memory, keep_freed_memory

ROOT = Path(__file__).resolve().parents[2]


FRESH = """
import json, resource
from pathlib import Path

import torch

from scripts.utils.memory import keep_freed_memory, release_freed_memory


def faults(times):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        torch.ones(10_000_000)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


found = {"usual": faults(20)}
with keep_freed_memory(), keep_freed_memory():
    faults(30)  # the heap grows, and finds its places
    found["kept"] = faults(20)
release_freed_memory()
before = resident()
with keep_freed_memory():
    torch.ones(100_000_000)
    inside = resident()
found |= {"gained": inside - before, "given_back": inside - resident()}
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def fresh() -> dict[str, int]:
    """What a fresh process finds: the heap of one in which other tests ran is full of holes."""
    if platform.libc_ver()[0] != "glibc":
        pytest.skip("the allocator is glibc's")
    done = subprocess.run([sys.executable, "-c", FRESH], cwd=ROOT, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_large_tensors_reuse_memory_inside(fresh: dict[str, int]) -> None:
    if fresh["usual"] < 20 * 500:
        pytest.skip("the system's pages are huge: hardly any faults to spare")
    assert fresh["kept"] < fresh["usual"] / 20


def test_freed_memory_is_kept_inside_and_given_back_at_the_end(fresh: dict[str, int]) -> None:
    assert fresh["gained"] > 0.8 * 400_000_000
    assert fresh["given_back"] > 0.8 * 400_000_000


def test_the_end_of_one_of_two_users_leaves_the_other_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    class Library:
        def mallopt(self, option: int, value: int) -> None:
            calls.append((option, value))

        def malloc_trim(self, pad: int) -> None:
            calls.append(("trim", pad))

    monkeypatch.setattr(memory, "_glibc", lambda: Library())
    inside, leave = threading.Event(), threading.Event()

    def other() -> None:
        with keep_freed_memory():
            inside.set()
            leave.wait(10)

    thread = threading.Thread(target=other)
    thread.start()
    assert inside.wait(10)
    with keep_freed_memory():
        pass
    assert ("trim", 0) not in calls
    leave.set()
    thread.join(10)
    assert calls[-1] == ("trim", 0)


def test_memory_is_kept_no_longer_than_until_an_error() -> None:
    with pytest.raises(RuntimeError, match="stop"), keep_freed_memory():
        raise RuntimeError("stop")
    assert memory._users == 0


def test_available_memory_is_the_least_of_system_and_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_CGROUPS", tmp_path)
    system = available_memory()
    assert 0 < system < 2**50
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("1\n")
    (tmp_path / "memory.stat").write_text("anon 5\ninactive_file 0\n")
    assert available_memory() == pytest.approx(system, rel=0.2)
    (tmp_path / "memory.max").write_text("5000000\n")
    (tmp_path / "memory.current").write_text("2000000\n")
    assert available_memory() == 3_000_000
    (tmp_path / "memory.stat").write_text("anon 5\ninactive_file 1500000\n")  # files the system can forget
    assert available_memory() == 4_500_000
