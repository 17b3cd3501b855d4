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
"""One server for all tests of this folder, with labelled and unlabelled studies."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import pytest

from monailabel_app.tests.server import ROOT, Server, free_port, running_server, serve_command
from monailabel_app.tests.studies import Studies, make_studies


@pytest.fixture(scope="session")
def studies(tmp_path_factory: pytest.TempPathFactory) -> Studies:
    """Return the studies as files, not yet in a datastore."""
    return make_studies(tmp_path_factory.mktemp("files"))


def files_of_the_bundle() -> dict[str, str]:
    """Return the hash of each file of the bundle; caches of Python and of the tests are not its files."""
    skipped = (".git", ".venv", "__pycache__", "output", ".pytest_cache", ".ruff_cache", ".mypy_cache")
    return {
        str(path.relative_to(ROOT)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(ROOT.rglob("*"))
        if path.is_file() and not any(part.startswith(skipped) for part in path.relative_to(ROOT).parts)
    }


@pytest.fixture(scope="session")
def checkout() -> dict[str, str]:
    """Return the bundle's files before the server starts."""
    return files_of_the_bundle()


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory, studies: Studies, checkout: dict[str, str]) -> Iterator[Server]:
    """Return a server whose datastore got its studies over the network, as 3D Slicer sends them."""
    folder = tmp_path_factory.mktemp("server")
    port = free_port()
    command = serve_command(folder / "studies", folder / "work", port, "--conf", "modality", studies.modality)
    with running_server(command, folder, folder / "work", port) as running:
        client = running.client(folder)
        for name, path in studies.images.items():
            assert client.upload_image(str(path), name)["image"] == name
        for name in studies.labelled:
            client.save_label(name, str(studies.labels[name]), "final", {"label_info": studies.label_info})
        yield running
