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
"""Zip the bundle as the model zoo does.

``python -m tools.release.bundle [FOLDER]`` writes FOLDER/unigradicon_v<version>.zip.

The same files give the same zip file, byte by byte. What lies under the one folder in it runs where it is unpacked.
"""

from __future__ import annotations

import argparse
import zipfile
from pathlib import Path

from scripts.networks.published_weights import sha256_of
from scripts.utils.atomic import replacing
from tools.release.contents import NAME, ROOT, released_files, version_of

_TIME = (2022, 5, 30, 0, 0, 0)  # of every file, as in the zoo's zip files
_LARGEST = 25 * 2**20  # bytes; larger ones belong into large_files.yml


def write_zip(folder: Path, root: Path = ROOT) -> Path:
    """Write the zip file of a bundle.

    Args:
        folder: where it goes.
        root: the bundle, a git checkout.

    Returns:
        the file.

    Raises:
        SystemExit: a file is larger than the zoo takes.
    """
    out = folder / f"{NAME}_v{version_of(root)}.zip"
    with replacing(out) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name in released_files(root):
            path = root / name
            if path.stat().st_size > _LARGEST:
                raise SystemExit(f"error: {name} has more than 25 MB; name it in large_files.yml instead")
            entry = zipfile.ZipInfo(f"{NAME}/{name}", _TIME)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.create_system = 3  # Unix, whose permissions follow
            entry.external_attr = (0o100755 if path.stat().st_mode & 0o100 else 0o100644) << 16
            archive.writestr(entry, path.read_bytes())
    return out


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path, nargs="?", default=ROOT / "output" / "release")
    out = write_zip(parser.parse_args().folder)
    print(f"{out}: {out.stat().st_size / 2**20:.1f} MB, SHA-256 {sha256_of(out)}")


if __name__ == "__main__":
    main()
