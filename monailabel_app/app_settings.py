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
"""What the server's owner sets with ``--conf NAME VALUE``: the work folder and the defaults of requests."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from scripts.data.cases import MODALITIES
from scripts.networks.checkpoints import MODEL_FILES
from scripts.utils.errors import InputError
from scripts.utils.suggestions import did_you_mean

BUNDLE_ROOT = Path(__file__).resolve().parents[1]
OWN = ("work_dir", "modality", "device", "weights", "max_upload_gb")
GB = 2**30
MONAI_LABEL_OWN = ("server_mode", "models", "preload")  # of MONAI Label itself


@dataclass(frozen=True)
class AppSettings:
    """The options of ``--conf``."""

    work_dir: Path
    """Folder of all that the app writes: uploads, results on their way, trained models."""
    modality: str = "mr"
    """ct or mr: of studies whose image info does not say (``modality``)."""
    device: str = "cpu"
    """Where registration and training run."""
    weights: str = "default"
    """What registrations start from unless the request says otherwise."""
    max_upload_bytes: int = 2 * GB
    """Of what one request sends, and of each file, unpacked."""

    @property
    def models_dir(self) -> Path:
        """Weights that were trained through the server."""
        return self.work_dir / "models"

    @property
    def training_dir(self) -> Path:
        """One folder for each training run."""
        return self.work_dir / "training"

    @property
    def temporary_dir(self) -> Path:
        """Uploads and results; nothing here outlives its request."""
        return self.work_dir / "tmp"

    def weights_by_name(self) -> dict[str, dict[str, str]]:
        """Return the weights that can be asked for, with the bundle's options that select them; the default first.

        The published ones are offered where they have been fetched.
        """
        found = {"default": {"model": "default"}, "none": {"model": "none"}}
        found |= {name: {"model": name} for name, file in MODEL_FILES.items() if (BUNDLE_ROOT / file).is_file()}
        found |= {path.stem: {"ckpt_path": str(path)} for path in sorted(self.models_dir.glob("*.pt"))}
        first = self.weights if self.weights in found else "default"
        return {first: found[first], **found}


def default_work_dir(studies: str) -> Path:
    """Return the folder beside the studies, or in the home folder where these are a DICOMweb address."""
    if studies.startswith(("http://", "https://")):
        return Path.home() / ".unigradicon-monailabel"
    path = Path(studies).resolve()
    return path.with_name(f"{path.name}-work")


def read_settings(conf: Mapping[str, Any], studies: str) -> AppSettings:
    """Return the settings of ``--conf``.

    Args:
        conf: names and values, all texts.
        studies: of ``--studies``.

    Raises:
        InputError: an unknown name, or a value that can't be used.
    """
    for name in conf:
        if name not in (*OWN, *MONAI_LABEL_OWN):
            raise InputError(f"--conf {name}: unknown{did_you_mean(name, OWN)}; known: {', '.join(OWN)}")
    check_studies(studies)
    modality = str(conf.get("modality", "mr")).lower()
    if modality not in MODALITIES:
        raise InputError(f"--conf modality: expected ct or mr, got '{modality}'")
    device = str(conf.get("device") or ("cuda" if torch.cuda.is_available() else "cpu"))
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"--conf device: '{device}' can't be used ({reason}); give cpu, cuda or cuda:N") from error
    most = _gigabytes(conf.get("max_upload_gb", "2"))
    work_dir = Path(conf.get("work_dir") or default_work_dir(studies)).expanduser().resolve()
    if work_dir.is_relative_to(BUNDLE_ROOT / "monailabel_app"):
        raise InputError(f"--conf work_dir: '{work_dir}' lies in the app itself; give a folder outside of it")
    settings = AppSettings(work_dir, MODALITIES[modality], device, str(conf.get("weights", "default")), most)
    try:
        for folder in (settings.models_dir, settings.training_dir, settings.temporary_dir):
            folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=work_dir):
            pass
    except OSError as error:
        raise InputError(f"--conf work_dir: '{work_dir}' can't be written ({error.strerror}); give another") from error
    if settings.weights not in settings.weights_by_name():
        known = ", ".join(settings.weights_by_name())
        raise InputError(f"--conf weights: '{settings.weights}' is not there; known: {known}")
    return settings


def check_studies(studies: str) -> None:
    """Refuse studies that are neither a folder nor the address of a DICOMweb server.

    Raises:
        InputError: one line with what came.
    """
    expected = "expected a folder, or the address of a DICOMweb server (http://HOST/dicom-web)"
    scheme, separator, rest = studies.partition("://")
    if not studies.strip():
        raise InputError(f"--studies: {expected}, got nothing")
    if separator and scheme not in ("http", "https"):
        raise InputError(f"--studies: {expected}, got '{studies}'")
    if separator and not rest.split("/")[0].split("@")[-1].split(":")[0]:
        raise InputError(f"--studies: {expected}, got '{studies}', which names no host")
    if separator:
        return
    folder = Path(studies)
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise InputError(f"--studies: {expected}; '{existing}' is a file")
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise InputError(f"--studies: '{studies}' can't be written ({error.strerror}); give another folder") from error


def _gigabytes(text: Any) -> int:
    try:
        number = float(text)
    except (TypeError, ValueError):
        number = float("nan")
    if not 0 < number <= 1e6:
        raise InputError(f"--conf max_upload_gb: expected a number above 0, in GB, got '{text}'")
    return int(number * GB)
