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
"""``python -m scripts register moving.nii.gz fixed.nii.gz``, or ``python FOLDER/scripts ...`` from anywhere."""

import os
import sys
from pathlib import Path

if __name__ == "__main__":
    # before PyTorch is loaded: its waiting threads are to sleep soon, or a busy machine does next to nothing else
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    if not __package__:
        sys.path[0] = str(Path(__file__).resolve().parents[1])
    from scripts.cli import main

    raise SystemExit(main())
