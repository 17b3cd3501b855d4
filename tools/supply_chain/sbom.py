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
"""Write docs/sbom.cdx.json, a bill of materials in CycloneDX of all that make demo installs: ``make sbom``.

cyclonedx-bom describes an environment; kept are the packages of requirements.lock, whatever else lies there, and added
are those of it that only other systems need. No time, serial number or path is in it: made twice, it is the same.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tools.supply_chain.licenses import read_table
from tools.supply_chain.locks import DEMO_LOCK, ROOT, Pin, normalized, public_version, read_pins

SBOM = ROOT / "docs" / "sbom.cdx.json"
KEPT = ("type", "name", "version", "description", "licenses", "purl")


def describe_environment(python: str) -> dict[str, Any]:
    """Return what cyclonedx-bom says of the environment of an interpreter."""
    command = [sys.executable, "-m", "cyclonedx_py", "environment", "--output-reproducible", "--of", "JSON"]
    project = ["--pyproject", str(ROOT / "pyproject.toml")]
    return dict(json.loads(subprocess.run([*command, *project, python], check=True, capture_output=True).stdout))


def keep_locked(found: dict[str, Any], pins: dict[str, Pin]) -> dict[str, Any]:
    """Return a bill of the packages of a lock alone, each with the lock's version and a reference that is its purl.

    Raises:
        SystemExit: a package has another version than the lock.
    """
    components = {normalized(each["name"]): each for each in found["components"] if normalized(each["name"]) in pins}
    for name, component in components.items():
        if public_version(component["version"]) != pins[name].version:
            raise SystemExit(
                f"error: {name} is {component['version']}, {DEMO_LOCK.name} has {pins[name].version};"
                " remove .venv and run make demo"
            )
    licences = read_table()
    for name in set(pins) - set(components):
        components[name] = {"type": "library", "name": name, "bom-ref": name}
    root = found["metadata"]["component"]
    refs = {each["bom-ref"]: purl(pins[name]) for name, each in components.items()} | {root["bom-ref"]: root["bom-ref"]}
    kept = []
    for name, component in sorted(components.items()):
        licence = {"license": {"name": licences[name].licence, "acknowledgement": "declared"}}
        facts = {"licenses": [licence], **component}
        facts |= {"name": name, "version": pins[name].version, "purl": purl(pins[name])}
        kept.append({"bom-ref": purl(pins[name]), **{key: facts[key] for key in KEPT if key in facts}})
    graph = {refs[each["ref"]]: each.get("dependsOn", []) for each in found["dependencies"] if each["ref"] in refs}
    dependencies = [
        {"ref": ref, "dependsOn": sorted(refs[other] for other in graph.get(ref, []) if other in refs)}
        for ref in sorted(refs.values())
    ]
    return {**found, "components": kept, "dependencies": dependencies}


def purl(pin: Pin) -> str:
    """Return a package's URL, as in the purl specification."""
    return f"pkg:pypi/{pin.name}@{pin.version}"


def main() -> None:
    """Write the bill."""
    if len(sys.argv) != 2:
        raise SystemExit("usage: python -m tools.supply_chain.sbom PYTHON, the interpreter of the environment")
    bill = keep_locked(describe_environment(str(Path(sys.argv[1]))), read_pins(DEMO_LOCK))
    SBOM.write_text(json.dumps(bill, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    print(f"{SBOM}: {len(bill['components'])} packages")


if __name__ == "__main__":
    main()
