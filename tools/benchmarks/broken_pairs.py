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
"""How well the verdict (scripts/metrics/quality.py) tells good registrations from broken ones: docs/quality.md.

    python -m tools.benchmarks.broken_pairs --data DIR --work DIR

Good: the pairs of ``pairs.json``, also with fixed and moving swapped. Broken: their moving image flipped along an axis
without its header saying so, half of its field of view cut off or blank, and images of another patient or anatomy.
Beside them, as a group of their own on which no limit was chosen, pairs of hippocampi, treated alike.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import itk
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from scripts.metrics.quality import verdict
from scripts.workflow import run_workflow
from tools.benchmarks.pairs import bundle_options, read_pairs, vary

GOOD = ("as_it_is", "swapped")
OTHERS = {  # of another patient first, then of another anatomy
    "brain": ("liver_dataset19_cyc_1_6", "lung"),
    "lung": ("brain_1000_1001", "liver_dataset19_cyc_1_6"),
    "liver_dataset19": ("liver_dataset23_cyc_1_4", "lung"),
    "liver_dataset23": ("liver_dataset19_cyc_1_6", "brain_1000_1001"),
}
ANATOMIES = ("brain", "lung", "liver", "hippocampus")
Options = dict[str, str]


def images_only(options: Options) -> Options:
    """Return the options without labels and landmarks, which the verdict does not use."""
    return {key: options[key] for key in ("fixed", "moving", "fixed_modality", "moving_modality")}


def change(path: str, out: Path, kind: str, axis: int) -> str:
    """Write a copy of an image that is flipped along an axis (header kept), cut in half, or half blank."""
    image = itk.imread(path)
    values, at = itk.array_from_image(image), 2 - axis
    origin, count = image.GetOrigin(), values.shape[at]
    if kind == "flipped":
        values = np.flip(values, at)
    elif kind == "half":
        values = np.take(values, range(count - count // 2, count), at)
        index = [0, 0, 0]
        index[axis] = count - count // 2
        origin = image.TransformIndexToPhysicalPoint(index)
    else:
        values = values.copy()
        values[tuple(slice(count // 2) if n == at else slice(None) for n in range(3))] = values.min()
    result = itk.image_from_array(np.ascontiguousarray(values))
    result.CopyInformation(image)
    result.SetOrigin(origin)
    out.parent.mkdir(parents=True, exist_ok=True)
    itk.imwrite(result, str(out))
    return str(out)


def variants(name: str, pair: Options, others: list[Options], work: Path) -> dict[str, Options]:
    """Return a pair as it is, swapped, and broken, by name."""
    found = {f"{name}.as_it_is": pair, f"{name}.swapped": images_only(vary(pair, "backwards", work))}
    for kind, axes in (("flipped", (0, 1, 2)), ("half", (0, 2)), ("blank", (1,))):
        for axis in axes:
            path = change(pair["moving"], work / name / f"{kind}_{axis}.nii.gz", kind, axis)
            found[f"{name}.{kind}_{axis}"] = {**pair, "moving": path}
    for number, other in enumerate(others):
        found[f"{name}.other_{number}"] = {
            **pair,
            "moving": other["moving"],
            "moving_modality": other["moving_modality"],
        }
    return found


def all_pairs(data: Path, work: Path) -> dict[str, Options]:
    """Return all pairs, good and broken."""
    pairs = {
        name: images_only(bundle_options(data, pair, work / name))
        for name, pair in read_pairs(data).items()
        if name.startswith(tuple(OTHERS))
    }
    found: dict[str, Options] = {}
    for name, pair in pairs.items():
        others = next(names for start, names in OTHERS.items() if name.startswith(start))
        found |= variants(name, pair, [pairs[other] for other in others], work)
    hippocampi = sorted(p for p in (data / "hippocampus_mr").rglob("*.nii.gz") if "label" not in str(p).lower())[20:36]
    modality = {"fixed_modality": "mr", "moving_modality": "mr"}
    for number, (fixed, moving) in enumerate(zip(hippocampi[::2], hippocampi[1::2], strict=True)):
        pair = {"fixed": str(fixed), "moving": str(moving), **modality}
        found |= variants(f"hippocampus_{number}", pair, [pairs["brain_1000_1001"], pairs["lung"]], work)
    return found


def area_under_curve(broken: np.ndarray, good: np.ndarray) -> float:
    """Return the probability that a broken pair has a higher score than a good one."""
    return float(np.mean([np.mean(score > good) + 0.5 * np.mean(score == good) for score in broken]))


def main() -> None:
    """Run and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with pairs.json")
    parser.add_argument("--work", type=Path, required=True, help="folder for images and results; resumes")
    parser.add_argument("--preset", default="fast")
    parser.add_argument("--optimization", default="field", help="field, or off: the network alone")
    parser.add_argument("--curve", type=Path, help="file for the ROC curve")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    folder = arguments.work.resolve() / ("off" if arguments.optimization == "off" else arguments.preset)
    pairs = all_pairs(arguments.data.resolve(), arguments.work.resolve() / "images")
    datalist = arguments.work.resolve() / "pairs.json"
    datalist.write_text(json.dumps([{"case": name, **pair} for name, pair in pairs.items()], indent=1))
    files = ("transforms", "displacement", "warped", "jacobian", "confidence", "overview", "page")
    options = {
        **{f"save_{name}": False for name in files},
        "datalist": str(datalist),
        "preset": arguments.preset,
        "optimization": arguments.optimization,
        "output_dir": str(folder),
    }
    run_workflow(("inference.yaml", "cohort.yaml"), options, logging=True)
    report(folder, arguments.curve, arguments.optimization != "off")


def report(folder: Path, curve: Path | None, optimized: bool = True) -> None:
    """Print verdicts by kind and anatomy and the area under the curve; draw the curve."""
    rows = json.loads((folder / "cohort.json").read_text())["cases"]
    scores: dict[str, dict[str, list[tuple[float, str]]]] = {}
    for row in rows:
        name, kind = row["case"].rsplit(".", 1)
        anatomy = next(one for one in ANATOMIES if name.startswith(one))
        quality = json.loads((Path(row["folder"]) / "report.json").read_text())["quality"]
        quality |= verdict(quality, optimized)  # by the limits of now
        kind = kind if kind.startswith("flipped") else kind.split("_")[0] if kind not in GOOD else "good"
        scores.setdefault(kind, {}).setdefault(anatomy, []).append((quality["score"], quality["verdict"]))
    print("| pairs | " + " | ".join(ANATOMIES) + " |\n|" + " --- |" * (len(ANATOMIES) + 1))
    for kind, by_anatomy in scores.items():
        cells = []
        for anatomy in ANATOMIES:
            verdicts = [name for _, name in by_anatomy.get(anatomy, [])]
            cells.append(" ".join(f"{verdicts.count(v)} {v}" for v in ("ok", "check", "failed") if v in verdicts))
        print(f"| {kind} | " + " | ".join(cells) + " |")
    figure, axes = plt.subplots(figsize=(4.2, 4))
    for label, anatomies in (("dev pairs", ANATOMIES[:3]), ("hippocampi (no limit chosen on them)", ANATOMIES[3:])):
        pooled = {
            side: np.array(
                [
                    s
                    for kind, by in scores.items()
                    if (kind == "good") == side
                    for a in anatomies
                    for s, _ in by.get(a, [])
                ]
            )
            for side in (True, False)
        }
        area = area_under_curve(pooled[False], pooled[True])
        print(
            f"{label}: area under the curve {area:.3f}, {len(pooled[True])} good and {len(pooled[False])} broken pairs"
        )
        limits = np.sort(np.concatenate([[0, np.inf], pooled[True], pooled[False]]))[::-1]
        rates = [[np.mean(pooled[side] >= limit) for limit in limits] for side in (True, False)]
        axes.step(*rates, where="post", label=f"{label}: {area:.3f}")
        axes.plot(*[np.mean(pooled[side] > 1) for side in (True, False)], "ko", markersize=4)
    axes.set(
        xlabel="good pairs that are not ok", ylabel="broken pairs that are not ok", title="verdict, area under curve"
    )
    axes.legend(loc="lower right", fontsize=7)
    axes.grid(alpha=0.3)
    if curve is not None:
        figure.savefig(curve, dpi=90, bbox_inches="tight", metadata={"Software": None})


if __name__ == "__main__":
    main()
