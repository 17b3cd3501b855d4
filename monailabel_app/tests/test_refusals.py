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
"""What must not be served: each is refused with one line, and the server goes on."""

from __future__ import annotations

import gzip
import http.client
import io
import json
import tarfile
import time
from pathlib import Path

import itk
import nibabel as nib
import numpy as np
import pytest
import requests

from monailabel_app.tests.server import MODEL, Server
from monailabel_app.tests.studies import Studies

TRICKS = ("../secret", "a/b", "/etc/passwd", "..", "a\\b", "C:x", "~root", "a\nb", ".hidden", "x" * 300)


@pytest.fixture
def secret(server: Server) -> Path:
    """Return a readable image outside the datastore."""
    path = server.work_dir.parent / "secret.nii.gz"
    if not path.exists():
        itk.imwrite(itk.image_from_array(np.random.default_rng(0).random((20, 20, 20)).astype(np.float32)), str(path))
    return path


@pytest.mark.parametrize("trick", TRICKS)
def test_moving_is_an_id(server: Server, studies: Studies, trick: str) -> None:
    answer = server.infer(studies.open, moving=trick)
    assert answer.status_code == 400
    assert "can't be an id" in answer.json()["detail"]


def test_paths_of_readable_files_are_refused_everywhere(server: Server, studies: Studies, secret: Path) -> None:
    for answer in (
        server.infer(str(secret), moving="atlas_a"),
        server.infer("../secret", moving="atlas_a"),
        server.infer(studies.open, moving="atlas_a", image=str(secret)),  # params overwrite the query
        server.infer(studies.open, moving=str(secret), result="warped"),
        requests.post(f"{server.url}/batch/infer/{MODEL}?run_sync=true", json={"images": [str(secret)]}, timeout=60),
    ):
        assert 400 <= answer.status_code < 500, answer.text
    assert secret.exists()
    slide = requests.post(f"{server.url}/infer/wsi/{MODEL}", params={"image": studies.open}, json={}, timeout=60)
    assert (slide.status_code, "whole slide" in slide.text) == (404, True), slide.text


def test_odd_but_legal_json_is_refused(server: Server, studies: Studies) -> None:
    def post(path: str, body: object) -> int:
        return requests.post(f"{server.url}{path}", json=body, timeout=60).status_code

    assert server.infer(studies.open, moving="atlas_a", model={}).status_code == 404
    assert server.infer("/" + "x" * 5000, moving="atlas_a").status_code == 400
    assert post("/activelearning/worst_registered", {"strategy": {}}) == 404
    assert post(f"/batch/infer/{MODEL}?run_sync=true", {"moving": "atlas_a", "images": "later_1"}) == 400
    assert post(f"/batch/infer/{MODEL}?run_sync=true", {"moving": "atlas_a", "max_batch_size": "2"}) == 400
    assert post(f"/train/{MODEL}?run_sync=true", {"weights": {}}) == 400
    assert post(f"/train/{MODEL}?run_sync=true", {"name": "x" * 201}) == 400


def test_sessions_stay_in_their_folder(server: Server, studies: Studies, tmp_path: Path) -> None:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        entry = tarfile.TarInfo("../../../outside.txt")
        entry.size = 3
        tar.addfile(entry, io.BytesIO(b"bad"))
    files = {"files": ("a.tar", archive.getvalue())}
    answer = requests.put(f"{server.url}/session/?uncompress=true", files=files, timeout=60)
    assert answer.status_code == 400
    assert not list(server.work_dir.parent.parent.rglob("outside.txt"))
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "meta.info").write_text(json.dumps({"image": "/nowhere"}))
    for request in ("get", "delete"):
        assert getattr(requests, request)(f"{server.url}/session/..%2F{victim.name}", timeout=60).status_code == 404
    requests.post(f"{server.url}/infer/{MODEL}", params={"session_id": str(victim)}, data={"params": "{}"}, timeout=60)
    assert victim.is_dir()
    # a good one is served
    files = {"files": ("open.nii.gz", studies.images[studies.open].read_bytes())}
    session = requests.put(f"{server.url}/session/", files=files, timeout=60).json()["session_id"]
    answer = requests.post(
        f"{server.url}/infer/{MODEL}",
        params={"session_id": session, "output": "json"},
        data={"params": json.dumps({"moving": "atlas_a", "preset": "fast", "result": "transform"})},
        timeout=600,
    )
    assert answer.status_code == 200, answer.text


def test_one_bad_study_does_not_end_a_batch(server: Server, studies: Studies) -> None:
    # put into the folder by hand, unseen by the checks of uploads
    folder = server.work_dir.parent / "studies"
    (folder / "broken.nii.gz").write_bytes(studies.images["later_1"].read_bytes()[:5000])
    for _ in range(50):
        listed = requests.get(f"{server.url}/datastore/?output=all", timeout=60).json()["objects"]
        if "broken" in listed:
            break
        time.sleep(0.2)
    body = {"moving": "atlas_a", "images": ["broken", "later_1"], "preset": "fast"}
    answer = requests.post(f"{server.url}/batch/infer/{MODEL}?run_sync=true", json=body, timeout=600).json()
    assert "is cut off or damaged" in answer["broken"]["error"]
    assert str(folder) not in answer["broken"]["error"]
    assert answer["later_1"]["params"]["moving"] == "atlas_a"
    requests.delete(f"{server.url}/datastore/image", params={"id": "broken"}, timeout=60)


def test_active_learning_survives_what_clients_write(server: Server, studies: Studies) -> None:
    info = {"info": json.dumps({"strategy": {"worst_registered": {"ts": "soon"}}})}
    requests.put(f"{server.url}/datastore/image/info", params={"image": "later_1"}, data=info, timeout=60)
    answer = requests.post(f"{server.url}/activelearning/worst_registered", json={}, timeout=600)
    assert answer.status_code == 200
    assert answer.json()["id"] in {studies.open, *studies.others}


def test_a_relative_name_in_the_servers_folder_is_no_study(server: Server, studies: Studies) -> None:
    answer = server.infer("server.log", moving="atlas_a")  # the server's working folder holds it
    assert answer.status_code == 404


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"steps": 501}, "steps: expected 1 to 500"),
        ({"steps": -1}, "steps: expected a whole number"),
        ({"steps": 1e99}, "steps"),
        ({"steps": "many"}, "steps: expected a whole number"),
        ({"atlases": 99}, "atlases: expected 2 to 10"),
        ({"result": "everything"}, "result: expected one of"),
        ({"similarity": "$import os"}, "similarity: expected one of"),
        ({"weights": "../../x.pt"}, "weights: expected one of"),
        ({"preset": {"a": 1}}, "preset: expected one of"),
        ({"result_extension": ".exe"}, "result_extension: expected one of"),
        ({"result_dtype": "object"}, "result_dtype: expected one of"),
        ({"moving": "open"}, "is the open study itself"),
        ({"moving": "later_1"}, "has no final label"),
        ({"moving": "fuse", "result": "warped"}, "with moving 'fuse' only 'label'"),
        ({"moving_modality": "pet"}, "moving_modality: expected ct or mr"),
    ],
)
def test_wrong_options(server: Server, studies: Studies, params: dict, words: str) -> None:
    answer = server.infer(studies.open, **{"moving": "atlas_a", **params})
    assert answer.status_code == 400
    assert words in answer.json()["detail"]


def test_unknown_ids_are_not_found(server: Server, studies: Studies) -> None:
    assert server.infer(studies.open, moving="nobody").status_code == 404
    assert server.infer("nobody", moving="atlas_a").status_code == 404
    wrong = requests.post(
        f"{server.url}/infer/other", params={"image": studies.open}, data={"params": "{}"}, timeout=60
    )
    assert wrong.status_code == 404
    assert requests.post(f"{server.url}/activelearning/other", json={}, timeout=60).status_code == 404


def test_uploads_must_be_volumes(server: Server, studies: Studies, tmp_path: Path) -> None:
    whole = studies.images[studies.open].read_bytes()
    flat = tmp_path / "flat.nii.gz"
    itk.imwrite(itk.image_from_array(np.zeros((8, 8), np.float32)), str(flat))
    for name, content in (
        ("cut.nii.gz", whole[: len(whole) // 2]),
        ("text.nii.gz", b"this is no image"),
        ("empty.nii.gz", b""),
        ("flat.nii.gz", flat.read_bytes()),
        ("program.exe", whole),
    ):
        answer = requests.put(
            f"{server.url}/datastore/image", params={"image": "bad"}, files={"file": (name, content)}, timeout=60
        )
        assert answer.status_code == 400, (name, answer.text)
        assert "Traceback" not in answer.text
    assert "bad" not in requests.get(f"{server.url}/datastore/?output=all", timeout=60).json()["objects"]


@pytest.mark.parametrize("trick", ["../../stolen", "a/b", "..", ".hidden"])
def test_uploads_stay_in_the_datastore(server: Server, studies: Studies, trick: str) -> None:
    before = sorted(path for path in server.work_dir.parent.rglob("*") if "log" not in path.name)
    content = {"file": ("x.nii.gz", studies.images[studies.open].read_bytes())}
    answer = requests.put(f"{server.url}/datastore/image", params={"image": trick}, files=content, timeout=60)
    assert answer.status_code == 400
    label = {"label": ("x.nii.gz", studies.labels["atlas_a"].read_bytes())}
    where = {"image": "atlas_a", "tag": trick}
    answer = requests.put(f"{server.url}/datastore/label", params=where, files=label, timeout=60)
    assert answer.status_code == 400
    assert sorted(path for path in server.work_dir.parent.rglob("*") if "log" not in path.name) == before


def test_an_image_is_not_overwritten(server: Server, studies: Studies) -> None:
    content = {"file": ("x.nii.gz", studies.images["atlas_b"].read_bytes())}
    answer = requests.put(f"{server.url}/datastore/image", params={"image": "atlas_a"}, files=content, timeout=60)
    assert answer.status_code == 409


def test_labels_must_fit_their_image(server: Server, studies: Studies, tmp_path: Path) -> None:
    image = itk.imread(str(studies.images["later_2"]))
    halves = itk.image_from_array(np.full(itk.array_view_from_image(image).shape, 0.5, np.float32))
    halves.CopyInformation(image)
    itk.imwrite(halves, str(tmp_path / "halves.nii.gz"))
    good = studies.labels["later_2"].read_bytes()
    for content, params, words in (
        (studies.labels["atlas_a"].read_bytes(), {}, "its grid"),
        ((tmp_path / "halves.nii.gz").read_bytes(), {}, "not all whole numbers"),
        (good[:2000], {}, "cut off or damaged"),
        (good, {"label_info": "liver"}, "label_info"),
        (good, {"label_info": [{"name": 3, "idx": "x"}]}, "label_info"),
    ):
        answer = requests.put(
            f"{server.url}/datastore/label",
            params={"image": "later_2", "tag": "final"},
            data={"params": json.dumps(params)},
            files={"label": ("l.nii.gz", content)},
            timeout=60,
        )
        assert answer.status_code == 400, answer.text
        assert words in answer.json()["detail"]
    unknown = requests.put(
        f"{server.url}/datastore/label",
        params={"image": "nobody", "tag": "final"},
        files={"label": ("l.nii.gz", good)},
        timeout=60,
    )
    assert unknown.status_code == 404


def test_a_final_label_is_not_overwritten_by_the_model(server: Server, studies: Studies) -> None:
    answer = server.infer("atlas_b", moving="atlas_a", save_label=True, label_tag="final")
    assert answer.status_code == 409


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"max_epochs": 0}, "max_epochs"),
        ({"max_epochs": 1.5}, "max_epochs"),
        ({"learning_rate": "fast"}, "learning_rate"),
        ({"name": "../x"}, "can't be an id"),
        ({"name": "default"}, "can't be a model's name"),
        ({"weights": "nothing"}, "weights: expected one of"),
        ({"resume": True}, "resume: give the name"),
    ],
)
def test_wrong_training_requests(server: Server, body: dict, words: str) -> None:
    answer = requests.post(f"{server.url}/train/{MODEL}?run_sync=true", json=body, timeout=60)
    assert answer.status_code == 400
    assert words in answer.json()["detail"]


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        ("/train/unigradicon", {"epochs": 3}, 400, "epochs: unknown, did you mean 'max_epochs'?"),
        ("/train/unigradicon", {"max_epochs": "ten"}, 400, "max_epochs: expected a whole number"),
        ("/train/unigradicon", {"pairs_per_epoch": [5]}, 400, "pairs_per_epoch: expected a whole number"),
        ("/train/unigradicon", {"learning_rate": 1}, 400, "learning_rate: expected a number from 1e-08 to 0.1"),
        ("/train/unigradicon", {"learning_rate": "nan"}, 400, "learning_rate: expected a number"),
        ("/train/unigradicon", {"resume": "perhaps"}, 400, "resume: expected true or false"),
        ("/train/unigradicon", {"name": 7}, 400, "name: expected an id"),
        ("/train/unigradicon", {"name": "epoch"}, 400, "can't be a model's name"),
        ("/train/unigradicon", {"weights": "lost.pt"}, 400, "weights: expected one of"),
        ("/train/unigradicon", {"name": "lost", "resume": True}, 404, "resume: there is no training 'lost'"),
        ("/train/other", {}, 404, "model: there is no 'other' to train"),
        ("/train/%2e%2e", {}, 404, "model: there is no '..' to train"),
        ("/train/", {"max_epochs": 0}, 400, "max_epochs"),
        ("/train/unigradicon", [1], 422, "body: Input should be a valid dictionary"),
        ("/batch/infer/unigradicon", {"moving": "atlas_a", "preset": "slow"}, 400, "preset: expected one of"),
        ("/batch/infer/unigradicon", {"moving": "nobody"}, 404, "moving: there is no study 'nobody'"),
        ("/batch/infer/unigradicon", {"moving": "later_1"}, 400, "has no final label"),
        ("/batch/infer/unigradicon", {"moving": "atlas_a", "images": ["x"]}, 404, "images: there is no study 'x'"),
        ("/batch/infer/other", {"moving": "atlas_a"}, 404, "model: there is no 'other'"),
        ("/scoring/dice", {}, 404, "method: there is no scoring 'dice'"),
    ],
)
def test_what_runs_in_the_background_is_refused_at_once(
    server: Server, path: str, body: object, status: int, words: str
) -> None:
    answer = requests.post(f"{server.url}{path}", json=body, timeout=60)
    assert (answer.status_code, isinstance(answer.json()["detail"], str)) == (status, True), answer.text
    assert words in answer.json()["detail"]
    for kind in ("train", "batch/infer", "scoring"):
        asked = requests.get(f"{server.url}/{kind}/".replace("infer/", "infer"), params={"all": True}, timeout=60)
        found = asked.json() if asked.status_code == 200 else []
        assert not [task for task in found if task["status"] == "SUBMITTED"]


def test_an_unknown_id_does_not_end_a_batch(server: Server) -> None:
    body = {"moving": "atlas_a", "images": ["nobody", "../x", "later_1", "later_1"], "preset": "fast"}
    answer = requests.post(f"{server.url}/batch/infer/{MODEL}?run_sync=true", json=body, timeout=600)
    assert answer.status_code == 200, answer.text
    found = answer.json()
    assert set(found) == {"nobody", "../x", "later_1"}
    assert found["nobody"] == {"error": "images: there is no study 'nobody'"}
    assert "can't be an id" in found["../x"]["error"]
    assert found["later_1"]["params"]["moving"] == "atlas_a"


@pytest.mark.parametrize(
    ("method", "path", "form", "status", "words"),
    [
        ("post", "/infer/unigradicon?image=open", {"params": "[1]"}, 400, "params: expected a JSON object"),
        ("post", "/infer/unigradicon?image=open", {"params": "{"}, 400, "params: expected a JSON object"),
        ("post", "/infer/unigradicon?image=open&output=dicom_seg", {"params": "{}"}, 400, "dicom_seg"),
        ("post", "/infer/unigradicon", {"params": "{}"}, 400, "image: expected an id"),
        ("post", "/infer/unigradicon?session_id=x", {"params": "{}"}, 404, "there is no session 'x'"),
        ("post", "/infer/unigradicon?image=%2e%2e", {"params": "{}"}, 400, "can't be an id"),
        ("put", "/datastore/image/info?image=open", {"info": "5"}, 400, "info: expected a JSON object"),
        ("put", "/datastore/label/info?label=atlas_a&tag=final", {"info": "x"}, 400, "info: expected a JSON object"),
        ("get", "/datastore/image?image=%2e%2e", None, 400, "can't be an id"),
        ("get", "/datastore/image?image=%252e%252e", None, 400, "can't be an id"),
        ("get", "/datastore/image/info?image=%2e%2e", None, 400, "can't be an id"),
        ("get", "/datastore/image/info?image=nobody", None, 404, "there is no study 'nobody'"),
        ("get", "/datastore/label?label=%2e%2e&tag=final", None, 400, "can't be an id"),
        ("get", "/datastore/label?label=atlas_a&tag=%2e%2e", None, 400, "can't be an id"),
        ("get", "/datastore/label/info?label=%2e%2e&tag=final", None, 400, "can't be an id"),
        ("delete", "/datastore/image?id=%2e%2e", None, 400, "can't be an id"),
        ("get", "/proxy/dicom/x", None, 404, "proxy: the studies are a folder"),
        ("get", "/proxy/dicom/wado/studies", None, 404, "proxy: the studies are a folder"),
        ("post", "/proxy/dicom/qido/studies", None, 404, "proxy: the studies are a folder"),
    ],
)
def test_requests_that_make_no_sense_get_one_line(
    server: Server, method: str, path: str, form: dict | None, status: int, words: str
) -> None:
    answer = requests.request(method, f"{server.url}{path}", data=form, timeout=60)
    assert (answer.status_code, isinstance(answer.json()["detail"], str)) == (status, True), answer.text
    assert words in answer.json()["detail"]


@pytest.mark.parametrize(("name", "content"), [("notes.txt", b"x"), ("a.zip", b"PK"), ("a.nii.gz", b"x"), ("a", b"")])
def test_a_session_is_a_volume(server: Server, name: str, content: bytes) -> None:
    answer = requests.put(f"{server.url}/session/", files={"files": (name, content)}, timeout=60)
    assert answer.status_code == 400, answer.text
    assert answer.json()["detail"].startswith("session: ")
    for method in ("image", "label"):
        field = {"image": "file", "label": "label"}[method]
        where = {"image": "new" if method == "image" else "atlas_a", "tag": "other"}
        answer = requests.put(
            f"{server.url}/datastore/{method}", params=where, files={field: (name, content)}, timeout=60
        )
        assert answer.status_code == 400, answer.text


def test_an_upload_is_limited(server: Server) -> None:
    header = nib.Nifti1Header()
    header.set_data_dtype(np.uint8)
    header.set_data_shape((2048, 1024, 1025))  # 2 GB and a little; a file of 350 bytes
    header["vox_offset"], header["magic"] = 352, b"n+1"
    files = {"file": ("x.nii.gz", gzip.compress(bytes(header.binaryblock) + bytes(4)))}
    answer = requests.put(f"{server.url}/datastore/image", params={"image": "x"}, files=files, timeout=60)
    assert answer.status_code in (400, 413), answer.text  # cut off, or too large
    long = {
        "Content-Length": str(3 * 2**30),
        "Content-Type": "multipart/form-data; boundary=x",
        "Expect": "100-continue",
    }
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=60)
    connection.putrequest("PUT", "/datastore/image?image=x")
    for key, value in long.items():
        connection.putheader(key, value)
    connection.endheaders()
    answered = connection.getresponse()
    assert answered.status == 413
    assert "more than 2 GB unpacked" in json.loads(answered.read())["detail"]


def test_an_uploaded_image_is_registered_and_forgotten(server: Server, studies: Studies) -> None:
    files = {"file": ("open.nii.gz", studies.images[studies.open].read_bytes())}
    answer = server.infer("", output="json", files=files, moving="atlas_a", preset="fast", result="transform")
    assert answer.status_code == 200, answer.text
    broken = server.infer("", files={"file": ("open.nii.gz", b"no image")}, moving="atlas_a")
    assert broken.status_code == 400
    assert str(server.work_dir) not in broken.text
    assert not [path for path in (server.work_dir / "tmp").iterdir() if path.suffix == ".gz"]  # nor those of before


def test_the_server_still_serves(server: Server, studies: Studies) -> None:
    assert server.process.poll() is None
    answer = server.params(studies.open, moving="atlas_a", preset="fast", result="transform")
    assert answer["quality"]["similarity_after"] < answer["quality"]["similarity_before"]
