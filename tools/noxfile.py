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
"""Run the tests with other Pythons and other versions of the packages: ``make matrix``, docs/compatibility.md.

nox --noxfile tools/noxfile.py --session "tests-3.12(oldest)" -- tests/whole/test_bundle.py
nox --noxfile tools/noxfile.py --session resolve     # are there wheels; installs nothing
"""

from __future__ import annotations

from pathlib import Path

import nox

ROOT = Path(__file__).resolve().parents[1]
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
CHOICES = {  # options of uv
    "oldest": ("--resolution", "lowest-direct"),  # each package of pyproject.toml at its lower bound
    "tested": ("--constraints", "requirements.lock"),
    "newest": ("--resolution", "highest"),
}

nox.options.default_venv_backend = "uv"
nox.options.download_python = "never"  # a Python that is not here is skipped
nox.options.sessions = ["tests"]
nox.options.envdir = str(ROOT / "output" / "nox")


@nox.session(python=PYTHONS)
@nox.parametrize("versions", [nox.param(name, id=name) for name in CHOICES])
def tests(session: nox.Session, versions: str) -> None:
    """Install one choice of versions and run the tests that are given, or all."""
    session.chdir(ROOT)  # nox starts in the folder of this file
    session.install("--requirements", "pyproject.toml", *CHOICES[versions])
    session.install("--group", "checks")
    session.run(
        *("pytest", "-q", "-p", "no:cacheprovider", "-k", "not is_what_is_locked"),  # which other versions are not
        *(session.posargs or ["tests"]),
        env={"OMP_NUM_THREADS": "1"},
    )


@nox.session(python=False)
@nox.parametrize("python", PYTHONS)
@nox.parametrize("versions", [nox.param(name, id=name) for name in CHOICES])
def resolve(session: nox.Session, python: str, versions: str) -> None:
    """Check that one choice of versions exists as wheels for Linux; fire alone is published as source."""
    session.chdir(ROOT)
    session.run(
        *("uv", "pip", "compile", "pyproject.toml", "--quiet", "--no-header", "--no-annotate"),
        *("--python-version", python, "--python-platform", "x86_64-manylinux_2_28"),
        *("--only-binary", ":all:", "--no-binary", "fire"),
        *CHOICES[versions],
        external=True,
    )
