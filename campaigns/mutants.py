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

    python -m campaigns.mutants                          # all mutants that are new or whose function changed
    python -m campaigns.mutants 'scripts.metrics.x_*'    # these, again
    python -m campaigns.mutants --report                 # the table and the survivors of the last run
"""

from __future__ import annotations

import importlib
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
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
    *("DisplacementFieldJacobianDeterminantFilter", "ResampleImageFilter"),
)
COLUMNS = ("killed", "timeout", "survived", "no tests")


def main(arguments: Sequence[str]) -> None:
    """Run the mutants of the given names, or all that are not known yet, and print the table and the survivors."""
    if "--report" not in arguments:
        preload()
        mutate_decorated_functions()
        run_fast_tests_first()
        engine._run(tuple(arguments), max_children=1)
    report()


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


def report() -> None:
    """Print what was changed in each mutant that was not killed, then the counts per module as a Markdown table."""
    rows, left = [], []
    for path in engine.walk_mutatable_files():
        data: Any = engine.SourceFileMutationData(path=path)
        data.load()
        status = {name: engine.status_by_exit_code[code] for name, code in data.exit_code_by_key.items()}
        counts = Counter(status.values())
        others = sum(counts.values()) - sum(counts[column] for column in COLUMNS)
        rows.append((str(path), sum(counts.values()), *(counts[column] for column in COLUMNS), others))
        left += [(name, found, path) for name, found in status.items() if found not in ("killed", "not checked")]
    for name, found, path in left:
        print(f"\n# {name}: {found}")
        lines = get_diff_for_mutant(name, path=path).splitlines()[2:]
        print("\n".join(line for line in lines if line[0] in "+-"))
    rows.append(("all", *(sum(numbers) for numbers in list(zip(*rows, strict=True))[1:])))
    print("\n| module | mutants |", " | ".join(COLUMNS), "| other |\n|---|" + "---|" * (len(COLUMNS) + 2))
    for row in rows:
        print("|", " | ".join(map(str, row)), "|")


if __name__ == "__main__":
    main(sys.argv[1:])
