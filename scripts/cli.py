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
"""The command ``python -m scripts``: the bundle's configs with a help text for each option.

The options are those at the top of the config files, and so is what the help says of them.
"""

from __future__ import annotations

import argparse
import difflib
import logging
import os
import re
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any, NamedTuple, NoReturn

import yaml

from scripts.declared_options import CONFIGS, declared_options
from scripts.networks.published_weights import PUBLISHED_FILES
from scripts.old_names import old_names

_TEXT = re.compile(
    r"_(mask|label|landmarks|series|path|dir)$|^(datalist|transform|fixed|moving|image|images|label|landmarks|template"
    r"|series|dataset_name)$"
)


class Command(NamedTuple):
    """One command."""

    configs: tuple[str, ...]
    positional: tuple[str, ...]
    output_dir: str
    text: str


COMMANDS = {
    "register": Command(("inference.yaml",), ("moving", "fixed"), "output", "register a moving image to a fixed one"),
    "cohort": Command(
        ("inference.yaml", "cohort.yaml"),
        (),
        "output/cohort",
        "register many pairs; resumes, isolates failures, ends in one table",
    ),
    "apply": Command(
        ("apply.yaml",),
        ("transform",),
        "output/apply",
        "apply a written transform to images, labels, points, series",
    ),
    "evaluate": Command(
        ("inference.yaml", "evaluate.yaml"),
        ("datalist",),
        "output/evaluation",
        "measure accuracy on pairs with labels or landmarks",
    ),
}

PROGRAMS = {  # modules with a command line of their own
    "example_pair": ("scripts.data.example_pair", "make a synthetic pair with a known transform"),
    "datalist": ("scripts.data.datalist_builders", "write the training list of a data set or of a folder"),
    "summary": ("scripts.visualize.summary", "print the figures of a report.json"),
    "tables": ("scripts.evaluation.tables", "put several evaluations into one table"),
    "submission": ("scripts.evaluation.learn2reg_submission", "make the zip file of a Learn2Reg submission"),
}


class _Parser(argparse.ArgumentParser):
    """Answers a misspelled option with the closest known one."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Refuse names that begin with -, which would be taken for options, before they are missed elsewhere."""
        for word in sys.argv[1:] if args is None else args:
            if re.match(r"-[^-\d.h]|-h.", word) or (word.startswith("--") and "." in word.split("=")[0]):
                print(
                    f"error: '{word}' begins with -, as options do; write ./{word} if it is a file, and options with"
                    f" two, --{word.lstrip('-')}",
                    file=sys.stderr,
                )
                raise SystemExit(2)
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        given = re.findall(r"--[\w:-]+", message)
        hints = [difflib.get_close_matches(word, _known_options(self), 1) for word in given]
        names = [*COMMANDS, *PROGRAMS, "report", "download", "export"]
        wrong = re.findall(r"invalid choice: '(\w+)'", message)
        hints += [difflib.get_close_matches(word, names, 1) for word in wrong]
        hint = next((f"; did you mean {close[0]}?" for close in hints if close), "")
        for word in given:
            if any(word.removeprefix("--") in command.positional for command in COMMANDS.values()):
                hint = f"; {word.removeprefix('--')} is given without its name, in the order of the usage line"
        help_text = self.prog + ("" if len(self.prog.split()) > 3 else " COMMAND") + " --help"
        print(f"error: {message}{hint} ({help_text} lists all options)", file=sys.stderr)
        raise SystemExit(2)


def _known_options(parser: argparse.ArgumentParser) -> list[str]:
    found: list[str] = []
    for action in parser._actions:
        found += [] if action.help == argparse.SUPPRESS else action.option_strings  # old names
        if isinstance(action, argparse._SubParsersAction):
            found += [option for sub in action.choices.values() for option in _known_options(sub)]
    return found


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser = _Parser(prog="python -m scripts", description="Deformable 3-D image registration with uniGradICON.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        options = declared_options([CONFIGS / config for config in command.configs])
        sub = commands.add_parser(
            name,
            help=command.text,
            description=f"{command.text[0].upper()}{command.text[1:]}.",
            usage=f"%(prog)s {' '.join(word.upper() for word in command.positional)} [--OPTION VALUE ...]",
            allow_abbrev=False,
        )
        for positional in command.positional:
            sub.add_argument(positional, type=text_of, help=_escape(options[positional].text))
        for option in options.values():
            if option.name not in command.positional:
                value = command.output_dir if option.name == "output_dir" else option.default_text
                default = "" if value.startswith("$") or not value else f" [{value}]"
                sub.add_argument(
                    f"--{option.name}",
                    default=argparse.SUPPRESS,
                    metavar="VALUE",
                    type=text_of if _TEXT.search(option.name) else value_of,
                    help=_escape(option.text + default),
                )
        for name in old_names(options):
            sub.add_argument(f"--{name}", default=argparse.SUPPRESS, type=value_of, help=argparse.SUPPRESS)
    report = commands.add_parser(
        "report", help="make the table and the web page of results that lie in a folder", allow_abbrev=False
    )
    report.add_argument("output_dir", help="folder of a registration or a cohort")
    download = commands.add_parser(
        "download", help="download published weights; checks them and notes their SHA-256", allow_abbrev=False
    )
    download.add_argument("model", choices=list(PUBLISHED_FILES), help="which weights, about 283 MB each")
    download.add_argument("--bundle_root", default=".", help="folder that holds models/ [this bundle]")
    export = commands.add_parser(
        "export", help="export the network: TorchScript, torch.export, ONNX; docs/exports.md", allow_abbrev=False
    )
    export.add_argument("out", help="file to write: .ts (TorchScript), .pt2 (torch.export) or .onnx (ONNX)")
    export.add_argument("--model", default="default", choices=["default", *PUBLISHED_FILES], help="weights [default]")
    export.add_argument("--ckpt_path", help="own weights; they win over model")
    export.add_argument(
        "--network_shape", type=int, nargs=3, metavar=("D", "H", "W"), help="voxels [what the weights are made for]"
    )
    export.add_argument("--device", default="cpu", help="where a .pt2 file will compute [cpu]")
    export.add_argument("--bundle_root", default=".", help="folder that holds models/ [this bundle]")
    for name, (_, text) in PROGRAMS.items():
        commands.add_parser(name, help=text, add_help=False)
    return parser


def _escape(text: str) -> str:
    return text.replace("%", "%%")


def text_of(text: str) -> Any:
    """Return a path, name or UID as it is (3.10 is not 3.1), or a list of them."""
    if text.strip() in ("null", "None"):
        return None
    if not text.lstrip().startswith("["):
        return text
    value = value_of(text)
    return [str(item) for item in value] if isinstance(value, list) else text


def value_of(text: str) -> Any:
    """Return a command line value: YAML for numbers, lists and switches, a path or word as it is."""
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return text
    if value is None or isinstance(value, (bool, int, float)):
        return text if text.strip().lower() in ("on", "off", "yes", "no") else value
    return value if isinstance(value, (list, dict)) else text


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return the exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words and words[0] in PROGRAMS:
        import_module(PROGRAMS[words[0]][0]).main(words[1:])
        return 0
    given = vars(build_parser().parse_args(words))
    command = given.pop("command")
    # heavy imports only now: --help is quick
    from scripts.utils.errors import describe_memory_error, find_input_error

    try:
        if command == "report":
            from scripts.cohort.page import write_report_page

            write_report_page(given["output_dir"])
        elif command == "download":
            from scripts.networks.download import download

            logging.basicConfig(level=logging.INFO, format="%(message)s")
            download(**given)
        elif command == "export":
            from scripts.networks.exports import export

            export(**given)
        else:
            from scripts.workflow import run_workflow

            given.setdefault("output_dir", COMMANDS[command].output_dir)
            run_workflow(COMMANDS[command].configs, given, logging=True)
    except KeyboardInterrupt:
        print("stopped; a cohort or an evaluation goes on where it was when started again", file=sys.stderr)
        return 130
    except Exception as error:
        line = find_input_error(error) or describe_memory_error(error)
        if line is None or os.environ.get("REGISTRATION_TRACEBACK") == "1":
            raise
        print(f"error: {line}", file=sys.stderr)
        return 1
    return 0
