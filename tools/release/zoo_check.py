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
"""Repeat, offline, what the model zoo's CI checks of a bundle (ci/verify_bundle.py, ci/unit_tests), and a little more.

    python -m tools.release.zoo_check [ZIP_OR_FOLDER] [--schema meta_schema.json]

The bundle is laid into a folder as the zoo keeps it, models/unigradicon; :mod:`tools.release.zoo_runs` runs it there.
Without ``--schema`` the metadata are compared with tools/release/meta_schema.json, which is written after MONAI's
specification of bundles.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
import shutil
import tempfile
import tomllib
import zipfile
from collections.abc import Callable
from pathlib import Path

import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tools.release.contents import NAME, ROOT, released_files
from tools.release.zoo_runs import (
    FindingError,
    check_exported_files,
    check_metadata_schema,
    check_network,
    check_properties,
    check_torchscript,
    check_unit_tests,
)

REQUIRED = ("configs/metadata.json", "configs/inference.yaml", "LICENSE", "models/model.pt", "docs/README.md")
CARD_HEADINGS = (
    *("Model overview", "Data", "System configuration", "Performance", "Limitations", "MONAI Bundle commands"),
    *("License", "Citation", "References"),
)
SCHEMA = Path(__file__).parent / "meta_schema.json"
_LARGEST = 25 * 2**20  # bytes, of a file in the zoo's repository
_HASHES = ("md5", "sha1", "sha256", "sha512")


def check_files(bundle: Path) -> str:
    """Check that the files are there that the zoo wants, and none that it does not take."""
    missing = [name for name in REQUIRED if not (bundle / name).is_file()]
    if missing:
        raise FindingError(f"missing: {', '.join(missing)}")
    files = [path for path in bundle.rglob("*") if path.is_file()]
    large = [str(path.relative_to(bundle)) for path in files if path.stat().st_size > _LARGEST]
    if large:
        raise FindingError(f"more than 25 MB, they belong into large_files.yml: {', '.join(large)}")
    return f"{len(files)} files, {sum(path.stat().st_size for path in files) / 2**20:.1f} MB"


def check_large_files(bundle: Path) -> str:
    """Check the form of large_files.yml; the zoo downloads what it names."""
    entries = yaml.safe_load((bundle / "large_files.yml").read_text(encoding="utf-8"))["large_files"]
    for entry in entries:
        if set(entry) != {"path", "url", "hash_val", "hash_type"} or entry["hash_type"] not in _HASHES:
            raise FindingError(f"large_files.yml: expected path, url, hash_val and hash_type, got {entry}")
        if not entry["url"].startswith("https://") or (bundle / entry["path"]).exists():
            raise FindingError(f"large_files.yml: {entry['path']} is no https download, or is in the bundle already")
    return f"{len(entries)} downloads"


def check_version(bundle: Path) -> str:
    """Check version and changelog: semantic, the newest first, each with a line; both copies of the metadata alike."""
    text = (bundle / "configs" / "metadata.json").read_text(encoding="utf-8")
    metadata = json.loads(text)
    version, changelog = metadata["version"], metadata["changelog"]
    wrong = [each for each in (version, *changelog) if not re.fullmatch(r"\d+\.\d+\.\d+", each)]
    if wrong:
        raise FindingError(f"no semantic version: {', '.join(wrong)}")
    order = sorted(changelog, key=lambda each: [int(part) for part in each.split(".")], reverse=True)
    if version != order[0] or list(changelog) != order:
        raise FindingError(f"version {version} must be the first line of the changelog, which starts with the newest")
    if not all(str(line).strip() for line in changelog.values()):
        raise FindingError("a line of the changelog is empty")
    if (bundle / "metadata.json").read_text(encoding="utf-8") != text:
        raise FindingError("metadata.json differs from configs/metadata.json")
    return f"version {version}, {len(changelog)} in the changelog"


def check_requirements(bundle: Path) -> str:
    """Check that the zoo's CI can install what the metadata name: exact versions, which are the tested ones."""
    metadata = json.loads((bundle / "configs" / "metadata.json").read_text(encoding="utf-8"))
    named = {
        "monai": metadata["monai_version"],
        "torch": metadata["pytorch_version"],
        "numpy": metadata["numpy_version"],
        **metadata["required_packages_version"],
        **metadata.get("optional_packages_version", {}),
    }
    lock = (bundle / "requirements.lock").read_text(encoding="utf-8")
    tested = dict(re.findall(r"(?m)^([\w-]+)==(\S+)", lock))
    for name, version in named.items():
        found = tested.get(canonicalize_name(name))
        if not re.fullmatch(r"\d+(\.\d+)+", version):
            raise FindingError(f"{name}: expected an exact version, got '{version}'")
        if found != version:
            raise FindingError(f"{name} {version} was not tested; requirements.lock has {found}")
    project = tomllib.loads((bundle / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    needed = {canonicalize_name(Requirement(line).name) for line in project["dependencies"]}
    unnamed = sorted(needed - {canonicalize_name(name) for name in named})
    if unnamed:
        raise FindingError(f"pyproject.toml needs what the metadata do not name: {', '.join(unnamed)}")
    return f"{len(named)} packages"


def check_card(bundle: Path) -> str:
    """Check the model card: its sections, its pictures, and that it says where licenses of weights and data are."""
    text = (bundle / "docs" / "README.md").read_text(encoding="utf-8")
    headings = {line.lstrip("# ").strip() for line in text.splitlines() if line.startswith("#")}
    missing = [heading for heading in CARD_HEADINGS if heading not in headings]
    if missing:
        raise FindingError(f"docs/README.md has no section {', '.join(missing)}")
    pictures = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", text)
    absent = [name for name in pictures if not (bundle / "docs" / name).is_file()]
    if absent or not pictures:
        raise FindingError(f"pictures that are not there: {', '.join(absent) or 'all'}")
    for name in ("docs/data_license.txt", "models/LICENSE", "CITATION.cff"):
        if not (bundle / name).is_file():
            raise FindingError(f"missing: {name}")
    return f"{len(pictures)} pictures"


def check_license_headers(bundle: Path) -> str:
    """Check that each source file names its license, as the zoo's flake8 does."""
    sources = sorted(bundle.rglob("*.py"))
    bare = [str(path.relative_to(bundle)) for path in sources if "Apache License" not in path.read_text("utf-8")[:600]]
    if bare:
        raise FindingError(f"no license header: {', '.join(bare)}")
    return f"{len(sources)} source files"


def lay_out(source: Path, zoo: Path) -> Path:
    """Lay a bundle, a zip file or a checkout, into the zoo's folder; return where it is."""
    bundle = zoo / "models" / NAME
    if source.is_file():
        with zipfile.ZipFile(source) as archive:  # extractall leaves out what would point elsewhere
            archive.extractall(zoo / "models")
        return bundle
    for name in released_files(source):
        (bundle / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source / name, bundle / name)
    return bundle


def check(source: Path, schema: Path = SCHEMA) -> list[str]:
    """Run all checks, print a line for each, and return the names of those that failed."""
    with tempfile.TemporaryDirectory() as folder:
        zoo = Path(folder)
        bundle = lay_out(source.resolve(), zoo)
        checks: list[tuple[str, Callable[[], str]]] = [
            ("required files", lambda: check_files(bundle)),
            ("large files", lambda: check_large_files(bundle)),
            ("version and changelog", lambda: check_version(bundle)),
            ("requirements", lambda: check_requirements(bundle)),
            ("model card", lambda: check_card(bundle)),
            ("license headers", lambda: check_license_headers(bundle)),
            ("metadata schema", lambda: check_metadata_schema(zoo, schema.resolve())),
            ("network in and out", lambda: check_network(zoo)),
            ("TorchScript export", lambda: check_torchscript(zoo)),
            ("exported files", lambda: check_exported_files(zoo)),
            ("properties", lambda: check_properties(zoo)),
            ("unit tests", lambda: check_unit_tests(zoo)),
        ]
        failed = []
        for name, run in checks:
            try:
                print(f"ok      {name}: {run()}", flush=True)
            except Exception as error:  # a bundle can be broken in ways that no check expects
                print(
                    f"FAILED  {name}: {error!r}" if not isinstance(error, FindingError) else f"FAILED  {name}: {error}"
                )
                failed.append(name)
    return failed


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("source", type=Path, nargs="?", default=ROOT, help="zip file or checkout [this one]")
    parser.add_argument("--schema", type=Path, default=SCHEMA, help="MONAI's own, where it is at hand")
    given = parser.parse_args()
    if importlib.util.find_spec("onnxscript") is None:
        raise SystemExit("error: the check exports to ONNX; install it with: make dev")
    failed = check(given.source, given.schema)
    print(f"failed: {', '.join(failed)}" if failed else "all that the model zoo checks is in order")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
