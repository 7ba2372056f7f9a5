"""report.html in a browser: a reader hovers, chooses another axis, and sorts; nothing is fetched, nothing complains."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from minipeft.report.page import write_page
from minipeft.report.plots import FIGURES

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")

LISTEN = """<script>
const problems = [];
addEventListener("error", (event) => problems.push(event.message));
for (const kind of ["error", "warn"]) console[kind] = (...words) => problems.push(words.join(" "));
</script>"""

READ = """<script>
const wait = (ms) => new Promise((done) => setTimeout(done, ms));
const labels = () => [...document.querySelectorAll("table.numbers tbody th")].map((cell) => cell.textContent);
const heading = (name) => [...document.querySelectorAll("table.numbers thead th")].find((th) => th.textContent === name);
const title = () => document.querySelector("#score .xtitle").textContent;

async function point(plot, mark) {
  const box = mark.getBoundingClientRect();
  const where = { clientX: box.x + box.width / 2, clientY: box.y + box.height / 2, bubbles: true };
  document.querySelector(`#${plot} .nsewdrag`).dispatchEvent(new MouseEvent("mousemove", where));
  await wait(300);
  return document.querySelector(`#${plot} .hoverlayer`).textContent;
}

async function read() {
  await wait(500);
  const seen = { plots: {}, titles: [title()], orders: [labels()] };
  for (const name of ["score", "losses", "gradients"]) {
    seen.plots[name] = document.querySelectorAll(`#${name} .trace, #${name} .heatmaplayer image`).length;
  }
  seen.hover = await point("score", document.querySelectorAll("#score .point")[0]);
  seen.hover_gradient = await point("gradients", document.querySelector("#gradients .heatmaplayer image"));
  const select = document.getElementById("axis");
  for (const option of [1, 2, 3]) {
    select.value = option;
    select.dispatchEvent(new Event("change"));
    await wait(300);
    seen.titles.push(title());
  }
  seen.sorted = [];
  for (const name of ["Accuracy %", "Accuracy %", "Method"]) {
    heading(name).querySelector("button").click();
    seen.orders.push(labels());
    seen.sorted.push(heading(name).getAttribute("aria-sort"));
  }
  const fetched = performance.getEntriesByType("resource").map((entry) => entry.name);
  seen.fetched = fetched.filter((name) => !name.startsWith("data:"));
  seen.problems = problems;
  document.body.dataset.seen = JSON.stringify(seen);
}
read().catch((error) => { document.body.dataset.seen = JSON.stringify({ problems: [String(error), ...problems] }); });
</script>"""


@pytest.fixture
def browser() -> str:
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip(f"there is no {BROWSERS[0]} on this machine (Debian: apt-get install chromium)")
    return found


def look(browser: str, page: Path, tmp_path: Path) -> dict:
    """What the script READ saw on the page."""
    text = page.read_text(encoding="utf-8").replace("<head>", "<head>" + LISTEN, 1)
    before, _, after = text.rpartition("</body>")
    watched = tmp_path / "watched.html"
    watched.write_text(before + READ + "</body>" + after, encoding="utf-8")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--window-size=1200,3000", "--virtual-time-budget=20000"]
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    command = [browser, *options, profile, "--dump-dom", watched.as_uri()]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    seen = re.search(r'<body[^>]* data-seen="([^"]*)"', result.stdout)
    assert seen is not None, result.stderr[-2000:]
    return json.loads(html.unescape(seen[1]))


def test_a_reader_hovers_changes_the_axis_and_sorts(browser, write_results, tmp_path):
    write_results(seeds=2)
    (tmp_path / "config.json").write_text(json.dumps({"model": "minilm", "task": "sarcasm"}))
    (tmp_path / "figures").mkdir()
    for name in FIGURES:
        (tmp_path / "figures" / f"{name}.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    seen = look(browser, write_page(tmp_path), tmp_path)
    assert seen["problems"] == []
    assert seen["fetched"] == []
    assert seen["plots"] == {"score": 6, "losses": 8, "gradients": 1}
    assert "Full fine-tuning" in seen["hover"]
    assert "22,700,000 trained" in seen["hover"]
    assert re.search(r"blocks\.\d: 0?\.\d", seen["hover_gradient"])
    assert len(set(seen["titles"])) == 4
    assert "Memory" in seen["titles"][2]
    first, up, down, by_name = seen["orders"]
    assert first[0] == "Full fine-tuning"
    assert up[0] == "Head only"
    assert up[-1] == "Full fine-tuning"
    assert down == up[::-1]
    assert by_name == sorted(first)
    assert seen["sorted"] == ["ascending", "descending", "ascending"]
