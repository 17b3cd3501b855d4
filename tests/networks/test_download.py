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
"""Downloads of published weights, from a local HTTPS server."""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pooch
import pytest
import yaml

from scripts.networks.download import download, read_source
from scripts.networks.published_weights import PUBLISHED_FILES, check_unchanged, download_command, record_of
from scripts.utils.errors import InputError
from tests.helpers.https_server import Server, make_certificate, serving

CONTENT = bytes(range(256)) * 1200  # 300 kB
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_certificate(tmp_path_factory.mktemp("certificate"))


@pytest.fixture
def server(certificate: tuple[Path, Path]) -> Iterator[Server]:
    with serving(*certificate) as running:
        running.content = CONTENT
        yield running


@pytest.fixture
def trusted(certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Trust the local server's certificate."""
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate[0]))


def bundle(folder: Path, url: str, hash_val: str = "") -> Path:
    """Return a bundle that lists one model, at ``url``."""
    entry = {"path": PUBLISHED_FILES["unigradicon"], "url": url, "hash_val": hash_val, "hash_type": "sha256"}
    (folder / "configs").mkdir(parents=True, exist_ok=True)
    (folder / "large_files.yml").write_text(yaml.safe_dump({"large_files": [entry]}))
    return folder


def names(folder: Path) -> set[str]:
    return {path.name for path in (folder / "models").iterdir()} if (folder / "models").is_dir() else set()


def assert_done(root: Path) -> None:
    assert (root / "models" / "unigradicon.pt").read_bytes() == CONTENT
    assert (root / "models" / "unigradicon.pt.sha256").read_text() == f"{SHA256}  unigradicon.pt\n"
    assert names(root) == {"unigradicon.pt", "unigradicon.pt.sha256"}


@pytest.mark.parametrize("hash_val", ["", SHA256, SHA256.upper()])
def test_a_file_is_downloaded_once_and_its_hash_is_noted(
    hash_val: str, tmp_path: Path, server: Server, trusted: None, caplog: pytest.LogCaptureFixture
) -> None:
    root = bundle(tmp_path, server.url, hash_val)
    with caplog.at_level(logging.INFO):
        path = download("unigradicon", root)
        assert download("unigradicon", root) == path == root / "models" / "unigradicon.pt"
    assert_done(root)
    assert len(server.requests) == 1
    assert f"{path} is downloaded, SHA-256 {SHA256}" in caplog.text
    assert f"{path} is there, SHA-256 {SHA256}" in caplog.text


def test_sha256sum_accepts_the_note(tmp_path: Path, server: Server, trusted: None) -> None:
    path = download("unigradicon", bundle(tmp_path, server.url))
    subprocess.run(["sha256sum", "--check", record_of(path).name], cwd=path.parent, check=True, capture_output=True)


def test_a_download_that_was_cut_leaves_nothing_and_starts_anew(tmp_path: Path, server: Server, trusted: None) -> None:
    root = bundle(tmp_path, server.url)
    server.cut_after = 100_000
    with pytest.raises(InputError, match=r"could not be fetched .*100000 bytes read, 207200 more.* again$") as caught:
        download("unigradicon", root)
    assert "\n" not in str(caught.value)
    assert names(root) == set()
    server.cut_after = None
    download("unigradicon", root)
    assert_done(root)


def test_what_a_killed_download_left_is_removed(tmp_path: Path, server: Server, trusted: None) -> None:
    root = bundle(tmp_path, server.url)
    ended = subprocess.Popen(["true"])
    ended.wait()
    (root / "models").mkdir()
    (root / "models" / f".{ended.pid}.unigradicon.pt").write_bytes(b"half")
    download("unigradicon", root)
    assert_done(root)


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_others_may_read_the_file_where_the_users_umask_lets_them(
    tmp_path: Path, server: Server, trusted: None
) -> None:
    mask = os.umask(0o022)
    try:
        path = download("unigradicon", bundle(tmp_path, server.url))
    finally:
        os.umask(mask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_a_wrong_hash_leaves_no_file(tmp_path: Path, server: Server, trusted: None) -> None:
    root = bundle(tmp_path, server.url, "0" * 64)
    with pytest.raises(InputError, match=f"has the hash {SHA256}, expected sha256:0000.*the file was removed"):
        download("unigradicon", root)
    assert names(root) == set()


def test_a_wrong_file_is_kept_until_the_right_one_is_there(tmp_path: Path, server: Server, trusted: None) -> None:
    root = bundle(tmp_path, server.url)
    path = download("unigradicon", root)
    path.write_bytes(b"changed")
    server.cut_after = 10
    with pytest.raises(InputError, match="10 bytes read"):
        download("unigradicon", root)
    assert path.read_bytes() == b"changed"
    server.cut_after = None
    download("unigradicon", root)
    assert_done(root)


def test_a_server_that_does_not_tell_the_length_is_read_to_the_end(
    tmp_path: Path, server: Server, trusted: None
) -> None:
    server.tells_length = False
    root = bundle(tmp_path, server.url, SHA256)
    download("unigradicon", root)
    assert_done(root)


@pytest.mark.parametrize("url", ["http://127.0.0.1/weights", "file:///etc/hostname", "ftp://127.0.0.1/x", "https:///x"])
def test_other_schemes_are_refused(url: str, tmp_path: Path) -> None:
    root = bundle(tmp_path, url)
    with pytest.raises(InputError, match="only https is used, got "):
        download("unigradicon", root)
    assert not names(root)


@pytest.mark.parametrize("target", ["http://127.0.0.1:1/weights.trch?key=secret", "ftp://127.0.0.1/weights.trch"])
def test_a_redirect_to_another_scheme_is_refused(target: str, tmp_path: Path, server: Server, trusted: None) -> None:
    server.redirect = target
    root = bundle(tmp_path, server.url.replace("weights.trch", "moved"))
    with pytest.raises(InputError, match=r"only https is used, got (http|ftp)://127\.0\.0\.1 \(redirected") as caught:
        download("unigradicon", root)
    assert "secret" not in str(caught.value)
    assert len(server.requests) == 1
    assert not names(root)


def test_a_redirect_to_no_url_is_one_line(tmp_path: Path, server: Server, trusted: None) -> None:
    server.redirect = "https://[::1/weights.trch"
    root = bundle(tmp_path, server.url.replace("weights.trch", "moved"))
    with pytest.raises(InputError, match="could not be fetched"):
        download("unigradicon", root)


def test_a_redirect_to_https_is_followed(tmp_path: Path, server: Server, trusted: None) -> None:
    server.redirect = server.url
    root = bundle(tmp_path, server.url.replace("weights.trch", "moved"))
    download("unigradicon", root)
    assert_done(root)


def test_a_certificate_that_is_not_trusted_is_refused(tmp_path: Path, server: Server) -> None:
    root = bundle(tmp_path, server.url)
    with pytest.raises(InputError, match=r"could not be fetched .*certificate verify failed"):
        download("unigradicon", root)
    assert not server.requests
    assert not names(root)


def test_what_the_server_refuses_is_said(tmp_path: Path, server: Server, trusted: None) -> None:
    root = bundle(tmp_path, server.url.replace("weights", "absent"))
    with pytest.raises(InputError, match=r"127\.0\.0\.1 answers 404 Not Found for https://.*absent"):
        download("unigradicon", root)


def test_a_full_disk_is_one_line(
    tmp_path: Path, server: Server, trusted: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = bundle(tmp_path, server.url)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(pooch.HTTPDownloader, "__call__", full)
        with pytest.raises(
            InputError, match=r"unigradicon\.pt' can't be written \(No space left on device\)"
        ) as caught:
            download("unigradicon", root)
    assert "\n" not in str(caught.value)
    assert names(root) == set()
    download("unigradicon", root)
    assert_done(root)


def test_a_file_in_the_way_of_the_folder_is_one_line(tmp_path: Path, server: Server, trusted: None) -> None:
    root = bundle(tmp_path, server.url)
    (root / "models").write_text("a file")
    with pytest.raises(InputError, match="can't be written"):
        download("unigradicon", root)


@pytest.mark.parametrize(
    "text", ["", "large_files: []", "large_files: [{path: models/unigradicon.pt}]", "large_files: 3", "{", "[]"]
)
def test_a_list_that_can_not_be_used_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "large_files.yml").write_text(text)
    with pytest.raises(InputError, match=r"large_files\.yml does not list models/unigradicon\.pt with a url"):
        read_source("unigradicon", tmp_path)


def test_an_unknown_hash_or_model_is_named(tmp_path: Path) -> None:
    root = bundle(tmp_path, "https://127.0.0.1/x")
    text = (root / "large_files.yml").read_text()
    (root / "large_files.yml").write_text(text.replace("sha256", "crc"))
    with pytest.raises(InputError, match="hash_type 'crc' is unknown; write sha256"):
        read_source("unigradicon", root)
    with pytest.raises(InputError, match="expected one of unigradicon, multigradicon, got 'default'"):
        read_source("default", root)


@pytest.mark.parametrize("model", list(PUBLISHED_FILES))
def test_the_bundle_lists_its_models(model: str, tmp_path: Path, bundle_root: Path) -> None:
    assert read_source(model, bundle_root) == read_source(model, tmp_path)
    assert read_source(model, bundle_root).url.startswith("https://github.com/uncbiag/uniGradICON/releases/")


def run(words: list[str], folder: Path, **environment: str) -> Any:
    return subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_command_downloads_into_a_bundle_and_ends_errors_with_one_line(
    tmp_path: Path, bundle_root: Path, server: Server, certificate: tuple[Path, Path]
) -> None:
    root = bundle(tmp_path / "a bundle", server.url)
    words = [str(bundle_root / "scripts"), "download", "unigradicon", "--bundle_root", str(root)]
    refused = run(words, tmp_path)
    assert refused.returncode == 1
    assert refused.stderr.strip().splitlines()[-1].startswith("error: download: https://127.0.0.1")
    assert "Traceback" not in refused.stderr
    done = run(words, tmp_path, REQUESTS_CA_BUNDLE=str(certificate[0]))
    assert done.returncode == 0, done.stderr
    assert f"SHA-256 {SHA256}" in done.stderr
    assert_done(root)


def test_the_command_that_errors_name_works_where_the_user_is(
    tmp_path: Path, bundle_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(bundle_root)
    assert download_command("unigradicon") == "python -m scripts download unigradicon"
    assert download_command("unigradicon", bundle_root) == "python -m scripts download unigradicon"
    monkeypatch.chdir(tmp_path)
    assert download_command("unigradicon", bundle_root) == f"python {bundle_root / 'scripts'} download unigradicon"
    assert download_command("unigradicon", "/some where").endswith("unigradicon --bundle_root '/some where'")


@pytest.mark.parametrize(
    ("note", "model", "message"),
    [
        (
            "1" * 64 + "  w.pt\n",
            "unigradicon",
            r"w\.pt\.sha256 says 1{64}\); fetch it again with: python .*download unigr",
        ),
        ("", "multigradicon", "says nothing"),
        ("1" * 64, None, r"fetch it again, or remove w\.pt\.sha256 if the change is yours"),
    ],
)
def test_a_file_that_changed_since_is_refused(note: str, model: str | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    check_unchanged(path, SHA256, model)  # without a note there is nothing to compare with
    record_of(path).write_text(f"{SHA256}  w.pt\n")
    check_unchanged(path, SHA256, model)
    record_of(path).write_text(note)
    with pytest.raises(InputError, match=message) as caught:
        check_unchanged(path, SHA256, model)
    assert "\n" not in str(caught.value)
