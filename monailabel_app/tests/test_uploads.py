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
"""Limits on what is sent: the size unpacked, also where a file hides it; sessions; and what a start refuses."""

from __future__ import annotations

import asyncio
import bz2
import gzip
import socket
import subprocess
import sys
import tracemalloc
import zlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import itk
import nibabel as nib
import numpy as np
import pytest
from fastapi import HTTPException

from monailabel_app import serve, uploads
from monailabel_app.app_settings import read_settings
from monailabel_app.checked_datastore import CheckedDatastore
from monailabel_app.checked_endpoints import MOST_JSON, LimitBody, _json_object
from monailabel_app.request_errors import RequestError
from monailabel_app.tests.server import APP, free_port
from monailabel_app.uploads import CheckedSessions, refuse_foreign_data
from scripts.utils.errors import InputError

LIMIT = 2**20
SIDE = 128  # 2 MB of uint8
BOMB = 30 * LIMIT


def nifti(shape: tuple[int, ...]) -> bytes:
    """Return a NIfTI header of uint8 voxels, of which none follow."""
    header = nib.Nifti1Header()
    header.set_data_dtype(np.uint8)
    header.set_data_shape(shape)
    header["vox_offset"], header["magic"] = 352, b"n+1"
    return bytes(header.binaryblock) + bytes(4)


def nrrd(side: int, encoding: str) -> bytes:
    """Return the header of an NRRD file."""
    return f"NRRD0004\ntype: uint8\ndimension: 3\nsizes: {side} {side} {side}\nencoding: {encoding}\n\n".encode()


def mha(side: int, size: int) -> bytes:
    """Return the header of a compressed MetaImage."""
    return (
        f"ObjectType = Image\nNDims = 3\nBinaryData = True\nCompressedData = True\nCompressedDataSize = {size}\n"
        f"DimSize = {side} {side} {side}\nElementType = MET_UCHAR\nElementDataFile = LOCAL\n"
    ).encode()


PACKED = zlib.compress(bytes(SIDE**3))
TOO_LARGE = {
    "claim.nii.gz": gzip.compress(nifti((SIDE, SIDE, SIDE)) + bytes(SIDE**3)),
    "plain.nii": nifti((SIDE, SIDE, SIDE)) + bytes(SIDE**3),
    "bomb.nii.gz": gzip.compress(nifti((8, 8, 8)) + bytes(BOMB)),
    "streams.nii.gz": gzip.compress(nifti((8, 8, 8))) + gzip.compress(bytes(LIMIT)) * 2,
    "bomb.nrrd": nrrd(8, "gzip") + gzip.compress(bytes(BOMB)),
    "bomb_bz.nrrd": nrrd(8, "bzip2") + bz2.compress(bytes(BOMB)),
    "claim.nrrd": nrrd(SIDE, "gzip") + gzip.compress(bytes(SIDE**3)),
    "bomb.mha": mha(8, len(PACKED)) + PACKED,
    "claim.mha": mha(SIDE, len(PACKED)) + PACKED,
}


@pytest.mark.parametrize("name", TOO_LARGE)
def test_what_is_too_large_unpacked_is_refused_before_memory_is_taken(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(TOO_LARGE[name])
    assert itk.ImageIOFactory
    assert itk.CommonEnums  # loaded at their first use
    tracemalloc.start()
    try:
        with pytest.raises(RequestError, match=r"more than 0.000977 GB unpacked") as caught:
            refuse_foreign_data("image", str(path), LIMIT)
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert caught.value.status_code == 413
    assert most < 8 * LIMIT
    with pytest.raises(RequestError) as caught:
        CheckedDatastore(str(tmp_path / "studies"), max_bytes=LIMIT).add_image("x", str(path), {})
    assert caught.value.status_code == 413


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".nrrd", ".mha"])
def test_what_is_below_the_limit_is_stored(tmp_path: Path, suffix: str) -> None:
    values = np.random.default_rng(0).integers(0, 9, (50, 60, 70)).astype(np.uint8)
    path = tmp_path / f"x{suffix}"
    itk.imwrite(itk.image_from_array(values), str(path), compression=True)
    store = CheckedDatastore(str(tmp_path / "studies"), max_bytes=LIMIT)
    assert store.add_image("x", str(path), {}) == "x"


def answer_to(body: list[bytes], headers: dict[str, str]) -> tuple[int, int]:
    """Return the status of a request to an application that reads all of it, and how many pieces were read."""
    asked = 0

    async def receive() -> dict[str, Any]:
        nonlocal asked
        asked += 1
        return {"type": "http.request", "body": body[asked - 1], "more_body": asked < len(body)}

    async def application(scope: Any, receive: Callable[[], Awaitable[dict]], send: Any) -> None:
        while (await receive()).get("more_body"):
            pass
        await send({"type": "http.response.start", "status": 200})

    status = 0

    async def send(message: dict[str, Any]) -> None:
        nonlocal status
        status = message.get("status", status)

    scope = {"type": "http", "headers": [(k.encode(), v.encode()) for k, v in headers.items()]}
    try:
        asyncio.run(LimitBody(application, LIMIT)(scope, receive, send))
    except HTTPException as error:
        status = error.status_code
    return status, asked


FORM = {"content-type": "multipart/form-data; boundary=x"}
PIECES = [bytes(LIMIT)] * 10


@pytest.mark.parametrize(
    ("body", "headers", "status", "pieces"),
    [
        (PIECES[:1], {**FORM, "content-length": str(LIMIT)}, 200, 1),
        (PIECES[:2], FORM, 200, 2),  # files of the limit, and the rest of the form
        (PIECES, {**FORM, "content-length": str(10 * LIMIT), "expect": "100-continue"}, 413, 0),
        (PIECES, FORM, 413, 3),  # without a length: counted
        (PIECES, {**FORM, "content-length": "5"}, 413, 3),
        (PIECES, {**FORM, "content-length": "many"}, 413, 10),
        (PIECES, {"content-type": "application/json"}, 200, 10),
        (PIECES, {"content-length": str(MOST_JSON + 1), "expect": "100-continue"}, 413, 0),
    ],
)
def test_a_body_that_is_too_large_is_not_read(body: list, headers: dict, status: int, pieces: int) -> None:
    assert answer_to(body, headers) == (status, pieces)


@pytest.mark.parametrize("text", ["[1]", "5", "null", '"x"', "{", "liver", "[" * 100_000, "{'a': 1}", "NaN"])
def test_params_are_a_json_object(text: str) -> None:
    with pytest.raises(RequestError, match=r"^400: params: expected a JSON object such as"):
        _json_object("params", text)
    _json_object("params", '{"a": [1]}')
    _json_object("params", "")


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["notes.txt"], r"expected a file that ends in .nii.gz.*got 'notes.txt'"),
        (["archive.zip"], "expected a file that ends in"),
        (["false.nii.gz"], r"the file is no .nii.gz file"),
        (["a.txt", "b.txt"], "the upload is a folder without DICOM images"),
    ],
)
def test_a_session_is_a_volume_or_a_series(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, names: list[str], words: str
) -> None:
    monkeypatch.setattr(uploads.tempfile, "gettempdir", lambda: str(tmp_path))
    received = tmp_path / "received"
    received.mkdir()
    for name in names:
        (received / name).write_text("no image")
    sessions = CheckedSessions(str(tmp_path / "sessions"))
    with pytest.raises(RequestError, match=words) as caught:
        sessions.add_session(str(received if len(names) > 1 else received / names[0]))
    assert caught.value.status_code == 400
    assert str(tmp_path) not in caught.value.detail
    assert not received.exists()
    assert not (tmp_path / "sessions").exists()


@pytest.mark.parametrize(
    ("studies", "words"),
    [
        ("ftp://host/studies", "expected a folder, or the address of a DICOMweb server"),
        ("file:///data", "expected a folder"),
        ("s3://bucket/x", "got 's3://bucket/x'"),
        ("http://", "names no host"),
        ("https://:8042/dicom-web", "names no host"),
        (" ", "got nothing"),
        ("{tmp}/file", "is a file"),
        ("{tmp}/file/studies", "is a file"),
        ("/proc/studies", "can't be written"),
    ],
)
def test_studies_are_a_folder_or_an_address(tmp_path: Path, studies: str, words: str) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match=r"^--studies: ") as caught:
        read_settings({"work_dir": str(tmp_path / "work")}, studies.replace("{tmp}", str(tmp_path)))
    assert words in str(caught.value)
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize(("text", "size"), [("2", 2**31), ("0.5", 2**29), ("0", 0), ("-1", 0), ("nan", 0), ("much", 0)])
def test_the_limit_is_an_option(tmp_path: Path, text: str, size: int) -> None:
    conf = {"work_dir": str(tmp_path / "work"), "max_upload_gb": text}
    if size:
        assert read_settings(conf, str(tmp_path)).max_upload_bytes == size
        return
    with pytest.raises(InputError, match=f"max_upload_gb: expected a number above 0, in GB, got '{text}'"):
        read_settings(conf, str(tmp_path))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--studies", "ftp://host/studies"], "got 'ftp://host/studies'"),
        (["--studies", "http://127.0.0.1:{port}/dicom-web"], "can't be reached (ConnectionError)"),
        (["--studies", "http://no.such.host.invalid/dicom-web"], "can't be reached (ConnectionError)"),
        (["--studies", ".", "--max_upload_gb", "none"], "max_upload_gb: expected a number above 0"),
    ],
)
def test_a_start_that_can_not_work_ends_with_one_line(tmp_path: Path, options: list[str], words: str) -> None:
    port = str(free_port())
    command = [sys.executable, str(APP / "serve.py"), *(word.replace("{port}", port) for word in options)]
    command += ["--work_dir", str(tmp_path / "work")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, timeout=240)
    assert done.returncode != 0
    assert done.stderr.strip().startswith("error: ")
    assert words in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "ftp:").exists()


def test_a_start_without_the_dicom_tools_and_a_network_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        address = f"http://127.0.0.1:{listening.getsockname()[1]}/dicom-web"
        monkeypatch.setattr(serve, "DCMQI_HOST", f"http://127.0.0.1:{free_port()}")
        monkeypatch.setattr("requests.get", lambda *_, **__: None)
        with pytest.raises(InputError, match=r"MONAI Label fetches 'itkimage2segimage'.*put the program into a folder"):
            serve.check_dicomweb(address, tmp_path)
        (tmp_path / serve.DCMQI).write_text("program")
        serve.check_dicomweb(address, tmp_path)
