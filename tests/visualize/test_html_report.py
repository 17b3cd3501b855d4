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
"""The web pages: what is in them, that they need nothing else, and, where Chromium is installed, that they work."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from scripts.cohort.page import write_cohort_page, write_report_page
from scripts.cohort.table import write_table
from scripts.transforms.add_quality import AddQualityd
from scripts.transforms.postprocessing import AddMetricsd, AddTransformsd, AddWarpedLabeld
from scripts.visualize.html_report import TEMPLATES, write_pair_page
from scripts.visualize.report_images import planes_of, shown_grid
from tests.helpers.registered import registered_case

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
WORDS = {"ok": "\u2713 ok", "check": "! check", "failed": "\u2715 failed"}
NAME = 'a </script><b>"pair" & \u00e9'


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> dict[Any, Any]:
    data = registered_case(tmp_path_factory.mktemp("case"))
    data["case"] = NAME
    for step in (AddTransformsd(), AddWarpedLabeld(), AddMetricsd(), AddQualityd()):
        data = step(data)
    return data


@pytest.fixture(scope="module")
def page(case: dict[Any, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    write_pair_page(case, path)
    return path


def cohort_page(folder: Path) -> Path:
    """Write three results and their page: the second failed, the first and third have numbers that sort differently."""
    cases = []
    for number, (name, after) in enumerate((("b", 0.4), ("<img src=x>", None), ("c", 0.125))):
        case_dir = folder / f"case {number}"
        case_dir.mkdir(parents=True)
        cases.append({"case": name, "case_dir": str(case_dir)})
        if after is None:
            (case_dir / "error.json").write_text(json.dumps({"case": name, "error": "it is <broken>"}))
            continue
        report = {"case": name, "similarity": {"before": 0.5, "after": after}, "outputs": [], "seconds": 3.0}
        report["quality"] = {"verdict": "check" if name == "c" else "ok", "reasons": ["bent"] if name == "c" else []}
        (case_dir / "report.json").write_text(json.dumps(report))
        (case_dir / "report.html").write_text("x")
    write_table(cases, folder)
    path = write_cohort_page(cases, folder)
    assert path is not None
    return path


def content_of(page: Path) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text(), re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def run_in_chromium(page: Path, script: str, folder: Path) -> dict[str, Any]:
    """Open a copy of a page that runs a script once it is ready; return what that put into ``result``."""
    probe = (
        "<script>addEventListener('error', e => { document.body.dataset.error = e.message; });"
        "const wait = setInterval(() => { if (!document.body.dataset.ready) return; clearInterval(wait);"
        f"const result = {{}}; {script}; document.body.dataset.result = JSON.stringify(result); }}, 20);</script>"
    )
    copy = folder / "copy.html"
    copy.write_text(page.read_text().replace("</body>", probe + "</body>"))
    attributes: dict[str, str | None] = {}
    for budget in (20_000, 60_000, 180_000):  # ms of the page's own clock, which runs ahead of a busy machine
        done = subprocess.run(
            [
                *(str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
                *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
                *(f"--user-data-dir={folder / 'profile'}", f"--virtual-time-budget={budget}", "--dump-dom"),
                copy.as_uri(),
            ],
            capture_output=True,
            text=True,
            timeout=300,
        )
        attributes = next((dict(a) for tag, a in _tags(done.stdout) if tag == "body"), {})
        if "data-result" in attributes or "data-error" in attributes:
            break
    assert "data-error" not in attributes, attributes["data-error"]
    assert "data-result" in attributes, "the page was not ready in time"
    return json.loads(attributes["data-result"] or "")


def _tags(text: str) -> list[tuple[str, list[tuple[str, str | None]]]]:
    found = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            found.append((tag, attrs))

    Reader().feed(text)
    return found


def text_of(page: Path, tag: str) -> list[str]:
    """Return the text of the elements of one kind."""
    found: list[str] = []
    inside = []

    class Reader(HTMLParser):
        def handle_starttag(self, name: str, attrs: list[tuple[str, str | None]]) -> None:
            inside.append(name)
            if name == tag:
                found.append("")

        def handle_endtag(self, name: str) -> None:
            while inside and inside.pop() != name:
                pass

        def handle_data(self, data: str) -> None:
            if tag in inside:
                found[-1] += data

    Reader().feed(page.read_text())
    return found


def test_the_page_of_a_pair_shows_verdict_figures_and_files(case: dict[Any, Any], page: Path) -> None:
    quality = case["quality"]
    assert text_of(page, "p")[0] == f"{WORDS[quality['verdict']]} {'; '.join(quality['reasons'])}"
    names, values = text_of(page, "dt"), text_of(page, "dd")
    figures = dict(zip(names, values, strict=True))
    assert names[0] == "Similarity loss (lower is better)"
    assert figures["Folding"].endswith(" % of the cells")
    assert {"Mean Dice", "Forward, then inverse", "Bending", "fixed", "moving"} <= figures.keys()
    assert figures["moving"] == Path(case["moving"].meta["filename_or_obj"]).name


def test_a_page_is_whole_and_asks_for_nothing(page: Path, tmp_path: Path) -> None:
    for path in (page, cohort_page(tmp_path / "cohort")):
        text = path.read_text()
        assert "{{" not in text
        assert "{%" not in text
        assert "--ink" in text
        assert not re.search(r"(src|href)\s*=\s*[\"']?(https?:|//)", text)
        assert "default-src 'none'" in text
        assert not [tag for tag, attributes in _tags(text) if tag == "link" or dict(attributes).get("src")]


def test_names_and_errors_are_data_and_not_markup(page: Path, tmp_path: Path) -> None:
    assert text_of(page, "h1") == [NAME]
    assert text_of(page, "title") == [f"Registration: {NAME}"]
    assert page.read_text().count("</script>") == 2
    rows = content_of(cohort_page(tmp_path / "cohort"))["rows"]
    assert [row["case"] for row in rows] == ["b", "<img src=x>", "c"]
    assert rows[1]["error"] == "it is <broken>"
    assert rows[0]["page"] == "case%200/report.html"
    assert "page" not in rows[1]
    assert "<img" not in (tmp_path / "cohort" / "cohort.html").read_text()


def test_the_pictures_show_the_image_the_right_way_around(case: dict[Any, Any]) -> None:
    """A bright spot at a known place of an oblique image is found at that place in all three planes."""
    data = dict(case)
    fixed = data["fixed"].clone()
    fixed[...] = 0
    spot = np.array([22, 8, 15])
    fixed[0, spot[0] - 1 : spot[0] + 2, spot[1] - 1 : spot[1] + 2, spot[2] - 1 : spot[2] + 2] = 100
    data["fixed"] = fixed
    grid = shown_grid(fixed)
    world = fixed.affine.double()[:3, :3] @ torch.tensor(spot).double() + fixed.affine.double()[:3, 3]
    at = (torch.linalg.inv(grid.affine_ras) @ torch.cat([world, torch.ones(1, dtype=torch.float64)]))[:3].numpy()
    # axes of the shown grid point to left, posterior and superior
    assert [int(np.argmax(np.abs(grid.affine_ras[:3, n]))) for n in range(3)] == [0, 1, 2]
    assert [float(grid.affine_ras[n, n]) > 0 for n in range(3)] == [False, False, True]
    planes, _ = planes_of(data)
    for plane, axis, column, row in ((planes[0], 2, 0, 1), (planes[1], 1, 0, 2), (planes[2], 0, 1, 2)):
        strip = Image.open(io.BytesIO(base64.b64decode(plane["layers"]["fixed"].split(",")[1])))
        slices = np.asarray(strip, dtype=float).reshape(plane["count"], plane["height"], plane["width"])
        found = np.unravel_index(np.argmax(slices), slices.shape)
        height = grid.shape[2] - 1 - at[2] if row == 2 else at[row]
        expected = (at[axis] * (plane["count"] - 1) / (grid.shape[axis] - 1), height, at[column])
        np.testing.assert_allclose(found, expected, atol=5)
        assert plane["step"] * (plane["count"] - 1) > 20  # mm


def test_every_control_has_a_label_and_words_have_contrast(page: Path, tmp_path: Path) -> None:
    for path in (page, cohort_page(tmp_path / "cohort")):
        tags = _tags(path.read_text())
        assert dict(next(a for tag, a in tags if tag == "html"))["lang"] == "en"
        ids = {dict(a)["id"] for tag, a in tags if tag == "input"}
        assert ids <= {dict(a).get("for") for tag, a in tags if tag == "label"}
        assert {tag for tag, _ in tags} >= {"main", "h1", "title"}
    style = (TEMPLATES / "style.css").read_text()
    colors = dict(re.findall(r"--(\w+): (#\w{6})", style))
    pairs = [(colors["ink"], colors["paper"]), (colors["soft"], colors["tint"]), (colors["focus"], colors["paper"])]
    verdicts = re.findall(r"\.(?:ok|check|failed[^{]*) \{ color: (#\w{6});.*?background: (#\w{6})", style)
    assert len(verdicts) == 3
    for front, back in pairs + verdicts:
        assert contrast(front, back) >= 4.5, (front, back)  # WCAG 2, AA


def contrast(first: str, second: str) -> float:
    def luminance(color: str) -> float:
        parts = [int(color[n : n + 2], 16) / 255 for n in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)


def test_the_report_command_makes_table_and_page_from_a_folder(tmp_path: Path) -> None:
    cohort_page(tmp_path / "cohort")
    for name in ("cohort.html", "cohort.csv"):
        (tmp_path / "cohort" / name).unlink()
    write_report_page(tmp_path / "cohort")
    assert len(content_of(tmp_path / "cohort" / "cohort.html")["rows"]) == 3
    assert (tmp_path / "cohort" / "cohort.csv").is_file()


@needs_chromium
def test_layers_sliders_and_slices_work_in_a_browser(page: Path, tmp_path: Path) -> None:
    script = """
    const canvases = [...document.querySelectorAll("canvas")];
    const pixels = c => c.getContext("2d").getImageData(0, 0, c.width, c.height).data;
    const sum = () => canvases.map(c => pixels(c).reduce((a, b) => a + b, 0));
    const set = (input, value) => { input.value = value; input.dispatchEvent(new Event("input")); };
    result.title = document.title; result.canvases = canvases.length; result.layers = {};
    for (const radio of document.querySelectorAll("input[name=layer]")) {
      radio.click(); result.layers[radio.value] = sum();
    }
    document.getElementById("layer-moving").click();
    set(document.getElementById("mix"), 0); result.before = sum();
    set(document.getElementById("mix"), 100); result.after = sum();
    const slice = document.querySelector("figure input"); set(slice, 3); result.slice = sum();
    result.labels = canvases.map(c => c.getAttribute("aria-label"));
    result.roles = canvases.map(c => c.getAttribute("role"));
    slice.focus(); result.focused = document.activeElement === slice;
    result.unlabelled = [...document.querySelectorAll("input")].filter(i => !i.labels.length).length
    """
    result = run_in_chromium(page, script, tmp_path)
    assert result["title"] == f"Registration: {NAME}"
    assert result["canvases"] == 3
    assert set(result["layers"]) == {
        *("checkerboard", "difference", "fixed", "moving", "grid", "jacobian", "inconsistency")
    }
    assert len({tuple(sums) for sums in result["layers"].values()}) == 7
    assert result["before"] != result["after"]
    assert result["slice"][0] != result["after"][0]
    assert result["slice"][1:] == result["after"][1:]
    assert "4 of" in result["labels"][0]
    assert result["roles"] == ["img"] * 3
    assert result["focused"]
    assert result["unlabelled"] == 0


@needs_chromium
def test_the_table_sorts_and_filters_in_a_browser(tmp_path: Path) -> None:
    script = """
    const names = () => [...document.querySelectorAll("tbody tr")].map(row => row.cells[0].textContent);
    const head = text => [...document.querySelectorAll("thead button")].find(b => b.textContent === text);
    result.first = names(); result.sort = document.querySelector("[data-key=verdict]").getAttribute("aria-sort");
    head("Loss after").click(); result.up = names(); head("Loss after").click(); result.down = names();
    result.aria = head("Loss after").parentNode.getAttribute("aria-sort");
    const filter = document.getElementById("filter"); filter.value = "bent"; filter.dispatchEvent(new Event("input"));
    result.filtered = names(); result.count = document.getElementById("number").textContent;
    result.images = document.images.length
    """
    result = run_in_chromium(cohort_page(tmp_path / "cohort"), script, tmp_path)
    assert result["first"] == ["<img src=x>", "c", "b"]  # failed, check, ok
    assert result["sort"] == "ascending"
    assert result["up"] == ["c", "b", "<img src=x>"]  # what has no number comes last
    assert result["down"] == ["b", "c", "<img src=x>"]
    assert result["aria"] == "descending"
    assert result["filtered"] == ["c"]
    assert result["count"] == "1 of 3"
    assert result["images"] == 0
