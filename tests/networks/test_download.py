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
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml
from filelock import FileLock

from scripts.networks import transfers
from scripts.networks.download import download, read_source
from scripts.networks.published_weights import PUBLISHED_FILES, check_unchanged, download_command, record_of
from scripts.utils.errors import InputError
from tests.helpers.https_server import Server, make_certificate, serving

CONTENT = bytes(range(256)) * 1200  # 300 kB
SHA256 = hashlib.sha256(CONTENT).hexdigest()
CERTIFICATES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR")


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfers, "CHUNK", 1000)


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
    for name in CERTIFICATES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))


def bundle(folder: Path, url: str, hash_val: str = "") -> Path:
    """Return a bundle that lists one model, at ``url``."""
    entry = {"path": PUBLISHED_FILES["unigradicon"], "url": url, "hash_val": hash_val, "hash_type": "sha256"}
    (folder / "configs").mkdir(parents=True, exist_ok=True)
    (folder / "large_files.yml").write_text(yaml.safe_dump({"large_files": [entry]}))
    return folder


def names(folder: Path) -> set[str]:
    return {path.name for path in (folder / "models").iterdir()} if (folder / "models").is_dir() else set()


def cut_download(folder: Path, server: Server, at: int = 100_000) -> Path:
    """Start a download whose connection is cut, and return the bundle."""
    root = bundle(folder, server.url)
    server.cut_after = at
    message = (
        rf"could not be fetched .*{at} bytes read, {len(CONTENT) - at} more.*run the same command again to resume$"
    )
    with pytest.raises(InputError, match=message) as caught:
        download("unigradicon", root)
    assert "\n" not in str(caught.value)
    assert names(root) == {"unigradicon.pt.part", "unigradicon.pt.part.json"}
    assert (root / "models" / "unigradicon.pt.part").read_bytes() == CONTENT[:at]
    server.cut_after = None
    return root


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


@pytest.mark.parametrize("etag", ['"one"', None, 'W/"weak"'])
def test_a_cut_download_is_resumed(etag: str | None, tmp_path: Path, server: Server, trusted: None) -> None:
    server.etag, server.modified = etag, "Wed, 21 Oct 2015 07:28:00 GMT"
    root = cut_download(tmp_path, server)
    if etag == 'W/"weak"':
        server.honours_if_range = False  # this small server compares with the ETag only
    download("unigradicon", root)
    assert_done(root)
    first, second = server.requests
    assert "range" not in first
    assert first["accept-encoding"] == second["accept-encoding"] == "identity"  # the bytes are those of the file
    assert second["range"] == "bytes=99999-"  # from the last byte that is there
    assert second["if-range"] == (etag if etag == '"one"' else server.modified)


def test_a_download_that_was_cut_twice_is_resumed_twice(tmp_path: Path, server: Server, trusted: None) -> None:
    root = cut_download(tmp_path, server)
    server.cut_after = 50_000
    with pytest.raises(InputError, match="50000 bytes read, 157201 more"):
        download("unigradicon", root)
    server.cut_after = None
    download("unigradicon", root)
    assert_done(root)
    assert [request.get("range") for request in server.requests] == [None, "bytes=99999-", "bytes=149998-"]


def test_without_a_sign_of_the_file_being_the_same_it_starts_anew(
    tmp_path: Path, server: Server, trusted: None
) -> None:
    server.etag = None
    root = cut_download(tmp_path, server)
    download("unigradicon", root)
    assert_done(root)
    assert all("range" not in request for request in server.requests)


def test_a_server_that_ignores_ranges_is_read_from_the_start(
    tmp_path: Path, server: Server, trusted: None, caplog: pytest.LogCaptureFixture
) -> None:
    root = cut_download(tmp_path, server)
    server.honours_range = False
    with caplog.at_level(logging.INFO):
        download("unigradicon", root)
    assert_done(root)
    assert "starting anew" in caplog.text


@pytest.mark.parametrize("honours_if_range", [True, False])
@pytest.mark.parametrize("size", [200_000, 50_000])  # more than what is there, and less
def test_a_file_that_changed_meanwhile_is_read_from_the_start(
    honours_if_range: bool, size: int, tmp_path: Path, server: Server, trusted: None
) -> None:
    root = cut_download(tmp_path, server)
    server.content, server.etag, server.honours_if_range = bytes(size), '"two"', honours_if_range
    path = download("unigradicon", root)
    assert path.read_bytes() == bytes(size)
    assert names(root) == {"unigradicon.pt", "unigradicon.pt.sha256"}


def test_a_part_of_another_url_is_of_no_use(tmp_path: Path, server: Server, trusted: None) -> None:
    root = cut_download(tmp_path, server)
    record = root / "models" / "unigradicon.pt.part.json"
    record.write_text(record.read_text().replace("weights.trch", "other.trch"))
    download("unigradicon", root)
    assert_done(root)
    assert "range" not in server.requests[1]


@pytest.mark.parametrize("record", ["", "[]", "{}", None])
def test_a_part_of_which_nothing_is_recorded_is_of_no_use(
    record: str | None, tmp_path: Path, server: Server, trusted: None
) -> None:
    root = bundle(tmp_path, server.url)
    (root / "models").mkdir()
    (root / "models" / "unigradicon.pt.part").write_bytes(b"half")
    if record is not None:
        (root / "models" / "unigradicon.pt.part.json").write_text(record)
    download("unigradicon", root)
    assert_done(root)


def test_a_part_that_is_whole_is_checked_and_used(tmp_path: Path, server: Server, trusted: None) -> None:
    root = cut_download(tmp_path, server)
    part = root / "models" / "unigradicon.pt.part"
    part.write_bytes(CONTENT)
    bundle(root, server.url, "0" * 64)
    with pytest.raises(InputError, match="expected sha256:0000"):
        download("unigradicon", root)
    assert names(root) == set()
    root = cut_download(tmp_path, server)
    part.write_bytes(CONTENT)
    download("unigradicon", root)
    assert_done(root)
    assert server.requests[1]["range"] == server.requests[3]["range"] == "bytes=307199-"


def test_one_process_at_a_time_writes(tmp_path: Path, server: Server, trusted: None) -> None:
    root = cut_download(tmp_path, server)
    lock = root / "models" / "unigradicon.pt.part.lock"
    with FileLock(lock), pytest.raises(InputError, match=r"another process is writing .*\.part'; wait") as caught:
        download("unigradicon", root)
    assert "\n" not in str(caught.value)
    assert len(server.requests) == 1
    lock.touch()  # as a killed process leaves it
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


def test_a_redirect_to_https_is_followed_and_resumed(tmp_path: Path, server: Server, trusted: None) -> None:
    server.redirect = server.url
    root = bundle(tmp_path, server.url.replace("weights.trch", "moved"))
    server.cut_after = 1000
    with pytest.raises(InputError, match="1000 bytes read"):
        download("unigradicon", root)
    server.cut_after = None
    download("unigradicon", root)
    assert_done(root)
    assert server.requests[-1]["range"] == "bytes=999-"


def test_a_certificate_that_is_not_trusted_is_refused(tmp_path: Path, server: Server) -> None:
    root = bundle(tmp_path, server.url)
    with pytest.raises(InputError, match=r"could not be fetched .*certificate verify failed"):
        download("unigradicon", root)
    assert not server.requests
    assert not names(root)


def test_requests_own_variable_wins_over_the_systems_certificates(
    tmp_path: Path, server: Server, trusted: None, certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = bundle(tmp_path, server.url)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", requests.certs.where())
    with pytest.raises(InputError, match=r"could not be fetched .*certificate verify failed"):
        download("unigradicon", root)
    monkeypatch.setenv("SSL_CERT_FILE", requests.certs.where())
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate[0]))
    download("unigradicon", root)
    assert_done(root)


def test_certificates_of_a_system_are_a_file_or_a_folder_or_else_those_of_certifi(
    tmp_path: Path, server: Server, trusted: None, certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "certificates"
    folder.mkdir()
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "absent"))
    monkeypatch.setenv("SSL_CERT_DIR", str(folder))
    root = bundle(tmp_path, server.url)
    assert transfers._certificates() is True
    with pytest.raises(InputError, match="certificate verify failed"):
        download("unigradicon", root)
    shutil.copy(certificate[0], folder)
    subprocess.run(["openssl", "rehash", str(folder)], check=True)
    download("unigradicon", root)
    assert_done(root)


def test_certificates_that_are_not_there_are_one_line(
    tmp_path: Path, server: Server, trusted: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "absent"))
    with pytest.raises(InputError, match=r"could not be fetched .*absent"):
        download("unigradicon", bundle(tmp_path, server.url))


def test_what_the_server_refuses_is_said(tmp_path: Path, server: Server, trusted: None) -> None:
    root = bundle(tmp_path, server.url.replace("weights", "absent"))
    with pytest.raises(InputError, match=r"127\.0\.0\.1 answers 404 Not Found for https://.*absent"):
        download("unigradicon", root)


def test_a_full_disk_is_one_line_and_the_part_is_kept(
    tmp_path: Path, server: Server, trusted: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = bundle(tmp_path, server.url)

    def full(answer: requests.Response, chunk_size: int) -> Iterator[bytes]:
        yield answer.raw.read(chunk_size)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(requests.Response, "iter_content", full)
        with pytest.raises(
            InputError, match=r"unigradicon\.pt\.part' can't be written \(No space left on device\)"
        ) as caught:
            download("unigradicon", root)
    assert "\n" not in str(caught.value)
    assert names(root) == {"unigradicon.pt.part", "unigradicon.pt.part.json"}
    download("unigradicon", root)
    assert_done(root)
    assert server.requests[-1]["range"] == "bytes=999-"


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
    done = run(words, tmp_path, REQUESTS_CA_BUNDLE="", CURL_CA_BUNDLE="", SSL_CERT_FILE=str(certificate[0]))
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
