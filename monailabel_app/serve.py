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
"""Start the server for this machine alone, with all that it writes in a work folder.

    python monailabel_app/serve.py --studies DIR [--work_dir DIR] [--port 8000] [--max_upload_gb 2]
        [--conf NAME VALUE ...]

Other options are those of ``monailabel start_server``, which this calls: with the host 127.0.0.1 unless ``--host`` says
otherwise, cross-origin requests of pages of this server only, and the folders that MONAI Label makes beside an app's
``main.py`` (bin, lib, logs, model) in the work folder, not in the bundle.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts.utils.atomic import replacing
from scripts.utils.errors import InputError

BUNDLE_ROOT = Path(__file__).resolve().parents[1]
DCMQI = "itkimage2segimage"
DCMQI_HOST = "https://github.com"

STUB = """import sys

sys.path.insert(0, {root!r})
from monailabel_app.main import UniGradICON  # noqa: E402,F401  the class is what MONAI Label looks for
"""


def main(words: Sequence[str] | None = None) -> None:
    """Start the server; does not return while it runs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--studies", required=True, help="folder of the studies, or the address of a DICOMweb server")
    parser.add_argument("--work_dir", help="all that is written; by default beside the studies, named <studies>-work")
    parser.add_argument("--host", default="127.0.0.1", help="others than 127.0.0.1 let other machines in: see the docs")
    parser.add_argument("--port", default="8000")
    parser.add_argument("--max_upload_gb", help="most that one request may send, unpacked; 2 by default")
    parser.add_argument("--conf", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"))
    given, others = parser.parse_known_args(words)
    conf = dict(given.conf)
    conf |= {name: value for name in ("work_dir", "max_upload_gb") if (value := getattr(given, name))}
    origins = [f"http://{host}:{given.port}" for host in ("127.0.0.1", "localhost")]
    # MONAI Label can't start with this setting in the environment (its addresses are no JSON), but takes it from here
    wanted = os.environ.pop("MONAI_LABEL_CORS_ORIGINS", None)
    origins = json.loads(wanted) if wanted else origins

    from monailabel_app.app_settings import read_settings

    try:
        settings = read_settings(conf, given.studies)
        app = settings.work_dir / "app"
        with replacing(app / "main.py") as temporary:
            temporary.write_text(STUB.format(root=str(BUNDLE_ROOT)))
        if given.studies.startswith(("http://", "https://")):
            check_dicomweb(given.studies, app / "bin")
    except InputError as error:
        raise SystemExit(f"error: {error}") from error
    conf["work_dir"] = str(settings.work_dir)

    from monailabel.config import settings as server_settings
    from monailabel.main import Main

    server_settings.MONAI_LABEL_CORS_ORIGINS = origins
    options = [word for pair in conf.items() for word in ("--conf", *pair)]
    place = ["--app", str(app), "--studies", given.studies, "--host", given.host, "--port", given.port]
    sys.argv = ["monailabel", "start_server", *place, *options, *others]
    Main().run()


def check_dicomweb(address: str, tools: Path) -> None:
    """Check, before MONAI Label starts, that a DICOMweb server answers and that MONAI Label has its DICOM tools.

    MONAI Label fetches the tools from GitHub at its first start, into the folder that is given.

    Raises:
        InputError: no connection to one of the two.
    """
    import requests
    from monailabel.config import settings as server_settings

    user, password = server_settings.MONAI_LABEL_DICOMWEB_USERNAME, server_settings.MONAI_LABEL_DICOMWEB_PASSWORD
    try:
        requests.get(
            f"{address.rstrip('/')}/studies",
            params={"limit": 1},
            auth=(user, password) if user and password else None,
            timeout=20,
        )
    except requests.RequestException as error:
        raise InputError(
            f"--studies: the DICOMweb server '{address}' can't be reached ({type(error).__name__}); start it, or check"
            " the address and the network"
        ) from error
    if shutil.which(DCMQI) or (tools / DCMQI).exists():
        return
    try:
        requests.head(DCMQI_HOST, timeout=20)
    except requests.RequestException as error:
        raise InputError(
            f"for DICOMweb, MONAI Label fetches '{DCMQI}' (of dcmqi 1.2.4) from {DCMQI_HOST} at its first start, which"
            f" can't be reached ({type(error).__name__}); put the program into a folder of PATH, or into '{tools}'"
        ) from error


if __name__ == "__main__":
    main()
