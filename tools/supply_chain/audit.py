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
"""Ask for known vulnerabilities of the locked packages and write docs/audit.md: ``make audit``.

pip-audit asks each service in turn; what could not be asked is written down as it happened, and is no clean result.
The exit status is 0 only if a service answered for every package and knows of no vulnerability.
"""

from __future__ import annotations

import datetime
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from tools.supply_chain.locks import CUDA_LOCK, DEMO_LOCK, ROOT, Pin, read_pins, write_pins

REPORT = ROOT / "docs" / "audit.md"
SERVICES = {"osv": "OSV (api.osv.dev)", "pypi": "PyPI's advisories (pypi.org)"}


class Answer(NamedTuple):
    """What one service said."""

    audited: int  # packages that it answered for
    skipped: tuple[str, ...]  # why it did not for the others
    found: tuple[tuple[str, str, str, str], ...]  # package, version, identifiers, fixed in
    failure: str  # why there is no answer at all; empty if there is one


def ask(service: str, lock: Path) -> Answer:
    """Run pip-audit on a file of pins."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pip_audit", "--requirement", str(lock), "--require-hashes", "--disable-pip"),
            *("--format", "json", "--progress-spinner", "off", "--vulnerability-service", service),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    return read_answer(done.stdout, done.stderr)


def read_answer(output: str, errors: str) -> Answer:
    """Return what pip-audit wrote: its JSON, or the last line of its errors where there is none."""
    try:
        packages = json.loads(output)["dependencies"]
    except (ValueError, LookupError):
        lines = errors.strip().splitlines() or ["pip-audit ended without a word"]
        return Answer(0, (), (), lines[-1])
    skipped = tuple(each["skip_reason"] for each in packages if "skip_reason" in each)
    found = tuple(
        (
            each["name"],
            each["version"],
            ", ".join([vuln["id"], *vuln.get("aliases", [])]),
            ", ".join(vuln["fix_versions"]) or "-",
        )
        for each in packages
        for vuln in each.get("vulns", [])
    )
    return Answer(len(packages) - len(skipped), skipped, found, "")


def conclude(answers: Mapping[str, Answer], count: int) -> str:
    """Return the result in one sentence.

    Args:
        answers: by service.
        count: of the packages asked about.
    """
    found = {row[0] for answer in answers.values() for row in answer.found}
    if found:
        return f"Vulnerabilities are known of {len(found)} packages: {', '.join(sorted(found))}."
    audited = max(answer.audited for answer in answers.values())
    if audited == count:
        return f"No vulnerability is known of any of the {count} packages."
    if audited:
        return f"No vulnerability is known of {audited} of the {count} packages; the others were not audited."
    return "No service answered: whether vulnerabilities are known is not known. Run `make audit` where one is reached."


def write_report(answers: Mapping[str, Answer], pins: Mapping[str, Pin], date: str) -> str:
    """Return the text of docs/audit.md."""
    lines = [
        "# Audit",
        "Known vulnerabilities of the packages of [requirements.lock](../requirements.lock) and",
        "[requirements-cuda.lock](../requirements-cuda.lock); made by `make audit`.",
        "",
        f"Last run: {date}, {len(pins)} packages. {conclude(answers, len(pins))}",
        "",
        "| service | packages answered for | vulnerabilities | what happened |",
        "| --- | --- | --- | --- |",
    ]
    for service, answer in answers.items():
        happened = f"failed: `{answer.failure}`" if answer.failure else "answered"
        if answer.skipped:
            happened = f"no answer for {len(answer.skipped)} packages, such as: `{answer.skipped[0]}`"
        count = str(len(answer.found)) if answer.audited else "unknown"
        lines.append(f"| {SERVICES[service]} | {answer.audited} of {len(pins)} | {count} | {happened} |")
    rows = sorted({row for answer in answers.values() for row in answer.found})
    if rows:
        lines += ["", "| package | version | vulnerability | fixed in |", "| --- | --- | --- | --- |"]
        lines += [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Audit, write the report, return the exit status."""
    pins = read_pins(CUDA_LOCK) | read_pins(DEMO_LOCK)
    with tempfile.TemporaryDirectory() as folder:
        lock = Path(folder) / "requirements.txt"
        write_pins(lock, [pin._replace(marker="") for pin in pins.values()], "all systems' packages")
        answers = {service: ask(service, lock) for service in SERVICES}
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    REPORT.write_text(write_report(answers, pins, date), encoding="utf-8")
    print(f"{REPORT}: {conclude(answers, len(pins))}")
    clean = any(answer.audited == len(pins) for answer in answers.values())
    return 0 if clean and not any(answer.found for answer in answers.values()) else 1


if __name__ == "__main__":
    raise SystemExit(main())
