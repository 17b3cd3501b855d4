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
"""The locks, the licences, the bill of materials and the audit fit each other and what is installed."""

from __future__ import annotations

import json
import re
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tools.supply_chain.audit import Answer, conclude, read_answer, write_report
from tools.supply_chain.cuda_build import needs_cuda
from tools.supply_chain.licenses import read_table
from tools.supply_chain.lock import OLDEST_PYTHON, listed_cpu_wheels, read_cpu_wheels
from tools.supply_chain.locks import (
    BUILD_LOCK,
    CPU_LOCK,
    CUDA_LOCK,
    DEMO_LOCK,
    installed_version,
    normalized,
    read_pins,
    write_pins,
)
from tools.supply_chain.sbom import SBOM, keep_locked

LOCKS = (DEMO_LOCK, BUILD_LOCK, CPU_LOCK, CUDA_LOCK, DEMO_LOCK.parent / "tools" / "supply_chain" / "tools.lock")
LOCAL = re.compile(r"file:|(?<![\w/.:-])/(home|root|opt|tmp|usr|var)/", re.IGNORECASE)


@pytest.fixture(scope="module")
def versions() -> dict[str, str]:
    return {name: pin.version for name, pin in read_pins(DEMO_LOCK).items()}


def test_the_lock_has_the_versions_of_the_constraints(bundle_root: Path, versions: dict[str, str]) -> None:
    tested = {name: pin.version for name, pin in read_pins(bundle_root / "constraints.txt").items()}
    assert versions == {name: tested.get(name) for name in versions}
    assert {name: pin.version for name, pin in read_pins(BUILD_LOCK).items()} == {"setuptools": versions["setuptools"]}
    assert read_pins(CPU_LOCK)["torch"].version == f"{versions['torch']}+cpu"


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.name)
def test_every_entry_has_hashes_and_nothing_local(lock: Path) -> None:
    pins = read_pins(lock)
    assert pins
    assert [name for name, pin in pins.items() if not pin.hashes] == []
    assert not LOCAL.search(lock.read_text())
    assert "://" not in lock.read_text()


def test_a_lock_is_written_as_it_was_read(tmp_path: Path) -> None:
    comment = "\n".join(line.removeprefix("# ") for line in DEMO_LOCK.read_text().splitlines() if line.startswith("#"))
    write_pins(tmp_path / "again.lock", read_pins(DEMO_LOCK).values(), comment)
    assert (tmp_path / "again.lock").read_bytes() == DEMO_LOCK.read_bytes()


@pytest.mark.parametrize("line", ["torch>=2", "torch==2.0 --hash=md5:12", "torch==2.0 --hash=sha256:12"])
def test_a_line_that_pins_nothing_is_refused(line: str, tmp_path: Path) -> None:
    (tmp_path / "bad.lock").write_text(line)
    with pytest.raises(ValueError, match="expected name==version and --hash=sha256"):
        read_pins(tmp_path / "bad.lock")


def test_the_lock_is_all_that_the_requirements_need_here(bundle_root: Path, versions: dict[str, str]) -> None:
    """Follows what the installed packages ask for, from requirements.txt on."""
    lines = (bundle_root / "requirements.txt").read_text().splitlines()
    open_ones = [Requirement(line) for line in lines if line and not line.startswith("#")]
    cuda, needed, seen = set(read_pins(CUDA_LOCK)), set(), set()
    while open_ones:
        requirement = open_ones.pop()
        name = canonicalize_name(requirement.name)
        if str(requirement) in seen or name in cuda:
            continue
        seen.add(str(requirement))
        needed.add(name)
        assert name in versions, f"{name} is not in {DEMO_LOCK.name}: run make lock"
        assert versions[name] in requirement.specifier, f"{requirement} is asked for, {versions[name]} is locked"
        extras = ["", *requirement.extras]
        wanted = [Requirement(text) for text in metadata.requires(name) or []]
        open_ones += [
            each for each in wanted if not each.marker or any(each.marker.evaluate({"extra": x}) for x in extras)
        ]
    here = {name for name, pin in read_pins(DEMO_LOCK).items() if not pin.marker or _holds(pin.marker)}
    assert needed == here


def _holds(marker: str) -> bool:
    parsed = Requirement(f"x ; {marker}").marker
    return parsed is not None and parsed.evaluate()


def test_the_project_asks_for_what_requirements_txt_asks_for(bundle_root: Path) -> None:
    lines = (bundle_root / "requirements.txt").read_text().splitlines()
    project = tomllib.loads((bundle_root / "pyproject.toml").read_text())["project"]
    assert project["dependencies"] == [line for line in lines if line and not line.startswith("#")]
    assert project["requires-python"] == f">={OLDEST_PYTHON}"


def test_what_is_installed_is_what_is_locked(versions: dict[str, str]) -> None:
    installed = {name: version for name in versions if (version := installed_version(name)) is not None}
    assert {"torch", "monai", "numpy"} <= set(installed)
    assert installed == {name: versions[name] for name in installed}


def test_torch_without_cuda_is_listed_too() -> None:
    torch = read_pins(DEMO_LOCK)["torch"]
    wheels = read_cpu_wheels(torch.version)
    assert wheels
    assert set(wheels.values()) < set(torch.hashes)
    assert set(wheels.values()) == set(read_pins(CPU_LOCK)["torch"].hashes)


def test_the_page_of_torch_without_cuda_is_read() -> None:
    digest = "a" * 64
    page = "".join(
        f'<a href="/whl/{folder}/torch-{version}%2B{kind}-cp312-cp312-win_amd64.whl#sha256={digest}">torch</a><br/>\n'
        for folder, version, kind in (("cpu", "2.13.0", "cpu"), ("cpu", "2.12.0", "cpu"), ("cu130", "2.13.0", "cu130"))
    )
    assert listed_cpu_wheels(page, "2.13.0") == {"torch-2.13.0+cpu-cp312-cp312-win_amd64.whl": digest}


@pytest.mark.parametrize(
    ("requirements", "needed"),
    [
        (["filelock", "nvidia-cudnn-cu13==9.20.0.48"], True),
        (["filelock", 'triton==3.7.1; python_version > "3"'], True),
        (["filelock", 'triton==3.7.1; python_version < "3"'], False),
        (["cuda_toolkit[cublas]==13.0.3"], True),
        (['triton; extra == "fast"', "sympy>=1.13.3"], False),
        ([], False),
    ],
)
def test_a_build_with_cuda_is_told_by_what_it_asks_for(requirements: list[str], needed: bool) -> None:
    assert needs_cuda(requirements, read_pins(CUDA_LOCK)) is needed


def test_the_licences_are_those_of_the_locked_packages(versions: dict[str, str]) -> None:
    table = read_table()
    assert {name: row.version for name, row in table.items()} == versions, "run make licenses"
    assert all(row.licence not in ("", "-") and row.url.startswith("http") for row in table.values())


def test_the_bill_of_materials_is_that_of_the_locked_packages(versions: dict[str, str], bundle_root: Path) -> None:
    text = SBOM.read_text(encoding="utf-8")
    bill = json.loads(text)
    assert {each["name"]: each["version"] for each in bill["components"]} == versions, "run make sbom"
    assert all(each["purl"] == f"pkg:pypi/{each['name']}@{each['version']}" for each in bill["components"])
    assert all(each["licenses"] for each in bill["components"])
    assert not LOCAL.search(text)
    assert "timestamp" not in text
    assert "serialNumber" not in text
    project = (bundle_root / "pyproject.toml").read_text()
    assert f'version = "{bill["metadata"]["component"]["version"]}"' in project, "the version changed: run make sbom"
    refs = {each["bom-ref"] for each in bill["components"]} | {bill["metadata"]["component"]["bom-ref"]}
    assert {each["ref"] for each in bill["dependencies"]} == refs
    assert all(set(each["dependsOn"]) <= refs for each in bill["dependencies"])
    torch = next(each for each in bill["dependencies"] if each["ref"].startswith("pkg:pypi/torch@"))
    assert any(ref.startswith("pkg:pypi/sympy@") for ref in torch["dependsOn"])


def test_a_package_of_another_version_than_the_lock_stops_the_bill() -> None:
    found = {"components": [{"name": "NumPy", "version": "1.0", "bom-ref": "a"}], "dependencies": [], "metadata": {}}
    with pytest.raises(SystemExit, match=r"numpy is 1\.0, requirements\.lock has"):
        keep_locked(found, read_pins(DEMO_LOCK))


def test_names_are_compared_in_one_form() -> None:
    assert normalized("Ruamel.Yaml__clib") == normalized("ruamel-yaml-clib") == "ruamel-yaml-clib"


VULNERABLE = {
    "dependencies": [
        {"name": "a", "version": "1.0", "vulns": [{"id": "PYSEC-1", "aliases": ["CVE-1"], "fix_versions": ["1.1"]}]},
        {"name": "b", "version": "2.0", "vulns": []},
        {"name": "c", "skip_reason": "not found"},
    ]
}


def test_an_audit_says_what_was_found_and_what_was_not_asked() -> None:
    answer = read_answer(json.dumps(VULNERABLE), "")
    assert answer == Answer(2, ("not found",), (("a", "1.0", "PYSEC-1, CVE-1", "1.1"),), "")
    pins = {name: read_pins(DEMO_LOCK)["torch"] for name in "abc"}
    text = write_report({"osv": answer, "pypi": Answer(3, (), (), "")}, pins, "2030-01-02")
    assert "Last run: 2030-01-02, 3 packages. Vulnerabilities are known of 1 packages: a." in text
    assert "| a | 1.0 | PYSEC-1, CVE-1 | 1.1 |" in text
    assert "| 2 of 3 | 1 | no answer for 1 packages, such as: `not found` |" in text


def test_an_audit_that_failed_is_no_clean_one() -> None:
    failed = read_answer("", "Traceback\nConnectionError: no such host\n")
    assert failed.failure == "ConnectionError: no such host"
    assert "is not known" in conclude({"osv": failed}, 3)
    assert "1 of the 3 packages; the others were not audited" in conclude({"osv": Answer(1, ("x", "y"), (), "")}, 3)
    assert conclude({"osv": failed, "pypi": Answer(3, (), (), "")}, 3).startswith("No vulnerability is known of any")


def test_the_published_list_has_https_only(bundle_root: Path) -> None:
    entries = yaml.safe_load((bundle_root / "large_files.yml").read_text())["large_files"]
    assert all(entry["url"].startswith("https://") for entry in entries)
