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
"""Exported networks: the same ddf as the network, the whole inference with them, errors in one line."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import onnx
import pytest
import torch
from monai.bundle import ConfigWorkflow, ckpt_export

from scripts.cli import main
from scripts.networks.architectures import create_registration_network
from scripts.networks.checkpoints import load_weights
from scripts.networks.exported_network import FORMATS, load_exported
from scripts.networks.exports import example_pair, export_network
from scripts.networks.registration_network import RegistrationNetwork
from scripts.networks.tensorrt import compile_unets
from scripts.utils.errors import InputError, InputFileError, find_input_error
from tests.helpers.known_pair import write_known_pair

ROOT = Path(__file__).resolve().parents[2]
TOLERANCE = 1e-4  # voxels


def random_network(shape: list[int], full_size: bool = False) -> RegistrationNetwork:
    """Random weights whose displacements are of several voxels."""
    torch.manual_seed(0)
    network = RegistrationNetwork(shape) if full_size else RegistrationNetwork(shape, [2, 4, 8, 8], [4, 4, 8])
    for unet in network.unets:
        torch.nn.init.normal_(unet.last.weight, std=0.05 if full_size else 0.2)
    return network.eval()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The default weights, exported by the command to each format."""
    folder = tmp_path_factory.mktemp("exported")
    made = {ending: folder / f"model{ending}" for ending in FORMATS}
    for path in made.values():
        assert main(["export", str(path)]) == 0
    return made


@pytest.fixture(scope="module")
def default_network() -> RegistrationNetwork:
    return load_weights(create_registration_network("default"), "default")


@pytest.mark.parametrize("ending", list(FORMATS))
def test_the_default_weights_give_the_same_in_each_format(
    files: dict[str, Path], default_network: RegistrationNetwork, ending: str
) -> None:
    exported = load_exported(files[ending])
    assert exported.spatial_shape == default_network.spatial_shape
    assert exported.preprocessing == {"match_orientation": True}
    pair = torch.rand(1, 2, *exported.spatial_shape)  # not the one that the command compares with
    with torch.no_grad():
        expected = default_network(pair)
        assert expected.abs().max() > 1  # voxels
        torch.testing.assert_close(exported(pair), expected, atol=TOLERANCE, rtol=0)
        points = exported.register(pair[:, :1], pair[:, 1:]).on_grid(pair)
        torch.testing.assert_close(
            points, default_network.register(pair[:, :1], pair[:, 1:]).on_grid(pair), atol=1e-5, rtol=0
        )


@pytest.mark.parametrize("ending", list(FORMATS))
def test_a_network_of_the_published_size_is_exported(tmp_path: Path, ending: str) -> None:
    """At 67 voxels; at 175: python -m tools.benchmarks.exports."""
    done = export_network(random_network([67, 67, 67], full_size=True), tmp_path / f"model{ending}")
    assert done.difference <= TOLERANCE
    assert done.size > 1


def test_onnx_files_are_whole_and_of_an_opset_that_interpolates_volumes(files: dict[str, Path]) -> None:
    model = onnx.load(files[".onnx"])
    onnx.checker.check_model(model, full_check=True)
    assert [entry.version for entry in model.opset_import if entry.domain == ""] == [20]
    assert [image.name for image in model.graph.input] == ["image"]
    assert [image.name for image in model.graph.output] == ["pred"]
    assert sorted(path.name for path in files[".onnx"].parent.iterdir()) == ["model.onnx", "model.pt2", "model.ts"]


def test_a_file_of_monai_s_own_export_is_taken(tmp_path: Path, default_network: RegistrationNetwork) -> None:
    """The command of the model zoo's checks, which names no model and no key."""
    out = tmp_path / "model.ts"
    ckpt_export(
        "network_def",
        str(out),
        ckpt_file=str(ROOT / "models" / "model.pt"),
        meta_file=str(ROOT / "configs" / "metadata.json"),
        config_file=str(ROOT / "configs" / "inference.yaml"),
        bundle_root=str(ROOT),
    )
    pair = example_pair(default_network.spatial_shape)
    with torch.no_grad():
        torch.testing.assert_close(load_exported(out)(pair), default_network(pair), atol=TOLERANCE, rtol=0)
    assert load_exported(out).preprocessing == {}  # it records nothing


@pytest.mark.parametrize("ending", list(FORMATS))
def test_a_file_of_own_weights_keeps_images_as_they_are(tmp_path: Path, ending: str) -> None:
    """As inference does with --ckpt_path: whether images are turned follows the weights, not the option --model."""
    torch.save(random_network([40, 40, 40]).state_dict(), tmp_path / "own.pt")
    out = tmp_path / f"own{ending}"
    own = ["--ckpt_path", str(tmp_path / "own.pt"), "--network_shape", "40", "40", "40"]
    assert main(["export", str(out), *own]) == 0
    assert load_exported(out).preprocessing == {"match_orientation": False}
    _, report = register(tmp_path / "run", "inference_exported.yaml", exported=str(out), optimization="off")
    assert report["settings"]["match_orientation"] is False


def register(folder: Path, config: str | None, **options: object) -> tuple[np.ndarray, dict[str, dict[str, object]]]:
    """Run the inference, with a config laid over it; return the displacement field (mm) and the report."""
    folder.mkdir()
    configs = [str(ROOT / "configs" / name) for name in ("inference.yaml", config) if name]
    workflow = ConfigWorkflow(
        config_file=configs,
        workflow_type="inference",
        bundle_root=str(ROOT),
        output_dir=str(folder / "out"),
        progress=False,
        device="cpu",
        **write_known_pair(folder / "pair"),
        **options,
    )
    workflow.initialize()
    workflow.run()
    field = np.asarray(nib.load(folder / "out" / "displacement.nii.gz").dataobj)
    return field, json.loads((folder / "out" / "report.json").read_text())


@pytest.mark.parametrize(("ending", "optimization"), [(".ts", "off"), (".pt2", "off"), (".onnx", "field")])
def test_the_whole_inference_runs_with_a_file(
    files: dict[str, Path], tmp_path: Path, ending: str, optimization: str
) -> None:
    options = {"optimization": optimization, "field::levels": {"default": [[16, 4]]}}
    plain, _ = register(tmp_path / "plain", None, **options)
    found, report = register(tmp_path / "exported", "inference_exported.yaml", exported=str(files[ending]), **options)
    assert np.abs(plain).max() > 1  # mm
    np.testing.assert_allclose(found, plain, atol=1e-3)
    assert report["weights"]["path"] == str(files[ending])
    assert report["settings"]["exported"] == str(files[ending])


def test_the_tensorrt_config_falls_back_to_the_network_where_there_is_no_tensorrt(tmp_path: Path) -> None:
    """What can be tested without such a GPU: that the config makes a network of the UNets it names."""
    if torch.cuda.is_available():
        pytest.skip("a GPU is at hand: TensorRT would build its engines, for minutes")
    plain, _ = register(tmp_path / "plain", None, optimization="off")
    found, _ = register(tmp_path / "trt", "inference_trt.yaml", optimization="off")
    np.testing.assert_array_equal(found, plain)


@pytest.mark.parametrize(
    ("over", "run_id", "table"),
    [("cohort.yaml", "cohort", "cohort.csv"), ("evaluate.yaml", "evaluate", "pairs.csv")],
)
def test_a_file_serves_cohorts_and_evaluations(
    files: dict[str, Path], tmp_path: Path, over: str, run_id: str, table: str
) -> None:
    """The config of the file last in the list."""
    pair = write_known_pair(tmp_path / "pair")
    (tmp_path / "pairs.csv").write_text(f"case,fixed,moving\np1,{pair['fixed']},{pair['moving']}\n")
    workflow = ConfigWorkflow(
        config_file=[str(ROOT / "configs" / name) for name in ("inference.yaml", over, "inference_exported.yaml")],
        workflow_type="inference",
        bundle_root=str(ROOT),
        output_dir=str(tmp_path / "out"),
        datalist=str(tmp_path / "pairs.csv"),
        exported=str(files[".onnx"]),
        optimization="off",
        progress=False,
        device="cpu",
    )
    workflow.initialize()
    workflow.run()
    assert (tmp_path / "out" / table).is_file()
    (report,) = (tmp_path / "out").rglob("report.json")
    assert json.loads(report.read_text())["weights"]["path"] == str(files[".onnx"])


@pytest.mark.parametrize("options", [{"optimization": "network"}, {"amp": True}])
def test_what_needs_the_weights_is_refused_before_images_are_read(
    files: dict[str, Path], tmp_path: Path, options: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[object] = []
    monkeypatch.setattr("scripts.transforms.load.LoadVolumesd.__call__", lambda self, data: read.append(data))
    with pytest.raises(RuntimeError) as caught:
        register(tmp_path / "run", "inference_exported.yaml", exported=str(files[".ts"]), **options)
    assert "not an exported file" in str(find_input_error(caught.value))
    assert not read


def test_the_file_of_the_bundle_is_meant_wherever_a_command_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputFileError) as caught:
        load_exported(default="none.ts")
    assert f"'{ROOT / 'models' / 'none.ts'}' is not there" in str(caught.value)
    assert f"python {ROOT / 'scripts'} export {ROOT / 'models' / 'none.ts'}" in str(caught.value)


def test_a_program_is_refused_on_another_device(files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scripts.networks.exported_network.check_device", torch.device)
    with pytest.raises(InputError, match=r"export it there with: .* --model default --device meta$"):
        load_exported(files[".pt2"], "meta")


def test_the_command_that_makes_a_file_again_names_its_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(random_network([40, 40, 40]).state_dict(), tmp_path / "own.pt")
    out, own = tmp_path / "own.pt2", ["--ckpt_path", str(tmp_path / "own.pt"), "--network_shape", "40", "40", "40"]
    assert main(["export", str(out), *own]) == 0
    monkeypatch.setattr("scripts.networks.exported_network.check_device", torch.device)
    with pytest.raises(InputError) as caught:
        load_exported(out, "meta")
    assert str(caught.value).endswith(f" export {out} --ckpt_path own.pt --network_shape 40 40 40 --device meta")
    out.write_bytes(b"broken")  # of what weights it was can't be known
    with pytest.raises(InputFileError, match=r"make it again with: .*own\.pt2, with --model NAME or --ckpt_path FILE"):
        load_exported(out)


def test_onnx_on_a_gpu_is_refused_where_onnxruntime_has_none(
    files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would compute on the processor without a word."""
    monkeypatch.setattr("scripts.networks.exported_network.check_device", torch.device)
    with pytest.raises(InputError, match="does not compute on the GPU; use --device cpu"):
        load_exported(files[".onnx"], "cuda:1")


def test_packages_that_onnx_needs_are_named_before_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["export", str(tmp_path / "model.onnx")]) == 1
    assert "pip install onnx onnxscript onnxruntime" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [({"model": "none"}, "TensorRT needs a network"), ({"trt_precision": "int4"}, "expected one of fp32, tf32")],
)
def test_settings_that_tensorrt_can_t_serve_are_refused(
    tmp_path: Path, options: dict[str, object], message: str
) -> None:
    with pytest.raises(RuntimeError) as caught:
        register(tmp_path / "run", "inference_trt.yaml", **options)
    assert message in str(find_input_error(caught.value))


def test_engines_of_other_weights_precision_or_shape_have_other_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names: list[str] = []
    monkeypatch.setattr(
        "scripts.networks.tensorrt.trt_compile", lambda network, base, *args, **more: names.append(base)
    )
    for shape, sha256, precision in (([40] * 3, "a", "fp32"), ([41] * 3, "a", "fp32"), ([40] * 3, "b", "fp32")):
        compile_unets(random_network(shape), {"sha256": sha256}, precision, tmp_path / "trt")
    compile_unets(random_network([40] * 3), {"sha256": "a"}, "fp16", tmp_path / "trt")
    assert len(set(names)) == len(names) == 4
    monkeypatch.chdir(tmp_path)
    compile_unets(random_network([40] * 3), {"sha256": "a"})
    assert names[-1].startswith(str(ROOT / "models" / "trt-a-40x40x40-fp32-"))  # the bundle's, wherever it runs


def test_errors_say_what_to_do(tmp_path: Path, files: dict[str, Path], capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match=r"expected a file \.ts, \.pt2, \.onnx, got 'model\.pt'"):
        load_exported("model.pt")
    with pytest.raises(InputFileError, match=r"is not there; make it with: python .*scripts export .*none\.ts"):
        load_exported(tmp_path / "none.ts")
    for ending, path in files.items():
        broken = tmp_path / f"broken{ending}"
        broken.write_bytes(path.read_bytes()[:20000])
        with pytest.raises(InputFileError, match=f"can't be read as {FORMATS[ending]}"):
            load_exported(broken)
        assert not capfd.readouterr().err  # one line, and no traceback of PyTorch's beside it
    other = tmp_path / "other.ts"
    torch.jit.script(torch.nn.Conv3d(2, 3, 1)).save(other)
    with pytest.raises(InputFileError, match="can't be read as TorchScript"):
        load_exported(other)
    assert main(["export", str(tmp_path / "model.trt")]) == 1
    assert "export: expected a file .ts, .pt2, .onnx" in capfd.readouterr().err


def test_nothing_is_written_where_the_file_would_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = random_network([40, 40, 40])
    monkeypatch.setattr("scripts.networks.exports.TOLERANCE", -1.0)
    with pytest.raises(RuntimeError, match="it was not written"):
        export_network(network, tmp_path / "model.ts")
    assert not list(tmp_path.iterdir())
