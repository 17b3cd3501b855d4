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
"""Published weights: where their files lie, the command that fetches them, the SHA-256 noted when they were fetched."""

from __future__ import annotations

import hashlib
import shlex
from pathlib import Path

from scripts.utils.errors import InputFileError

ROOT = Path(__file__).resolve().parents[2]
PUBLISHED_FILES = {"unigradicon": "models/unigradicon.pt", "multigradicon": "models/multigradicon.pt"}


def bundle_folder(bundle_root: str | Path) -> Path:
    """Return the bundle's folder; ``.``, the configs' default, means this bundle in whatever folder a command runs."""
    folder = Path(bundle_root)
    return ROOT if str(folder) == "." and not (folder / "configs" / "metadata.json").is_file() else folder


def download_command(model: str, bundle_root: str | Path = ".") -> str:
    """Return the command that fetches published weights into a bundle; it works in the folder where the user is."""
    folder = bundle_folder(bundle_root).absolute()
    program = "-m scripts" if Path.cwd() == ROOT else shlex.quote(str(ROOT / "scripts"))
    return f"python {program} download {model}" + (
        "" if folder == ROOT else f" --bundle_root {shlex.quote(str(folder))}"
    )


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def record_of(path: Path) -> Path:
    """Return where the SHA-256 of a downloaded file is noted, as sha256sum writes it: beside the file."""
    return path.with_name(f"{path.name}.sha256")


def recorded_sha256(path: Path) -> str | None:
    """Return what the SHA-256 of a file was when it was downloaded, or None where nothing is noted.

    Raises:
        InputFileError: the note can't be read.
    """
    record = record_of(path)
    try:
        words = record.read_text(encoding="utf-8").split()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputFileError(f"weights: '{record}' can't be read ({reason}); check its permissions") from error
    return words[0] if words else ""


def check_unchanged(path: Path, sha256: str, model: str | None, bundle_root: str | Path = ".") -> None:
    """Compare a file with its SHA-256 noted at the download, where there is such a note.

    Args:
        path: the file.
        sha256: what it is now.
        model: which published weights these are; None for a file that the user named.
        bundle_root: see :func:`bundle_folder`.

    Raises:
        InputFileError: they differ; with the command that fetches the file again.
    """
    recorded = recorded_sha256(path)
    if recorded is None or recorded == sha256:
        return
    again = f"fetch it again with: {download_command(model, bundle_root)}" if model else "fetch it again"
    own = "" if model else f", or remove {record_of(path).name} if the change is yours"
    raise InputFileError(
        f"weights: {path} was changed since it was downloaded (SHA-256 {sha256}, {record_of(path).name} says"
        f" {recorded or 'nothing'}); {again}{own}"
    )
