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
"""The evaluation workflow: files, resuming, several processes, data sets of the paper."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from monai.bundle import ConfigParser

from scripts.data.report import is_done
from scripts.evaluation.benchmarks import choose_benchmark
from scripts.evaluation.run import remaining_cases, require_data
from scripts.utils.errors import InputError
from scripts.utils.versions import versions
from tests.helpers.known_pair import QUICK, ROOT, evaluate, write_known_pair

FILES = ("summary.json", "pairs.csv", "labels.csv", "landmarks.csv", "table.md", "table.tex", "box_plots.png")


def write_list(folder: Path, count: int = 2) -> Path:
    """Write a CSV of pairs; the odd ones are swapped."""
    pair = write_known_pair(folder / "pair")
    swapped = {key.replace("fixed", "m!").replace("moving", "fixed").replace("m!", "moving"): pair[key] for key in pair}
    rows: list[dict[str, str]] = [{"case": f"case{n}", **(swapped if n % 2 else pair)} for n in range(count)]
    path = folder / "pairs.csv"
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_all_figures_of_all_pairs_are_written(tmp_path: Path) -> None:
    summary = evaluate(tmp_path / "out", datalist=str(write_list(tmp_path)), dataset_name="Made")
    folder = tmp_path / "out"
    assert {path.name for path in folder.iterdir()} == {*FILES, "case0", "case1"}
    assert (folder / "box_plots.png").read_bytes().startswith(b"\x89PNG")
    rows = list(csv.DictReader((folder / "pairs.csv").open()))
    assert [row["case"] for row in rows] == ["case0", "case1"]
    for row in rows:
        report = json.loads((folder / row["case"] / "report.json").read_text())
        for name in ("dice", "hd95_mm", "assd_mm", "tre_mm"):
            for when in ("before", "after"):
                assert float(row[f"{name}_{when}"]) == report[name][when]["mean"]
        assert float(row["tre_mm_after_percentile_95"]) >= float(row["tre_mm_after_median"]) > 0
        assert float(row["tre_mm_after"]) < 1 < float(row["tre_mm_before"])
        assert float(row["hd95_mm_after"]) < float(row["hd95_mm_before"])
        assert float(row["negative_percent"]) == report["jacobian"]["negative_percent"] == 0
        assert float(row["seconds"]) > 0
        assert 100 < float(row["peak_memory_mib"]) < 20000
    labels = list(csv.DictReader((folder / "labels.csv").open()))
    assert [(row["case"], row["label"]) for row in labels] == [(f"case{n}", str(v)) for n in (0, 1) for v in (1, 2)]
    assert len(list(csv.DictReader((folder / "landmarks.csv").open()))) == 24
    mean = sum(float(row["tre_mm_after"]) for row in rows) / 2
    assert summary["summary"]["tre_mm_after"]["mean"] == pytest.approx(mean)
    assert summary["summary"]["tre_mm_after"]["pairs"] == 2


def test_a_second_run_does_only_what_is_left(tmp_path: Path) -> None:
    path = str(write_list(tmp_path))
    first = evaluate(tmp_path / "out", datalist=path, surface_distances=False)
    reports = [tmp_path / "out" / f"case{n}" / "report.json" for n in (0, 1)]
    whole = [json.loads(report.read_text()) for report in reports]
    reports[1].unlink()  # as if the run had been killed in the second case
    stamp = reports[0].stat().st_mtime_ns
    second = evaluate(tmp_path / "out", datalist=path, surface_distances=False)
    assert reports[0].stat().st_mtime_ns == stamp
    again = json.loads(reports[1].read_text())
    volatile = ("seconds", "peak_memory_mib")
    assert {k: v for k, v in again.items() if k not in volatile} == {
        k: v for k, v in whole[1].items() if k not in volatile
    }
    for name in ("tre_mm_after", "dice_after", "inconsistency_mm"):
        assert second["summary"][name] == first["summary"][name]
    evaluate(tmp_path / "out", datalist=path, surface_distances=False, lambda_gradicon=2.0)
    assert reports[0].stat().st_mtime_ns != stamp  # other settings


def test_two_processes_share_the_pairs_and_write_one_table(tmp_path: Path) -> None:
    path = str(write_list(tmp_path, 3))
    alone = evaluate(tmp_path / "alone", datalist=path, surface_distances=False)
    configs = [str(ROOT / "configs" / f"{name}.yaml") for name in ("inference", "evaluate", "multi_gpu_evaluate")]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += ["-m", "monai.bundle", "run", "evaluate", "--config_file", str(configs), "--bundle_root", str(ROOT)]
    options: dict[str, Any] = {"datalist": path, "output_dir": str(tmp_path / "two"), "model": "none", **QUICK}
    for key, value in {**options, "surface_distances": False}.items():
        command += [f"--{key}", str(value)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    shared = json.loads((tmp_path / "two" / "summary.json").read_text())
    assert [row["case"] for row in shared["pairs"]] == ["case0", "case1", "case2"]
    for name in ("tre_mm_after", "dice_after"):
        assert shared["summary"][name]["mean"] == pytest.approx(alone["summary"][name]["mean"], abs=1e-4)
    assert done.stdout.count("| method |") == 1


def test_cases_are_dealt_out_and_known_by_inputs_settings_and_weights(tmp_path: Path) -> None:
    cases = [{"case": f"c{n}", "case_dir": str(tmp_path / f"c{n}"), "fixed": f"f{n}", "moving": "m"} for n in range(5)]
    shares = [remaining_cases(cases, {}, {}, rank=rank, processes=2) for rank in (0, 1)]
    assert [[case["case"] for case in share] for share in shares] == [["c0", "c2", "c4"], ["c1", "c3"]]
    (tmp_path / "c0").mkdir()
    report: dict[str, Any] = {"inputs": {"fixed": "f0", "moving": "m"}, "settings": {"a": [1, 2]}}
    report |= {"weights": {"sha256": "x"}, "versions": versions(), "input_states": {}, "seed": None}
    (tmp_path / "c0" / "report.json").write_text(json.dumps(report))
    assert is_done(cases[0], {"a": (1, 2)}, {"sha256": "x"})
    assert not is_done(cases[0], {"a": (1, 3)}, {"sha256": "x"})
    assert not is_done(cases[0], {"a": (1, 2)}, {"sha256": "y"})
    assert not is_done({**cases[0], "fixed": "other"}, {"a": (1, 2)}, {"sha256": "x"})
    assert not is_done(cases[0], {"a": (1, 2)}, {"sha256": "x"}, seed=1)
    assert remaining_cases(cases[:1], {"a": (1, 2)}, {"sha256": "x"}) == []
    assert remaining_cases(cases[:1], {"a": (1, 2)}, {"sha256": "x"}, resume=False) == cases[:1]
    (tmp_path / "c0" / "report.json").write_text(json.dumps({**report, "versions": {"bundle": "0.0.1"}}))
    assert not is_done(cases[0], {"a": (1, 2)}, {"sha256": "x"})
    for text in ("{", "[]", '{"weights": null}'):  # half a file, or another program's, counts as none
        (tmp_path / "c0" / "report.json").write_text(text)
        assert not is_done(cases[0], {"a": (1, 2)}, {"sha256": "x"})
    (tmp_path / "f0").write_text("now there is a file, and another time")
    absolute = {**cases[0], "fixed": str(tmp_path / "f0")}
    states = {"fixed": [37, (tmp_path / "f0").stat().st_mtime_ns]}
    report |= {"inputs": {"fixed": absolute["fixed"], "moving": "m"}, "input_states": states}
    (tmp_path / "c0" / "report.json").write_text(json.dumps(report))
    assert is_done(absolute, {"a": (1, 2)}, {"sha256": "x"})
    (tmp_path / "f0").write_text("the same name, another image")
    assert not is_done(absolute, {"a": (1, 2)}, {"sha256": "x"})


PAPER = {  # mTRE mm or Dice %: start, zero-shot, with instance optimization, SyN (Tian et al., MICCAI 2024)
    "copdgene": ("tre_mm", 23.36, 2.26, 1.40, 1.79),
    "oai": ("dice", 7.6, 68.9, 70.3, 65.7),
    "hcp": ("dice", 53.4, 76.2, 78.9, 75.8),
    "l2r_abdomen": ("dice", 25.9, 48.3, 52.2, 25.2),
    "l2r_nlst": ("tre_mm", 10.22, 2.07, 1.77, 3.04),
    "l2r_oasis": ("dice", 57.18, 79.0, 79.6, 75.6),
    "ixi": ("dice", 40.6, 70.6, 71.3, 64.5),
    "l2r_cbct": ("dice", 31.3, 57.0, 59.9, 57.4),
    "l2r_ctmr": ("dice", 31.3, 50.0, 66.8, 45.0),
}


@pytest.mark.parametrize("name", list(PAPER))
def test_each_data_set_of_the_paper_has_its_figures_and_says_how_to_get_it(name: str, tmp_path: Path) -> None:
    benchmarks = yaml.safe_load((ROOT / "configs" / "datasets.yaml").read_text())["benchmarks"]
    content = choose_benchmark(benchmarks, name)
    paper = content["paper"]
    assert (paper["metric"], paper["before"], paper["zero_shot"], paper["with_io"], paper["syn"]) == PAPER[name]
    assert "https://" in content["how_to_get"]
    with pytest.raises(InputError, match="https://"):
        require_data(str(tmp_path / "none.json"), content["how_to_get"])
    assert sorted(benchmarks) == sorted(PAPER)
    with pytest.raises(InputError, match=r"expected one of .*got 'l2r_oasi'.*'l2r_oasis'"):
        choose_benchmark(benchmarks, "l2r_oasi")


def test_the_chosen_data_set_sets_the_options_of_an_evaluation() -> None:
    parser = ConfigParser()
    parser.read_config([str(ROOT / "configs" / name) for name in ("inference.yaml", "evaluate.yaml", "datasets.yaml")])
    names = ("datalist", "fixed_modality", "moving_modality", "similarity", "output_dir", "dataset_name")
    found = {}
    for name in PAPER:
        parser["benchmark"] = name
        parser.parse(reset=True)
        found[name] = [parser.get_parsed_content(option) for option in names]
    assert found["l2r_ctmr"] == [
        "./data/AbdomenMRCT/AbdomenMRCT_dataset.json",
        *("ct", "mr", "lncc2", "./output/evaluation/l2r_ctmr", "L2R-CTMR"),
    ]
    assert found["ixi"] == ["./data/ixi.json", "mr", "mr", "lncc", "./output/evaluation/ixi", "IXI"]
    assert {tuple(values[1:4]) for values in found.values()} == {
        *(("ct", "ct", "lncc"), ("mr", "mr", "lncc"), ("ct", "mr", "lncc2"))
    }


def test_a_data_set_runs_with_its_own_list_and_prints_the_papers_figures(tmp_path: Path) -> None:
    path = str(write_list(tmp_path, 1))
    options = {"benchmark": "copdgene", "datalist": path, "fixed_modality": "mr", "moving_modality": "mr"}
    evaluate(tmp_path / "out", ("datasets.yaml",), **options)
    table = (tmp_path / "out" / "table.md").read_text()
    assert "| uniGradICON, instance optimization (paper) |" in table
    assert "| 1.4 |" in table
    assert "| bundle: none, field, default |" in table


def test_without_its_data_a_data_set_stops_in_one_line(tmp_path: Path) -> None:
    configs = [str(ROOT / "configs" / name) for name in ("inference.yaml", "evaluate.yaml", "datasets.yaml")]
    command = [sys.executable, "-m", "monai.bundle", "run", "evaluate", "--config_file", str(configs)]
    command += ["--bundle_root", str(ROOT), "--output_dir", str(tmp_path / "out"), "--model", "none"]
    command += ["--datalist", str(tmp_path / "NLST_dataset.json"), "--benchmark", "l2r_nlst"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert done.stderr.strip().splitlines()[-1].startswith("error: datalist:")
    assert "get NLST at https://learn2reg.grand-challenge.org" in done.stderr
    assert not (tmp_path / "out").exists()
