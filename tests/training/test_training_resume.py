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
"""Long runs: stopped, killed and resumed, they end as if nothing had happened; two processes do what one does."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from scripts.training.stop_handlers import StopOnSignal
from scripts.utils.errors import find_input_error
from tests.helpers.training_run import (
    ROOT,
    SMALL,
    assert_same_state,
    load,
    scalars,
    synthetic_list,
    train,
    training_workflow,
)

# 2 epochs of 6 batches, each two steps of three: stops fall within epochs and within accumulations
LONG: dict[str, Any] = {"accumulation_steps": 3, "save_interval": 1, "lr_schedule": "cosine", "max_epochs": 3}


@pytest.fixture
def lists(tmp_path: Path) -> dict[str, Any]:
    path = synthetic_list(tmp_path / "lists", pairs=6)
    return {"train_datalist": path, "val_datalist": path}


def command(options: dict[str, Any], *configs: str) -> list[str]:
    files = [str(ROOT / "configs" / name) for name in ("train.yaml", *configs)]
    words = ["-m", "monai.bundle", "run", "training", "--config_file", str(files)]
    for key, value in {**SMALL, **options, "bundle_root": str(ROOT)}.items():
        words += [f"--{key}", str(value)]
    return words


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}


def wait_for_iteration(process: subprocess.Popen, path: Path, iteration: int, limit_s: float = 240) -> None:
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        assert process.poll() is None, "the run ended by itself"
        if path.exists() and load(path)["trainer"]["iteration"] >= iteration:
            return
        time.sleep(0.02)
    raise AssertionError("the run did not get that far")


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_a_run_that_was_ended_from_outside_resumes_exactly(
    tmp_path: Path, lists: dict[str, Any], number: int, status: int
) -> None:
    torch.set_num_threads(1)
    options = {**LONG, **lists, "max_epochs": 40, "lr_schedule": "constant", "warmup_epochs": 2}
    run = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, *command({**options, "ckpt_dir": run})],
        env=environment(),
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    wait_for_iteration(process, run / "last.pt", 9)
    process.send_signal(number)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == status, output[-2000:]
    stopped_at = load(run / "last.pt")["trainer"]["iteration"]
    assert 9 <= stopped_at < 240
    assert stopped_at % 3 == 0  # no gradients waited for the rest of their accumulation
    if number != signal.SIGKILL:
        assert f"stopped at iteration {stopped_at}; go on with --resume True" in output

    end = {**options, "max_epochs": stopped_at // 6 + 2}
    resumed = train(run, resume=True, **end)
    whole = train(tmp_path / "whole", **end)
    assert_same_state(whole, resumed)
    assert_same_state(load(tmp_path / "whole" / "best.pt"), load(run / "best.pt"))


@pytest.mark.parametrize("stop_at", [3, 6, 7, 12])
def test_a_signal_at_any_step_loses_nothing(
    tmp_path: Path, lists: dict[str, Any], stop_at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(tmp_path / "whole", **LONG, **lists)
    check = StopOnSignal._check

    def signaled(self: StopOnSignal, engine: Any) -> None:
        if engine.state.iteration == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        check(self, engine)

    run = tmp_path / "run"
    monkeypatch.setattr(StopOnSignal, "_check", signaled)
    with pytest.raises(SystemExit) as ended:
        train(run, **LONG, **lists)
    assert ended.value.code == 143
    monkeypatch.undo()
    assert load(run / "last.pt")["trainer"]["iteration"] == {3: 3, 6: 6, 7: 9, 12: 12}[stop_at]
    assert_same_state(whole, train(run, resume=True, **LONG, **lists))
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_run_is_not_overwritten(tmp_path: Path, lists: dict[str, Any]) -> None:
    train(tmp_path / "run", max_epochs=1, **lists)
    content = (tmp_path / "run" / "last.pt").read_bytes()
    for options, words in (
        ({}, "--resume True"),
        ({"resume": True, "pairs_per_epoch": 1, "batch_size": 2}, "batches an epoch"),
        ({"resume": True, "up_channels": [3, 4, 8]}, "another network or optimizer"),
    ):
        with pytest.raises(Exception, match=r".") as error:
            train(tmp_path / "run", **lists, **options)
        assert words in str(find_input_error(error.value))
    assert (tmp_path / "run" / "last.pt").read_bytes() == content


def test_resume_starts_anew_where_there_is_nothing(tmp_path: Path, lists: dict[str, Any]) -> None:
    fresh = train(tmp_path / "a", resume=True, max_epochs=1, **lists)
    assert_same_state(fresh["model"], train(tmp_path / "b", max_epochs=1, **lists)["model"])


def test_a_finished_run_can_be_made_longer(tmp_path: Path, lists: dict[str, Any]) -> None:
    options = {**lists, "max_epochs": 3}
    whole = train(tmp_path / "whole", **options)
    train(tmp_path / "run", **{**options, "max_epochs": 2})
    assert_same_state(whole["model"], train(tmp_path / "run", resume=True, **options)["model"])


def test_a_resumed_run_follows_the_learning_rate_and_length_that_are_asked_for_now(
    tmp_path: Path, lists: dict[str, Any]
) -> None:
    options = {**lists, "lr_schedule": "cosine"}
    train(tmp_path / "run", **{**options, "max_epochs": 2})
    last = train(tmp_path / "run", **{**options, "max_epochs": 4, "learning_rate": 1e-4, "resume": True})
    rates = scalars(tmp_path / "run", "learning_rate")
    assert rates == pytest.approx([1e-3, 0.5e-3, 0.5e-4, 1e-4 * 0.5 * (1 + math.cos(0.75 * math.pi))])
    assert last["lr_scheduler"]["base_lrs"] == [1e-4]


def test_a_run_that_asks_to_resume_nothing_validates_its_start(tmp_path: Path, lists: dict[str, Any]) -> None:
    train(tmp_path / "run", resume=True, max_epochs=1, **lists)
    assert len(scalars(tmp_path / "run", "val_similarity")) == 2


def test_a_damaged_state_is_one_clear_line(tmp_path: Path, lists: dict[str, Any]) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "last.pt").write_bytes(b"nothing")
    with pytest.raises(Exception, match=r".") as error:
        train(run, resume=True, **lists)
    assert "can't be read as a training state" in str(find_input_error(error.value))


def test_two_processes_do_what_one_does_with_the_same_global_batch(tmp_path: Path, lists: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    # fewer validation pairs than processes: none may wait for the other
    held_out = synthetic_list(tmp_path / "held_out", name="held_out", **{"pairs": 6})
    content = json.loads(Path(held_out).read_text())
    content["datasets"][0]["synthetic"]["pairs"] = 1
    Path(held_out).write_text(json.dumps(content))
    options = {**lists, "val_datalist": held_out, "max_epochs": 3, "dice_weight": 0.5}
    one = train(tmp_path / "one", accumulation_steps=2, **options)
    two = tmp_path / "two"
    words = command({**options, "ckpt_dir": two}, "multi_gpu_train.yaml")
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", *words],
        env=environment(),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for term in ("loss", "similarity", "regularity", "dice_loss", "transform_magnitude"):
        curve = scalars(two, f"epoch_{term}")
        assert len(curve) == 3
        assert curve == pytest.approx(scalars(tmp_path / "one", f"epoch_{term}"), rel=2e-4), term
    last = load(two / "last.pt")
    assert last["trainer"]["iteration"] == one["trainer"]["iteration"] // 2
    for name, value in one["model"].items():
        if not name.endswith(("running_mean", "running_var", "num_batches_tracked")):
            torch.testing.assert_close(last["model"][name], value, rtol=1e-3, atol=2e-4, msg=name)
    assert (two / "best.pt").exists()
    # all processes validate the network that is saved
    again = train(tmp_path / "again", init_ckpt=str(two / "last.pt"), **{**options, "max_epochs": 1, "stage": 1})
    assert again
    figure = scalars(tmp_path / "again", "val_similarity")[0]
    assert figure == pytest.approx(scalars(two, "val_similarity")[-1], rel=1e-3)


def test_a_second_workflow_in_one_process_is_independent(tmp_path: Path, lists: dict[str, Any]) -> None:
    workflow = training_workflow(tmp_path / "a", **lists)
    workflow.run()
    assert_same_state(load(tmp_path / "a" / "last.pt"), train(tmp_path / "b", **lists))
