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

    python monailabel_app/serve.py --studies DIR [--work_dir DIR] [--port 8000] [--conf NAME VALUE ...]

Other options are those of ``monailabel start_server``, which this calls: with the host 127.0.0.1 unless ``--host`` says
otherwise, cross-origin requests of pages of this server only, and the folders that MONAI Label makes beside an app's
``main.py`` (bin, lib, logs, model) in the work folder, not in the bundle.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts.atomic import replacing
from scripts.errors import InputError

BUNDLE_ROOT = Path(__file__).resolve().parents[1]

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
    parser.add_argument("--conf", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"))
    given, others = parser.parse_known_args(words)
    conf = dict(given.conf) | ({"work_dir": given.work_dir} if given.work_dir else {})
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


if __name__ == "__main__":
    main()
