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
"""Coverage-guided bytes for the readers of :mod:`tools.campaigns.fuzz_targets`, by atheris: a part of ``make fuzz``.

python -m tools.campaigns.fuzz_bytes --runs 20000               # each reader
python -m tools.campaigns.fuzz_bytes --runs 20000 landmarks     # one
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["scripts", "tools", "csv", "json"]):
    from tools.campaigns.fuzz_targets import TARGETS, try_bytes


LIMITS = ("-max_len=2048", "-timeout=20", "-rss_limit_mb=4096", "-seed=1")


def fuzz(name: str, runs: int) -> None:
    """Try one reader in this process, which ends at the first finding, or after the runs."""
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as corpus:
        for number, seed in enumerate(TARGETS[name].seeds):
            (Path(corpus) / str(number)).write_bytes(seed)
        atheris.Setup(
            [sys.argv[0], corpus, f"-runs={runs}", f"-artifact_prefix={corpus}/", *LIMITS],
            lambda content: try_bytes(name, content),
        )
        atheris.Fuzz()


def main() -> int:
    """Run the campaign of the command line, each reader in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=20000)
    parser.add_argument("--here", action="store_true", help="in this process")
    parser.add_argument("names", nargs="*", default=list(TARGETS))
    options = parser.parse_args()
    if options.here:
        fuzz(options.names[0], options.runs)
    status = 0
    for name in options.names:
        words = [sys.executable, "-m", "tools.campaigns.fuzz_bytes", "--here", "--runs", str(options.runs), name]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        ended = [line for line in done.stderr.splitlines() if line.startswith("Done ")]
        print(f"{name:16} {'nothing found: ' + ended[0] if done.returncode == 0 and ended else 'FOUND'}", flush=True)
        if done.returncode != 0:
            print(done.stdout[-2000:] + done.stderr[-3000:])
            status = 1
    return status


if __name__ == "__main__":
    raise SystemExit(main())
