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
"""Mutation testing of the modules in pyproject.toml's ``[tool.mutmut]`` (docs/mutants.md): ``make mutants``.

mutmut with what this code needs beside its settings: torch and ITK are loaded once, before all forks; functions under
``torch.jit.unused`` and ``lru_cache`` are mutated too; the fastest tests run first; the result is a table.

    python -m tools.campaigns.mutants    # all that are new, whose function changed or that survived
    python -m tools.campaigns.mutants 'scripts.metrics.registration_metrics.x_*'    # these
    python -m tools.campaigns.mutants --report                 # the table and the survivors of the last run
"""

from __future__ import annotations

import importlib
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import libcst
import mutmut.__main__ as engine
from mutmut.mutation.diff_apply import get_diff_for_mutant
from mutmut.mutation.file_mutation import MutationVisitor
from mutmut.runners.harness import PytestRunner
from mutmut.state import state

HARMLESS = ("torch.jit.unused", "lru_cache")  # decorators that a mutated function may keep
PRELOADED = ("pytest", "monai.transforms", "monai.metrics", "icon_registration.itk_wrapper", "unigradicon")
ITK_CLASSES = (
    *("imread", "imwrite", "Image", "Vector", "AffineTransform", "CompositeTransform", "DisplacementFieldTransform"),
    *("transformread", "ContinuousIndex", "GDCMImageIO", "ImageFileWriter"),
    "DisplacementFieldJacobianDeterminantFilter",
)
COLUMNS = ("mutants", "killed", "survived", "no tests", "timeout", "suspicious", "not checked")
KILLED = ("killed", "segfault")  # None for a pointer of ITK ends the process


def main(arguments: Sequence[str]) -> None:
    """Run the mutants of the given names, or all that are not known to be killed; print the survivors and the table."""
    if "--help" in arguments:
        print(__doc__)
        return
    if "--report" not in arguments:
        if not arguments:
            forget_survivors()
        preload()
        mutate_decorated_functions()
        run_fast_tests_first()
        engine._run(tuple(arguments), max_children=1)
    report()


def forget_survivors() -> None:
    """Let mutmut try again what no test killed: tests may have come; it goes by the code alone."""
    for path in engine.walk_mutatable_files():
        data: Any = engine.SourceFileMutationData(path=path)
        data.load()
        for name, code in data.exit_code_by_key.items():
            if engine.status_by_exit_code[code] not in KILLED:
                data.exit_code_by_key[name] = None
        if data.exit_code_by_key:  # else this is the first run
            data.save()


def preload() -> None:
    """Load what the tests load, so that each fork has it; no work is done, so no threads are started."""
    import itk
    import torch

    torch.set_num_threads(1)
    for name in PRELOADED:
        importlib.import_module(name)
    for name in ITK_CLASSES:
        getattr(itk, name)


def mutate_decorated_functions() -> None:
    """Let mutmut into functions whose only decorator is harmless; it leaves out all decorated ones."""
    visitors: Any = MutationVisitor
    skips = visitors._skip_node_and_children

    def skip(visitor: MutationVisitor, node: libcst.CSTNode) -> bool:
        if isinstance(node, libcst.FunctionDef) and len(node.decorators) == 1:
            name = libcst.Module([]).code_for_node(node.decorators[0].decorator)
            if name.split("(")[0] in HARMLESS:
                return False
        return bool(skips(visitor, node))

    visitors._skip_node_and_children = skip


def run_fast_tests_first() -> None:
    """Sort a mutant's tests by their time; the fork server forgets to."""
    runners: Any = PytestRunner
    run_tests = runners.run_tests

    def sorted_run(runner: PytestRunner, *, mutant_name: str | None, tests: Iterable[str]) -> int:
        times = state().duration_by_test
        return int(run_tests(runner, mutant_name=mutant_name, tests=sorted(tests, key=lambda name: times[name])))

    runners.run_tests = sorted_run


def statuses() -> Iterator[tuple[str, str, Path]]:
    """Yield name, status and module of each mutant."""
    for path in engine.walk_mutatable_files():
        data: Any = engine.SourceFileMutationData(path=path)
        data.load()
        for name, code in data.exit_code_by_key.items():
            status = engine.status_by_exit_code[code]
            yield name, "killed" if status in KILLED else status, path


def report() -> None:
    """Print what was changed in each mutant that was not killed, then the counts per module, a Markdown table."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for name, status, path in statuses():
        for row in (path.name, "all"):
            counts[row].update(["mutants", status])
        if status not in ("killed", "not checked"):
            lines = get_diff_for_mutant(name, path=path).splitlines()[2:]
            print(f"\n# {name}: {status}", *(line for line in lines if line[0] in "+-"), sep="\n")
    print("\n| module |", " | ".join(COLUMNS), "|\n|---|" + "---|" * len(COLUMNS))
    for row in sorted(counts, key=lambda name: (name == "all", name)):
        print(f"| {row} |", " | ".join(str(counts[row][column]) for column in COLUMNS), "|")


if __name__ == "__main__":
    main(sys.argv[1:])
