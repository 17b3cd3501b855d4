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
"""Full disks, a second run in the folder, a lack of memory, clocks that jump: one line, no half file, nothing lost."""

from __future__ import annotations

import errno
import json
import logging
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import itk
import pytest
import torch

from scripts.apply.run import apply_transforms, load_inputs
from scripts.data.itk_transforms import write_itk
from scripts.geometry.image_pair import ImagePair
from scripts.inferers import field_optimization
from scripts.inferers import registration_inferer as inferers
from scripts.inferers.field_optimization import FieldObjective, Level, optimize_field
from scripts.inferers.registration_inferer import RegistrationInferer
from scripts.losses.similarity import create_similarity
from scripts.utils.atomic import reserve
from scripts.utils.errors import InputError, find_input_error
from scripts.utils.output_lock import alone_in
from tests.helpers.inference import run_inference
from tests.helpers.known_pair import ROOT, write_known_pair
from tests.helpers.networks import random_network

QUICK: dict[str, Any] = {"image_shape": [24, 24, 24], "field::levels": {"default": [[16, 8]]}}


def command(pair: dict[str, str], folder: Path) -> list[str]:
    arguments = [*(sys.executable, "-W", "ignore", "-m", "monai.bundle", "run", "inference")]
    arguments += ["--config_file", "configs/inference.yaml", "--output_dir", str(folder), "--model", "none"]
    for name, value in {**pair, **QUICK, "device": "cpu", "progress": False}.items():
        arguments += [f"--{name}", str(value)]
    return arguments


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return write_known_pair(tmp_path_factory.mktemp("pair"))


# bytes a file may have: less than HDF5's, which would end the process, or less than a volume's after it
@pytest.mark.parametrize("limit", [1_000, 300_000])
def test_a_disk_without_room_is_one_line_and_no_half_file(tmp_path: Path, pair: dict[str, str], limit: int) -> None:
    result = subprocess.run(
        command(pair, tmp_path / "out"),
        cwd=ROOT,
        # coverage, too, would run into the limit, and speak last
        env={name: value for name, value in os.environ.items() if not name.startswith("COV")}
        | {"OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1, result.stderr
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("error: '")
    assert "can't be written (File too large); free space" in last
    left = list((tmp_path / "out").iterdir()) if (tmp_path / "out").exists() else []
    assert all(path.stat().st_size < limit and not path.name.startswith(".") for path in left)
    assert not [path for path in left if path.name == "report.json"]
    for path in left:
        if path.suffix == ".h5":
            assert itk.transformread(str(path))


def test_room_is_found_before_hdf5_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    transform = itk.TranslationTransform[itk.D, 3].New()
    with pytest.raises(InputError, match=r"t.h5' can't be written \(No space left on device\)"):
        write_itk(transform, tmp_path / "t.h5")
    assert list(tmp_path.iterdir()) == []
    monkeypatch.delattr(os, "posix_fallocate")  # as on macOS
    write_itk(transform, tmp_path / "t.h5")
    with pytest.raises(OSError, match="No space left"):
        reserve(tmp_path / "big", 2**60)

    def unsupported(*_: Any) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(os, "posix_fallocate", unsupported, raising=False)
    write_itk(transform, tmp_path / "t.h5")


def test_a_second_run_in_the_folder_is_refused(tmp_path: Path, pair: dict[str, str]) -> None:
    out = tmp_path / "out"
    with alone_in(out):
        with pytest.raises(Exception, match=r"instantiate|another run") as caught:
            run_inference(out, **pair, **QUICK)
        error = find_input_error(caught.value)
        assert error is not None
        assert str(error).startswith(f"another run is writing to '{out}'; wait")
        with alone_in(out, rank=1):  # another process of the same run
            pass
    assert not out.exists()  # nothing was written, and nothing of the lock is left
    assert run_inference(out, **pair, **QUICK)["outputs"]
    forward = str(out / "forward_transform.h5")
    inputs = load_inputs(transform=forward, landmarks=pair["fixed_landmarks"], output_dir=str(tmp_path / "applied"))
    with alone_in(tmp_path / "applied"), pytest.raises(InputError, match="another run"):
        apply_transforms(inputs)


HOLDS_THE_LOCK = """
import sys, time
from scripts.utils.output_lock import alone_in
with alone_in(sys.argv[1]):
    print("in", flush=True)
    time.sleep(60)
"""


def test_a_lock_ends_with_its_process(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDS_THE_LOCK, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "in\n"
    with pytest.raises(InputError, match="another run"), alone_in(tmp_path):
        pass
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    with alone_in(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []  # what the killed process left is gone


def test_a_forked_child_does_not_hold_the_lock(tmp_path: Path) -> None:
    at_work, tell = os.pipe()
    with alone_in(tmp_path):
        child = os.fork()
        if child == 0:
            os.write(tell, b"x")
            time.sleep(60)
            os._exit(0)
        assert os.read(at_work, 1) == b"x"
    try:
        with alone_in(tmp_path):
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


TWO_RANKS = """
import pathlib, sys, time
import torch.distributed as dist
from scripts.utils.errors import InputError
from scripts.utils.output_lock import LOCK_NAME, alone_in, locked
dist.init_process_group("gloo")
with alone_in(sys.argv[1], dist.get_rank()):
    if dist.get_rank() == 1:  # the first one has nothing to do
        time.sleep(2)
        try:
            with locked(pathlib.Path(sys.argv[1]) / LOCK_NAME, 'refused'):
                print("free")
        except InputError:
            print("locked")
dist.destroy_process_group()
"""


def test_the_folder_is_locked_until_all_processes_are_done(tmp_path: Path) -> None:
    (tmp_path / "ranks.py").write_text(TWO_RANKS)
    (tmp_path / "folder").mkdir()
    start = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run(
        [*start, str(tmp_path / "ranks.py"), str(tmp_path / "folder")],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("locked")


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="can't be written"), alone_in(tmp_path / "file" / "out"):
        pass


def images(size: int = 24) -> ImagePair:
    generator = torch.Generator().manual_seed(0)
    volumes = torch.nn.functional.avg_pool3d(torch.rand(2, 1, size, size, size, generator=generator), 3, 1, 1)
    return ImagePair(volumes[:1], volumes[1:], torch.eye(4), torch.eye(4))


LEVELS = [Level(8, 3), Level(16, 3), Level(24, 3)]


def optimize(**options: Any) -> Any:
    return optimize_field(
        images(), torch.zeros(2, 3, 8, 8, 8), FieldObjective(create_similarity("lncc", 2)), LEVELS, **options
    )


def test_the_field_of_the_levels_before_is_kept_when_memory_runs_out(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    wanted = optimize_field(
        images(), torch.zeros(2, 3, 8, 8, 8), FieldObjective(create_similarity("lncc", 2)), LEVELS[:2]
    )
    evaluate = field_optimization._LevelLoss.__call__

    def run_out(self: Any, displacement: Any, low: Any) -> Any:
        if displacement.shape[-1] == 24:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")
        return evaluate(self, displacement, low)

    monkeypatch.setattr(field_optimization._LevelLoss, "__call__", run_out)
    with pytest.raises(torch.OutOfMemoryError):
        optimize()
    with caplog.at_level(logging.WARNING):
        found = optimize(oom_fallback=True)
    assert "out of memory on the grid of 24 voxels along each axis; the result is that of 16" in caplog.text
    assert found.size == 16
    torch.testing.assert_close(found.displacement, wanted.displacement, rtol=0, atol=0)


def test_other_errors_and_the_first_level_are_no_reason_to_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> Any:
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(field_optimization._LevelLoss, "__call__", fail)
    with pytest.raises(RuntimeError, match="shapes differ"):
        optimize(oom_fallback=True)
    monkeypatch.setattr(field_optimization, "available_memory", lambda: 100)
    with pytest.raises(MemoryError, match=r"grid of 8 voxels along each axis needs 0.0 GiB or more"):
        optimize(oom_fallback=True)


def test_a_level_that_does_not_fit_is_not_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(field_optimization, "available_memory", lambda: field_optimization.LEAST_BYTES * 24**3 - 1)
    with pytest.raises(MemoryError, match="grid of 24"):
        optimize()
    assert optimize(oom_fallback=True).size == 16


def test_the_report_tells_of_the_levels_that_were_left_out(
    tmp_path: Path, pair: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(field_optimization, "available_memory", lambda: field_optimization.LEAST_BYTES * 30**3)
    options = {**pair, "image_shape": [40, 40, 40], "field::levels": {"default": [[24, 5], [40, 5]]}}
    with pytest.raises(Exception, match=r"Failed|memory"):
        run_inference(tmp_path / "a", **options)
    report = run_inference(tmp_path / "b", oom_fallback=True, **options)
    assert report["terms"]["out_of_memory_beyond"] == 24
    assert report["settings"]["oom_fallback"] is True


def test_the_network_goes_on_with_activation_checkpointing(monkeypatch: pytest.MonkeyPatch) -> None:
    network = random_network(spatial_shape=(24, 24, 24))
    tried: list[Any] = []
    work = inferers.optimize_network

    def run_out(*args: Any, **options: Any) -> Any:
        tried.append(options["activation_checkpointing"])
        if tried[-1] is not True:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return work(*args, **options)

    monkeypatch.setattr(inferers, "optimize_network", run_out)
    data = images()
    inputs = torch.cat([data.moving, data.fixed], 1)
    extras = {"moving_affine": torch.eye(4), "fixed_affine": torch.eye(4)}
    options: dict[str, Any] = {"optimization": "network", "progress": False}
    options |= {"network_optimization": {"steps": 1}, "field": {"levels": {"default": [[8, 1]]}}}
    with pytest.raises(torch.OutOfMemoryError):
        RegistrationInferer(**options)(inputs, network, **extras)
    found = RegistrationInferer(oom_fallback=True, **options)(inputs, network, **extras)
    assert tried == ["auto", "auto", True]
    wanted = RegistrationInferer(activation_checkpointing=True, **options)(inputs, network, **extras)
    torch.testing.assert_close(found["forward_ddf"], wanted["forward_ddf"], rtol=0, atol=0)


def test_a_clock_that_jumps_back_changes_nothing(
    tmp_path: Path, pair: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = run_inference(tmp_path / "usual", **pair, **QUICK)
    clock = iter(range(10**9, 0, -3600))
    monkeypatch.setattr(time, "time", lambda: float(next(clock)))
    monkeypatch.setattr(time, "time_ns", lambda: next(clock) * 10**9)
    jumped = run_inference(tmp_path / "jumped", **pair, **QUICK)
    assert jumped["seconds"] >= 0
    for report in (usual, jumped):
        for key in ("seconds", "peak_memory_mib", "peak_gpu_memory_mib"):
            del report[key]
    assert json.dumps(usual) == json.dumps(jumped)
