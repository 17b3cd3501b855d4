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
"""Give the bundle thousands of broken files: each is read rightly or refused in one line, soon and in little memory.

    python -m tools.campaigns.fuzz --count 12000            # make fuzz
    python -m tools.campaigns.fuzz --first 4711 --count 1   # one case again

A worker process does the work, so that a crash or a hang is a finding, too; what it finds is printed with its number.
"""

from __future__ import annotations

import argparse
import collections
import json
import logging
import resource
import selectors
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from tools.campaigns.fuzz_case import Case
from tools.campaigns.fuzz_cases import make_case, voxels

SECONDS = 20  # that a case may take
MEMORY = 2 * 2**30  # that a case may take on top of the libraries


def judge(case: Case, preprocessing: object, good: str, folder: Path) -> str:
    """Do with the file what a registration does up to the network; return "read", "refused" or what is wrong."""
    from scripts.data.cases import load_cases
    from scripts.transforms.load import LoadVolumesd
    from scripts.utils.errors import InputError, find_input_error

    before = snapshot(folder)
    try:
        cases = load_cases(
            fixed=str(case.path),
            moving=good,
            output_dir=str(folder / "out"),
            fixed_modality=case.modality,
            moving_modality="mr",
        )
        result = preprocessing(cases[0])  # type: ignore[operator]
        volume = LoadVolumesd(keys=["fixed"])({"fixed": str(case.path)})["fixed"]
    except Exception as error:
        known = find_input_error(error)
        if snapshot(folder) != before:
            return f"the folder was changed: {sorted(snapshot(folder))}"
        if known is None:
            return f"{type(error).__name__} instead of one line: {str(error)[:300]}"
        text = str(known)
        if "\n" in text.replace(str(case.path), "") or len(text) > 1200 or str(case.path) not in text.replace("\\", ""):
            return f"no clear line: {text[:600]!r}"
        assert isinstance(known, InputError)
        return (
            f"refused though it is right: {text}"
            if case.values is not None and not case.refused and not may_refuse(case)
            else "refused"
        )
    if case.refused:
        return f"read though it is broken: {tuple(volume.shape)}, {volume.affine.tolist()}"
    values = volume.as_tensor().numpy()[0].astype(np.float64)
    if not np.isfinite(values).all() or not bool(result["fixed_image"].isfinite().all()):
        return "voxels that are not finite"
    if case.values is not None and not (
        values.shape == case.values.shape and np.allclose(values, case.values.astype(np.float32), rtol=1e-6, atol=1e-30)
    ):
        return f"other voxels: {values.ravel()[:5]} for {case.values.ravel()[:5]}"
    if case.affine is not None and not np.allclose(volume.affine, case.affine, rtol=1e-4, atol=1e-4):
        return f"another affine: {volume.affine.tolist()} for {case.affine.tolist()}"
    return "read" if case.values is not None else compare(case.path, values, np.asarray(volume.affine))


def may_refuse(case: Case) -> bool:
    """Tell whether refusing a file that could be read is right as well."""
    return case.path.suffix in (".nii", ".gz") and case.path.read_bytes()[:2] == b"\x1f\x8b"


def compare(path: Path, values: np.ndarray, affine: np.ndarray) -> str:
    """Compare with nibabel, where it reads the file."""
    if path.is_dir() or not path.name.endswith((".nii", ".nii.gz")):
        return "read"
    try:
        image = nib.load(path)
        expected = np.asarray(image.get_fdata(), np.float64)
    except Exception:
        return "read, not by nibabel"
    with np.errstate(all="ignore"):
        if expected.shape[:3] != values.shape or not np.allclose(
            expected.reshape(values.shape), values, rtol=1e-5, atol=1e-20, equal_nan=True
        ):
            return f"nibabel has other voxels: {expected.ravel()[:4]} for {values.ravel()[:4]} ({expected.shape})"
    if np.allclose(image.affine, affine, rtol=1e-3, atol=1e-3) or says_otherwise(image.header, image.affine):
        return "read"
    return f"nibabel has another affine: {image.affine.tolist()} for {affine.tolist()}"


def says_otherwise(header: Any, affine: np.ndarray) -> bool:
    """Tell whether nibabel's affine is not what counts: no code says one, other units than mm, or rounded axes."""
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    is_rounded = bool(np.abs(axes.T @ axes - np.eye(3)).max() > 1e-6)
    no_code = int(header["sform_code"]) <= 0 and int(header["qform_code"]) <= 0
    return no_code or int(header["xyzt_units"]) & 7 in (1, 3) or is_rounded


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    """Return names, sizes and times of change of what lies in a folder."""
    return {str(path): (path.lstat().st_size, path.lstat().st_mtime_ns) for path in folder.rglob("*")}


def work(first: int, count: int) -> None:
    """Judge cases, one line of JSON each on standard output."""
    from monai.bundle import ConfigParser

    logging.disable(logging.CRITICAL)
    import warnings

    warnings.simplefilter("ignore")
    root = Path(__file__).resolve().parents[2]
    parser = ConfigParser()
    parser.read_config(str(root / "configs" / "inference.yaml"))
    parser.update({"image_shape": [8, 8, 8], "model": "none", "bundle_root": str(root)})
    preprocessing = parser.get_parsed_content("preprocessing")
    with tempfile.TemporaryDirectory() as name:
        base = Path(name)
        good = base / "good.nii"
        nib.Nifti1Image(voxels(np.random.default_rng(0)), np.eye(4)).to_filename(good)
        judge(Case(good), preprocessing, str(good), base)  # the libraries load more of themselves at their first work
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
        for number in range(first, first + count):
            folder = base / str(number)
            folder.mkdir()
            print(json.dumps([number, "begins", ""]), flush=True)
            kind, case = make_case(number, folder)
            print(json.dumps([number, kind, judge(case, preprocessing, str(good), folder)]), flush=True)
            for path in sorted(folder.rglob("*"), reverse=True):
                path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
            folder.rmdir()


def run(first: int, count: int) -> tuple[collections.Counter[tuple[str, str]], list[str]]:
    """Judge cases in a worker, started anew when one ends it; return counts by kind and outcome, and findings."""
    counts: collections.Counter[tuple[str, str]] = collections.Counter()
    findings, following, end = [], first, first + count
    while following < end:
        command = [sys.executable, "-m", "tools.campaigns.fuzz", "--work", str(following), str(end - following)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as worker:
            assert worker.stdout is not None
            selector = selectors.DefaultSelector()
            selector.register(worker.stdout, selectors.EVENT_READ)
            patience = 120.0  # until the libraries are there
            while following < end:
                began = time.monotonic()
                line = worker.stdout.readline() if selector.select(patience) else ""
                patience = SECONDS
                if not line:
                    hung = worker.poll() is None and time.monotonic() - began > SECONDS - 1
                    worker.kill()
                    findings.append(f"{following}: {'hangs' if hung else f'ends the process ({worker.wait()})'}")
                    following += 1
                    break
                number, kind, outcome = json.loads(line)
                if kind == "begins":
                    continue
                following = number + 1
                known = outcome in ("read", "refused") or outcome.startswith("read, ")
                counts[(kind, outcome if known else "FOUND")] += 1
                if not known:
                    findings.append(f"{number}: {kind}: {outcome}")
    return counts, findings


def main() -> int:
    """Run the campaign of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int, default=12000)
    parser.add_argument("--work", type=int, nargs=2)
    options = parser.parse_args()
    if options.work:
        work(*options.work)
        return 0
    counts, findings = run(options.first, options.count)
    print("\n".join(findings))
    for (kind, outcome), number in sorted(counts.items()):
        print(f"{kind:16} {outcome:32} {number}")
    print(f"{options.count} cases, {len(findings)} findings")
    return 1 if findings else 0


if __name__ == "__main__":
    raise SystemExit(main())
