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
"""The compatibility matrix (docs/compatibility.md): ``make matrix``.

For each Python and each choice of versions, uv resolves requirements.txt from wheels alone. Where that Python is on
this machine, the versions are installed into an environment of their own, which is deleted afterwards, and the short
tests run there. Exit status 1 if anything failed; the logs are in ``output/matrix``.

    python -m tools.campaigns.matrix                               # everything
    python -m tools.campaigns.matrix --only 3.11-oldest 3.13-newest
    python -m tools.campaigns.matrix --resolve                     # installs nothing
"""

from __future__ import annotations

import argparse
import glob
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
REQUIREMENTS = ROOT / "requirements.txt"
LOGS = ROOT / "output" / "matrix"
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
CHOICES = {  # options of uv
    "oldest": ("--resolution", "lowest-direct"),  # each line of requirements.txt at its lower bound
    "tested": ("--constraints", str(ROOT / "constraints.txt")),
    "newest": ("--resolution", "highest"),
}
SOURCES = ("fire",)  # what is not published as a wheel; pure Python
PLATFORM = f"{platform.machine()}-manylinux_2_28"
SHOWN = ("torch", "monai", "numpy", "itk")
TEST_TOOLS = ("pytest", "hypothesis", "jsonschema", "onnx", "onnxruntime", "onnxscript")
TESTS = (  # each package of requirements.txt is used by one of them
    *("tests/test_coordinates.py", "tests/test_losses.py", "tests/test_preprocessing.py"),
    *("tests/test_transform_io.py", "tests/test_network.py", "tests/whole/test_bundle.py", "tests/test_exports.py"),
    *(
        "tests/data/test_dicom.py",
        "tests/data/test_dicom_places.py",
        "tests/data/test_dicom_values.py",
        "tests/test_nifti.py",
        "tests/test_checkpoints.py",
        "tests/test_overview.py",
    ),
    "tests/test_api.py::test_the_command_runs_from_another_folder",
    "tests/test_cohort.py::test_one_image_to_a_folder_and_frames_of_a_series",
    "tests/training/test_training_run.py::test_a_run_learns_and_leaves_weights_and_logs",
)
LIMIT_S = 3600  # of one installation or one run of the tests


class Row(NamedTuple):
    """One line of the table."""

    python: str
    choice: str
    versions: dict[str, str]
    result: str
    failed: bool


def main(arguments: Sequence[str] | None = None) -> int:
    """Go through the matrix, print the table and return the exit status."""
    parser = argparse.ArgumentParser(description="Install and test the versions that requirements.txt allows.")
    cells = [f"{python}-{choice}" for python in PYTHONS for choice in CHOICES]
    parser.add_argument("--only", nargs="+", choices=cells, default=cells, help="these lines of the table alone")
    parser.add_argument("--resolve", action="store_true", help="resolve only, install nothing")
    options = parser.parse_args(arguments)
    LOGS.mkdir(parents=True, exist_ok=True)
    rows = []
    for cell in options.only:
        python, choice = cell.split("-")
        rows.append(check(python, choice, None if options.resolve else find_python(python)))
        print(f"{cell}: {rows[-1].result}", flush=True)
    print(f"\n{table(rows)}")
    return int(any(row.failed for row in rows))


def check(python: str, choice: str, interpreter: str | None) -> Row:
    """Resolve one combination and, with an interpreter, install and test it."""
    log = LOGS / f"{python}-{choice}.log"
    log.write_text("", encoding="utf-8")
    with tempfile.TemporaryDirectory(prefix="matrix-") as folder:
        pins = Path(folder) / "pins.txt"
        if _run(resolving(python, choice, pins), log):
            return Row(python, choice, {}, f"no wheels: {last_line(log)}", True)
        versions = dict(line.split("==") for line in pins.read_text(encoding="utf-8").splitlines() if "==" in line)
        if interpreter is None:
            return Row(python, choice, versions, "wheels exist, not run here", False)
        own = str(Path(folder) / "env" / "bin" / "python")
        install = [own, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-cache-dir"]
        installing = [*install, "-r", str(REQUIREMENTS), *TEST_TOOLS, "--constraint", str(pins)]
        if _run([interpreter, "-m", "venv", str(Path(folder) / "env")], log) or _run(installing, log):
            return Row(python, choice, versions, f"not installed: {last_line(log)}", True)
        listing = subprocess.run([own, "-m", "pip", "freeze"], capture_output=True, text=True, check=True).stdout
        versions |= dict(line.split("==") for line in listing.splitlines() if "==" in line)
        started = time.monotonic()
        failed = _run([own, "-m", "pytest", "-q", "-p", "no:cacheprovider", *TESTS], log) != 0
        took = f"{time.monotonic() - started:.0f} s"
        return Row(python, choice, versions, f"{'FAILED' if failed else 'ran'}: {last_line(log)} ({took})", failed)


def resolving(python: str, choice: str, out: Path) -> list[str]:
    """Return uv's command that writes the versions of one combination, from wheels alone."""
    return [
        *(sys.executable, "-m", "uv", "pip", "compile", "--quiet", str(REQUIREMENTS), "--output-file", str(out)),
        *("--no-config", "--no-header", "--no-annotate", "--python-version", python, "--python-platform", PLATFORM),
        *("--only-binary", ":all:", *(word for name in SOURCES for word in ("--no-binary", name))),
        *(word for path in site_constraints() for word in ("--constraints", path)),
        *CHOICES[choice],
    ]


def site_constraints() -> list[str]:
    """Return the constraint files of pip's settings, which uv does not read."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    settings = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [path for value in re.findall(r"(?m)\.constraint='(.*)'$", settings) for path in value.split()]


def find_python(version: str) -> str | None:
    """Return an interpreter of a version, from PATH or pyenv, or None."""
    name = f"python{version}"
    in_path = [str(Path(folder) / name) for folder in os.get_exec_path()]
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions" / f"{version}.*" / "bin" / name
    for path in [*in_path, *sorted(glob.glob(str(pyenv)))]:
        if shutil.which(path) and subprocess.run([path, "-c", ""], capture_output=True).returncode == 0:
            return path
    return None


def last_line(log: Path) -> str:
    """Return the last line of a log that says something, short."""
    lines = [line.strip(" =\n") for line in log.read_text(encoding="utf-8").splitlines() if line.strip(" =\n")]
    return re.sub(r"(, \d+ warnings?)? in [\d.]+s.*", "", lines[-1])[:200] if lines else "no output"


def table(rows: Sequence[Row]) -> str:
    """Return the rows as Markdown."""

    def lines() -> Iterator[str]:
        yield "| Python | versions | " + " | ".join(SHOWN) + " | result |"
        yield "| --- " * (len(SHOWN) + 3) + "|"
        for row in rows:
            shown = (row.versions.get(name, "-") for name in SHOWN)
            yield f"| {row.python} | {row.choice} | {' | '.join(shown)} | {row.result} |"

    return "\n".join(lines())


def _run(command: Sequence[str], log: Path) -> int:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONPATH", None)
    with log.open("a", encoding="utf-8") as file:
        try:
            done = subprocess.run(command, cwd=ROOT, env=environment, stdout=file, stderr=file, timeout=LIMIT_S)
        except subprocess.TimeoutExpired:
            file.write(f"\nstopped after {LIMIT_S} s\n")
            return 124
        return done.returncode


if __name__ == "__main__":
    sys.exit(main())
