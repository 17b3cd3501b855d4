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
"""The zip file that is handed in to Learn2Reg: the fields of a run, checked.

python -m scripts submission RUN submission.zip
"""

from __future__ import annotations

import argparse
import sys
import zipfile
from fnmatch import fnmatchcase
from pathlib import Path

from scripts.data.learn2reg_fields import PATTERN
from scripts.data.report import REPORT_NAME
from scripts.transforms.outputs.files import reported_outputs
from scripts.utils.atomic import replacing
from scripts.utils.errors import InputError


def write_submission(run: Path, path: Path) -> int:
    """Put the fields that the reports of a run list into one zip file; return how many.

    Raises:
        InputError: there are none, one is missing, or two have one name.
    """
    folders = sorted(path.parent for path in Path(run).rglob(REPORT_NAME))
    fields = [folder / name for folder in folders for name in reported_outputs(folder) if fnmatchcase(name, PATTERN)]
    if not fields:
        raise InputError(f"'{run}' holds no {PATTERN}; register with --save::learn2reg True first")
    missing = [field for field in fields if not field.is_file()]
    if missing:
        raise InputError(f"'{missing[0]}' is missing, which its report lists; register the case again")
    twice = {field.name for field in fields if sum(other.name == field.name for other in fields) > 1}
    if twice:
        raise InputError(f"'{run}' holds {sorted(twice)[0]} more than once; give the folder of one run")
    with replacing(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        for field in fields:  # compressed already
            archive.write(field, field.name)
    return len(fields)


def main(arguments: list[str] | None = None) -> None:
    """Write the zip file that the command line asks for."""
    parser = argparse.ArgumentParser("python -m scripts submission", description="Make a submission of an evaluation.")
    parser.add_argument("run", type=Path, help="output_dir of the evaluation")
    parser.add_argument("out", type=Path, help="zip file to write")
    given = parser.parse_args(arguments)
    try:
        print(f"{given.out}: {write_submission(given.run, given.out)} displacement fields")
    except InputError as error:
        sys.exit(f"error: {error}")
