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
"""Write docs/licenses.md, the licenses of all that make demo installs: ``make licenses``."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from email.message import Message
from importlib import metadata
from pathlib import Path
from typing import NamedTuple, cast

from tools.supply_chain.locks import DEMO_LOCK, ROOT, Pin, normalized, public_version, read_pins, write_pins

TABLE = ROOT / "docs" / "licenses.md"
_COPYLEFT = re.compile(r"\b(A?GPL|LGPL|MPL|EUPL|EPL|CDDL)\b|GNU|Mozilla", re.IGNORECASE)
_URL_NAMES = ("homepage", "home", "repository", "source", "source code", "documentation")
HEADER = "| package | version | license | home |"
TEXT = """# Licenses
What `make demo` installs, by [requirements.lock](../requirements.lock), with the licenses that the packages declare; made
by `make licenses`. The bundle itself is under Apache 2.0 ([LICENSE](../LICENSE)).

{copyleft}

Wheels also hold libraries of others. Among them are runtime libraries of GCC: libgfortran in numpy and scipy and libgomp in
torch for CPUs (GPL with the GCC Runtime Library Exception, which lets programs of any license use them), and libquadmath in
numpy and scipy (LGPL).

The packages of [requirements-cuda.lock](../requirements-cuda.lock), which only builds of torch with CUDA install, are mostly
NVIDIA's, under its proprietary license: read that before you pass such an environment on.

"""


class Package(NamedTuple):
    """A row of the table."""

    name: str
    version: str
    licence: str
    url: str


def declared_licence(facts: Message) -> str:
    """Return what a package says its license is: an SPDX expression, a short text, or its classifiers."""
    short = (facts.get("License") or "").strip()
    classifiers = [text for text in facts.get_all("Classifier") or [] if text.startswith("License ::")]
    named = " and ".join(text.rpartition(" :: ")[2] for text in classifiers)
    return facts.get("License-Expression") or (short if len(short) < 60 and "\n" not in short else "") or named or "-"


def home_page(facts: Message) -> str:
    """Return a package's address."""
    links = [text.partition(",") for text in facts.get_all("Project-URL") or []]
    urls = {label.strip().lower(): url.strip() for label, _, url in links}
    found = next((urls[name] for name in _URL_NAMES if name in urls), "")
    return found or facts.get("Home-page") or f"https://pypi.org/project/{facts['Name']}/"


def describe(pins: dict[str, Pin], folders: list[str]) -> dict[str, Package]:
    """Return the packages of a lock that lie in folders of installed packages, by normalized name.

    Raises:
        SystemExit: one has another version than the lock.
    """
    found = {}
    for distribution in metadata.distributions(path=folders):
        name = normalized(distribution.metadata["Name"])
        if name in pins and name not in found:
            if public_version(distribution.version) != pins[name].version:
                raise SystemExit(
                    f"error: {name} is {distribution.version}, {DEMO_LOCK.name} has {pins[name].version};"
                    " remove .venv and run make demo"
                )
            facts = cast(Message, distribution.metadata)
            found[name] = Package(name, pins[name].version, declared_licence(facts), home_page(facts))
    return found


def describe_elsewhere(pins: list[Pin]) -> dict[str, Package]:
    """Return packages that this system does not need, from a folder into which they are installed for that."""
    with tempfile.TemporaryDirectory() as folder:
        lock = Path(folder) / "requirements.lock"
        write_pins(lock, [pin._replace(marker="") for pin in pins], "for other systems")
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--require-hashes", "--no-deps"]
        subprocess.run([*command, "--target", f"{folder}/packages", "-r", str(lock)], check=True)
        return describe({pin.name: pin for pin in pins}, [f"{folder}/packages"])


def read_table() -> dict[str, Package]:
    """Return the rows of docs/licenses.md by package."""
    lines = TABLE.read_text(encoding="utf-8").splitlines()
    rows = [line.strip("| ").split(" | ") for line in lines[lines.index(HEADER) + 2 :] if line.startswith("|")]
    return {row[0]: Package(*row) for row in rows}


def main() -> None:
    """Write the table."""
    pins = read_pins(DEMO_LOCK)
    packages = describe(pins, sys.path)
    missing = [pin for name, pin in pins.items() if name not in packages]
    packages |= describe_elsewhere(missing) if missing else {}
    copyleft = [f"{each.name} ({each.licence})" for each in sorted(packages.values()) if _COPYLEFT.search(each.licence)]
    sentence = "None of them is under a copyleft license (GPL, LGPL, MPL)."
    if copyleft:
        sentence = f"Copyleft: {', '.join(copyleft)}. The MPL asks for the source of changed files of the package only."
    rows = [f"| {' | '.join(package)} |" for package in sorted(packages.values())]
    table = "\n".join([HEADER, "| --- | --- | --- | --- |", *rows])
    TABLE.write_text(TEXT.format(copyleft=sentence) + table + "\n", encoding="utf-8")
    print(f"{TABLE}: {len(rows)} packages. {sentence}")


if __name__ == "__main__":
    main()
