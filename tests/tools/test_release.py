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
"""Making a release: the zoo's checks find what is wrong, the zip file runs elsewhere, the hub's form, the tag."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml

from tests.helpers.known_pair import write_known_pair
from tests.helpers.networks import random_network
from tools.release import zoo_check
from tools.release.bundle import write_zip
from tools.release.contents import NAME, ROOT, released_files, version_of
from tools.release.huggingface import root_card, write_folder
from tools.release.tag import tag
from tools.release.zoo_runs import (
    FindingError,
    check_metadata_schema,
    check_network,
    check_properties,
    check_torchscript,
    check_unit_tests,
    config_sets,
)

needs_git = pytest.mark.skipif(
    not (ROOT / ".git").exists(), reason="no git checkout: a release is made of what git knows"
)


@pytest.fixture(scope="module")
def zip_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_zip(tmp_path_factory.mktemp("release"))


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """The files that the cheap checks read."""
    root = tmp_path / "bundle"
    for name in ("configs", "docs", "models", "tools"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("*.ts", "*.onnx"))
    for name in ("metadata.json", "LICENSE", "CITATION.cff", "large_files.yml", "requirements.lock", "pyproject.toml"):
        shutil.copy(ROOT / name, root / name)
    return root


def replace(name: str, old: str, new: str) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        text = (root / name).read_text()
        assert old in text
        (root / name).write_text(text.replace(old, new))

    return change


def change_metadata(**values: object) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        text = json.dumps({**json.loads((root / "metadata.json").read_text()), **values})
        for name in ("metadata.json", "configs/metadata.json"):
            (root / name).write_text(text)

    return change


def remove(name: str) -> Callable[[Path], None]:
    return lambda root: (root / name).unlink()


def make_large(root: Path) -> None:
    with (root / "models" / "large.bin").open("wb") as file:
        file.truncate(26 * 2**20)


@pytest.mark.parametrize(
    ("check", "change", "message"),
    [
        (zoo_check.check_files, remove("models/model.pt"), "missing: models/model.pt"),
        (zoo_check.check_files, remove("LICENSE"), "missing: LICENSE"),
        (zoo_check.check_files, make_large, "more than 25 MB.*large.bin"),
        (zoo_check.check_large_files, replace("large_files.yml", "sha256", "crc"), "expected path, url, hash_val"),
        (zoo_check.check_large_files, replace("large_files.yml", "https:", "http:"), "no https download"),
        (
            zoo_check.check_large_files,
            replace("large_files.yml", "unigradicon.pt", "model.pt"),
            "in the bundle already",
        ),
        (zoo_check.check_version, change_metadata(version="99.0.0"), "99.0.0 must be the first line"),
        (zoo_check.check_version, change_metadata(version="1.0"), "no semantic version: 1.0"),
        (zoo_check.check_version, replace("metadata.json", "uniGradICON", "other"), "metadata.json differs"),
        (zoo_check.check_requirements, change_metadata(numpy_version=">=2"), "numpy: expected an exact version"),
        (zoo_check.check_requirements, change_metadata(monai_version="1.0.0"), "monai 1.0.0 was not tested"),
        (
            zoo_check.check_requirements,
            replace("pyproject.toml", "tqdm", "scikit-image"),
            "do not name: scikit-image",
        ),
        (zoo_check.check_card, replace("docs/README.md", "# Performance", "# Speed"), "no section Performance"),
        (zoo_check.check_card, remove("docs/overview.png"), "pictures that are not there: overview.png"),
        (zoo_check.check_card, remove("models/LICENSE"), "missing: models/LICENSE"),
        (
            zoo_check.check_license_headers,
            replace("tools/release/tag.py", "Apache License", "License"),
            "tools/release/tag.py",
        ),
    ],
)
def test_a_check_of_the_zoo_finds_what_is_wrong(
    bundle: Path, check: Callable[[Path], str], change: Callable[[Path], None], message: str
) -> None:
    assert check(bundle)
    change(bundle)
    with pytest.raises(FindingError, match=message):
        check(bundle)


def test_metadata_are_compared_with_a_schema(bundle: Path, tmp_path: Path) -> None:
    zoo = tmp_path / "zoo"
    (zoo / "models").mkdir(parents=True)
    bundle.rename(zoo / "models" / NAME)
    assert check_metadata_schema(zoo, zoo_check.SCHEMA) == "valid by meta_schema.json"
    change_metadata(network_data_format={"inputs": {}})(zoo / "models" / NAME)
    with pytest.raises(FindingError, match="outputs"):
        check_metadata_schema(zoo, zoo_check.SCHEMA)


def test_unit_tests_that_are_not_there_are_a_finding(tmp_path: Path) -> None:
    (tmp_path / "models" / NAME / "tools" / "release" / "unit_tests").mkdir(parents=True)
    with pytest.raises(FindingError, match="no unit tests"):
        check_unit_tests(tmp_path)


def lay_out_to_run(zoo: Path) -> Path:
    """Return the bundle in the zoo's folder, with what building its workflows needs."""
    root = zoo / "models" / NAME
    for name in ("configs", "models", "scripts"):
        skipped = shutil.ignore_patterns("*.ts", "*.onnx", "__pycache__")
        shutil.copytree(ROOT / name, root / name, ignore=skipped)
    return root


def test_a_network_that_gives_something_else_is_a_finding(tmp_path: Path) -> None:
    text = (ROOT / "configs" / "metadata.json").read_text().replace('"num_channels": 3', '"num_channels": 2')
    (lay_out_to_run(tmp_path) / "configs" / "metadata.json").write_text(text)
    with pytest.raises(FindingError, match=r"channel number|num_channels"):
        check_network(tmp_path)


def test_weights_that_the_network_is_not_made_for_are_a_finding(tmp_path: Path) -> None:
    """As those under models/model.pt were, to a command that names no model."""
    root = lay_out_to_run(tmp_path)
    torch.save(random_network(stage=2).state_dict(), root / "models" / "model.pt")
    replace("scripts/networks/architectures.py", "found if path is None else read_architecture(path)", "PUBLISHED")(
        root
    )
    with pytest.raises(FindingError, match="size mismatch"):
        check_torchscript(tmp_path)


def test_a_file_that_computes_something_else_is_a_finding(tmp_path: Path) -> None:
    root = lay_out_to_run(tmp_path)
    computed = "(apply_on_grid(fields, image) - identity_grid_like(image)) * extent(image)"
    replace(
        "scripts/networks/registration_network.py", computed, f"{computed} + (1.0 if torch.jit.is_scripting() else 0.0)"
    )(root)
    with pytest.raises(FindingError, match=r"differs by 1\.0"):
        check_torchscript(tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("\ndataset_dir:", "\nimages_dir:", "dataset_dir"),
        ('val_handlers: "@handlers"', 'val_handlers: "@cases"', r"missing \['handlers'\]"),
    ],
)
def test_a_property_that_is_missing_is_a_finding(tmp_path: Path, old: str, new: str, message: str) -> None:
    root = lay_out_to_run(tmp_path)
    for path in (root / "configs").rglob("*.yaml"):
        if path.name != "inference.yaml":
            path.unlink()
    replace("configs/inference.yaml", old, new)(root)
    with pytest.raises(FindingError, match=message):
        check_properties(tmp_path)


def test_every_config_is_built_or_named_as_left_out() -> None:
    built = {names[-1] for _, names, _ in config_sets(ROOT)}
    every = {str(path.relative_to(ROOT / "configs")) for path in (ROOT / "configs").rglob("*.yaml")}
    left_out = {"apply.yaml", "multi_gpu_cohort.yaml", "multi_gpu_evaluate.yaml", "multi_gpu_train.yaml"}
    assert built == every - left_out


@needs_git
def test_the_zip_file_holds_the_released_files_and_is_the_same_again(zip_file: Path, tmp_path: Path) -> None:
    assert zip_file.name == f"unigradicon_v{version_of()}.zip"
    with zipfile.ZipFile(zip_file) as archive:
        assert archive.namelist() == [f"{NAME}/{name}" for name in released_files()]
        assert archive.read(f"{NAME}/models/model.pt") == (ROOT / "models" / "model.pt").read_bytes()
        assert archive.testzip() is None
    assert write_zip(tmp_path).read_bytes() == zip_file.read_bytes()


@needs_git
def test_the_zip_file_runs_where_it_is_unpacked(zip_file: Path, tmp_path: Path) -> None:
    """From another folder, with nothing of this checkout on the path."""
    with zipfile.ZipFile(zip_file) as archive:
        archive.extractall(tmp_path)
    pair = write_known_pair(tmp_path / "pair")
    (tmp_path / "elsewhere").mkdir()
    command = [sys.executable, "-m", "monai.bundle", "run", "inference", "--config_file"]
    options = [word for key, value in pair.items() for word in (f"--{key}", str(value))]
    done = subprocess.run(
        [
            *command,
            str(tmp_path / NAME / "configs" / "inference.yaml"),
            *("--bundle_root", str(tmp_path / NAME), "--output_dir", str(tmp_path / "out")),
            *("--field::levels", "{'default': [[16, 5]]}", *options),
        ],
        cwd=tmp_path / "elsewhere",
        env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["weights"]["path"] == str(tmp_path / NAME / "models" / "model.pt")
    assert np.abs(nib.load(tmp_path / "out" / "displacement.nii.gz").get_fdata()).max() > 1
    code = "import scripts; print(scripts.__file__)"
    where = subprocess.run([sys.executable, "-c", code], cwd=tmp_path / NAME, capture_output=True, text=True).stdout
    assert where.startswith(str(tmp_path))


def front_matter(text: str) -> dict[str, object]:
    return yaml.safe_load(re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)[1])


@needs_git
def test_the_hub_s_folder_has_its_card_whose_links_lead_somewhere(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "hub")
    text = (folder / "README.md").read_text()
    facts = front_matter(text)
    assert (facts["license"], facts["library_name"]) == ("apache-2.0", "monai")
    links = re.findall(r"\]\((?!https?:)([^)#\s]+)", text)
    assert len(links) > 10
    assert not [link for link in links if not (folder / link).exists()]
    for name in ("LICENSE", "metadata.json", "models/model.pt", ".gitattributes"):
        assert (folder / name).is_file()
    with pytest.raises(SystemExit, match="is not empty"):
        write_folder(folder)


def test_links_of_the_card_are_turned_and_others_stay() -> None:
    text = "[a](inputs.md#x) ![b](../c.png) [d](https://e.org/f) [g](#h)"
    assert root_card(text) == "[a](docs/inputs.md#x) ![b](c.png) [d](https://e.org/f) [g](#h)"


def test_the_citation_names_version_and_license() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == version_of()
    assert citation["license"] == "Apache-2.0"
    assert citation["preferred-citation"]["authors"][0]["family-names"] == "Tian"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    root = tmp_path / "checkout"
    for name in ("configs/metadata.json", "pyproject.toml", "CITATION.cff"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, root / name)
    git(root, "init", "--quiet")
    git(root, "config", "user.name", "test")
    git(root, "config", "user.email", "test@example.org")
    commit(root)
    return root


def git(root: Path, *arguments: str) -> str:
    return subprocess.run(["git", "-C", str(root), *arguments], check=True, capture_output=True, text=True).stdout


def commit(root: Path) -> None:
    git(root, "add", "--all")
    git(root, "commit", "--quiet", "--message", "State")


def test_a_tag_carries_the_line_of_the_changelog(checkout: Path) -> None:
    version = version_of()
    assert tag(checkout) == f"v{version}"
    line = json.loads((ROOT / "configs" / "metadata.json").read_text())["changelog"][version]
    assert git(checkout, "tag", "--list", "--format=%(contents)", f"v{version}").strip() == f"{version}: {line}"
    with pytest.raises(SystemExit, match=f"v{version} is tagged already"):
        tag(checkout)


def test_a_tag_is_refused_with_what_to_do(checkout: Path) -> None:
    (checkout / "new.txt").write_text("")
    with pytest.raises(SystemExit, match=r"not committed \(new\.txt\)"):
        tag(checkout)
    (checkout / "new.txt").unlink()
    git(checkout, "tag", "v99.10.0")
    with pytest.raises(SystemExit, match=r"v99\.10\.0 is tagged already; raise the version"):
        tag(checkout)
    git(checkout, "tag", "--delete", "v99.10.0")
    replace("CITATION.cff", f"version: {version_of()}", "version: 0.0.1")(checkout)
    commit(checkout)
    with pytest.raises(SystemExit, match=r"CITATION\.cff has version 0\.0\.1"):
        tag(checkout)
