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
"""Make requirements*.lock and tools.lock anew from requirements.txt and constraints.txt: ``make lock``.

uv resolves for all systems and Pythons at once and takes the hash of every file of a version from PyPI's index, without
downloading them. torch's builds without CUDA are not on PyPI; the hashes of those are in ``torch_cpu_wheels.txt``.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path
from urllib.parse import unquote

from tools.supply_chain.locks import BUILD_LOCK, CPU_LOCK, CUDA_LOCK, DEMO_LOCK, ROOT, Pin, read_pins, write_pins

INDEX = "https://pypi.org/simple"
CPU_INDEX = "https://download.pytorch.org/whl/cpu/torch/"
CPU_WHEELS = ROOT / "tools" / "supply_chain" / "torch_cpu_wheels.txt"  # as sha256sum writes it
OLDEST_PYTHON = "3.11"
BUILD = ("setuptools",)  # builds what comes as source only: fire
_CUDA = re.compile(r"nvidia-.*|cuda-.*|triton")
_WHEEL = re.compile(r'href="[^"]*/(torch-[^"/]+\.whl)#sha256=([0-9a-f]{64})"')


def resolve(requirements: Path, constraints: Path | None = None) -> dict[str, Pin]:
    """Return all that a requirements file needs on any system, with the hashes of all files, resolved by uv."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "lock.txt"
        command = [
            *(sys.executable, "-m", "uv", "pip", "compile", str(requirements), "--output-file", str(out), "--quiet"),
            *("--universal", "--python-version", OLDEST_PYTHON, "--generate-hashes", "--no-header", "--no-annotate"),
            *("--no-config", "--default-index", INDEX),
            *(("--constraints", str(constraints)) if constraints else ()),
        ]
        subprocess.run(command, check=True)
        return read_pins(out)


def listed_cpu_wheels(page: str, version: str) -> dict[str, str]:
    """Return the SHA-256 of each wheel of torch without CUDA, by file name, from the page of PyTorch's index."""
    found = {unquote(name): digest for name, digest in _WHEEL.findall(page)}
    return {name: digest for name, digest in found.items() if name.startswith(f"torch-{version}+cpu-")}


def read_cpu_wheels(version: str) -> dict[str, str]:
    """Return the wheels of :data:`CPU_WHEELS` of one version: SHA-256 by file name."""
    lines = CPU_WHEELS.read_text(encoding="utf-8").splitlines() if CPU_WHEELS.is_file() else []
    known = {name: digest for digest, name in (line.split() for line in lines if not line.startswith("#"))}
    return {name: digest for name, digest in known.items() if name.startswith(f"torch-{version}+cpu-")}


def update_cpu_wheels(version: str, files: list[Path]) -> dict[str, str]:
    """Add what PyTorch's index lists, where it is reached, and files at hand to the known wheels; return all."""
    wheels = read_cpu_wheels(version)
    try:
        with urllib.request.urlopen(CPU_INDEX, timeout=30) as answer:
            listed = listed_cpu_wheels(answer.read().decode("utf-8"), version)
    except OSError as error:
        print(f"{CPU_INDEX} was not reached ({error}); the {len(wheels)} known hashes of CPU builds are kept")
        listed = {}
    for path in files:
        with path.open("rb") as file:
            listed[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    changed = [name for name, digest in listed.items() if wheels.get(name, digest) != digest]
    if changed:
        raise SystemExit(f"error: {changed[0]} differs from what {CPU_WHEELS.name} lists; find out why first")
    wheels |= listed
    text = "".join(f"{digest}  {name}\n" for name, digest in sorted(wheels.items()))
    CPU_WHEELS.write_text(f"# torch without CUDA, from {CPU_INDEX}, written by make lock\n{text}", encoding="utf-8")
    return wheels


def main() -> None:
    """Write the locks."""
    parser = argparse.ArgumentParser(description="Make the locks anew from requirements.txt and constraints.txt.")
    parser.add_argument("--cpu_wheel", type=Path, action="append", default=[], help="a wheel of torch without CUDA")
    files = parser.parse_args().cpu_wheel

    pins = resolve(ROOT / "requirements.txt", ROOT / "constraints.txt")
    torch = pins["torch"]
    cpu_hashes = tuple(sorted(update_cpu_wheels(torch.version, files).values()))
    pins["torch"] = torch._replace(hashes=tuple(sorted({*torch.hashes, *cpu_hashes})))
    cuda = {name: pin for name, pin in pins.items() if _CUDA.fullmatch(name)}
    made = "Made by make lock from requirements.txt and constraints.txt, with the hashes of all files of a version.\n"
    note = "Installed with pip install --require-hashes --no-deps; docs/security.md says how."
    write_pins(DEMO_LOCK, [pin for name, pin in pins.items() if name not in cuda], made + note)
    write_pins(CPU_LOCK, [torch._replace(version=f"{torch.version}+cpu", hashes=cpu_hashes)], f"{made}No CUDA. {note}")
    write_pins(CUDA_LOCK, cuda.values(), f"{made}Only for builds of torch with CUDA. {note}")
    write_pins(BUILD_LOCK, [pins[name] for name in BUILD], f"{made}Builds what comes as source. {note}")
    tools = resolve(ROOT / "tools" / "supply_chain" / "tools.txt")
    write_pins(
        ROOT / "tools" / "supply_chain" / "tools.lock",
        tools.values(),
        "Made by make lock from tools/supply_chain/tools.txt.",
    )


if __name__ == "__main__":
    main()
