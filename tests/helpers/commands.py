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
"""Commands as users type them, each in a process of its own; MONAI is imported once for all of a list."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tests.helpers.known_pair import ROOT

_PROGRAM = """
import json, os, runpy, sys, traceback
import monai.bundle
for number, words in enumerate(json.loads(sys.argv[1])):
    process = os.fork()
    if process == 0:  # what follows is as in `python -m MODULE ...`
        for stream in (1, 2):
            os.dup2(os.open(f"{sys.argv[2]}/{number}.{stream}", os.O_CREAT | os.O_WRONLY), stream)
        sys.argv = words
        code = 0
        try:
            run = runpy.run_path if os.path.isdir(words[0]) else runpy.run_module
            run(words[0], run_name="__main__", **({} if run is runpy.run_path else {"alter_sys": True}))
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        except BaseException as error:
            sys.excepthook(type(error), error, error.__traceback__)
            code = 1
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    status = os.waitpid(process, 0)[1]
    open(f"{sys.argv[2]}/{number}.code", "w").write(str(os.waitstatus_to_exitcode(status)))
"""


class Ended(NamedTuple):
    """A command that has ended."""

    returncode: int
    stdout: str
    stderr: str


def run_modules(commands: Sequence[Sequence[str]], folder: Path, where: Path = ROOT) -> list[Ended]:
    """Run ``python -m MODULE WORDS`` for each command, or a folder's program, in a folder; return how they ended.

    Args:
        commands: each in a process that is forked after ``monai.bundle`` is imported, which takes most of the time. The
            module comes first, or the path of a folder with a ``__main__.py``.
        folder: for what they print.
        where: working folder.
    """
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _PROGRAM, json.dumps([list(words) for words in commands]), str(folder)],
        cwd=where,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=True,
    )
    texts = [[(folder / f"{number}.{kind}").read_text() for kind in ("code", 1, 2)] for number in range(len(commands))]
    return [Ended(int(code), out, err) for code, out, err in texts]
