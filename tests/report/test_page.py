from __future__ import annotations

import base64
import dataclasses
import json
import os
import shlex
from html.parser import HTMLParser

import pytest

from minipeft.cli import main
from minipeft.errors import UserError
from minipeft.report.page import COLUMNS, IMAGES, PLOTS, write_page
from minipeft.report.plots import FIGURES
from minipeft.report.summary import MEASURES

CONFIG = {
    "model": "minilm",
    "task": "sarcasm",
    "methods": ["full", "lora:1", "lora:8"],
    "seeds": 3,
    "train_size": 1000,
    "test_size": 500,
    "epochs": 3,
    "batch_size": 16,
    "max_length": 48,
    "backend": "numpy",
    "workers": 2,
    "data": "1f2e3d",
    "tune": None,
    "lr": {"full": 6e-05, "lora:1": 0.002, "lora:8": 0.002},
}
STUB = "<svg xmlns='http://www.w3.org/2000/svg'/>"
EMPTY = {"meta", "img", "link", "br", "hr", "input"}


class Outline(HTMLParser):
    """Checks that every element is closed in order; collects elements, attributes and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.scripts: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "script":
            self.scripts.append(data)
        else:
            self.words += data

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture
def run_folder(write_results, tmp_path):
    """A run whose figures stand already: stubs, quicker than drawing them."""
    write_results(seeds=3)
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "figures").mkdir()
    for name in FIGURES:
        (tmp_path / "figures" / f"{name}.svg").write_text(STUB)
    return tmp_path


def data_of(page: Outline) -> dict:
    """What the plots are drawn from."""
    return json.loads(page.scripts[0])


def test_the_page_holds_every_method_every_figure_and_every_column(run_folder):
    path = write_page(run_folder)
    assert path == run_folder / "report.html"
    page = Outline(path.read_text(encoding="utf-8"))
    for label in (
        "Full fine-tuning",
        "Top-K layers K=2",
        "Adapters R=16",
        "LoRA r=8",
        "Intrinsic dimension d=1000",
        "Head only",
    ):
        assert label in page.words
    assert "22,700,000" in page.words
    assert "±" in page.words
    images = page.all("img")
    assert len(images) == len(IMAGES) == 2
    data = data_of(page)
    assert data["cells"][0]["label"] == "Full fine-tuning"
    assert data["layers"] == ["embed", *(f"blocks.{i}" for i in range(6)), "head", "method"]
    assert len(data["axes"]) == 4
    assert set(PLOTS) <= {attributes.get("id") for _, attributes in page.elements}
    assert all(image["src"].startswith("data:image/svg+xml;base64,") and len(image["alt"]) > 40 for image in images)
    for name, (heading, _, meaning) in COLUMNS.items():
        of_other_tasks = name in ("perplexity", "bits_per_byte", "untrained")
        assert page.words.count(heading) >= (1 if of_other_tasks else 2)
        assert meaning in page.words
    assert data["score"]["name"] == "Accuracy"
    assert data["cells"][0]["score"] == pytest.approx(100 * 0.867, abs=2)
    assert set(COLUMNS) == set(MEASURES)


def test_a_text_is_scored_in_bits_per_byte(write_results, tmp_path):
    write_results(seeds=2, accuracy="", perplexity=9.5, bits_per_byte=1.25, untrained=2.5)
    (tmp_path / "config.json").write_text("{}")
    page = Outline(write_page(tmp_path).read_text(encoding="utf-8"))
    data = data_of(page)
    assert data["score"]["name"] == "Bits per byte"
    assert {cell["score"] for cell in data["cells"]} == {1.25}
    assert "1.250" in data["cells"][0]["hover"]
    assert page.words.count("Accuracy %") == 1  # among the columns that are explained


def test_the_page_needs_nothing_else(run_folder):
    page = Outline(write_page(run_folder).read_text(encoding="utf-8"))
    assert all("src" not in attributes for attributes in page.all("script"))
    assert not page.all("link")
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {attributes["aria-labelledby"] for attributes in page.all("section")} <= set(ids)


def test_the_command_can_be_copied(run_folder):
    page = Outline(write_page(run_folder).read_text(encoding="utf-8"))
    assert (
        "minipeft compare --model minilm --task sarcasm --methods full,lora:1,lora:8 --seeds 3 --train-size 1000 "
        "--test-size 500 --epochs 3 --batch-size 16 --max-length 48 --lr full=6e-05,lora=0.002 --backend numpy --workers 2"
    ) in page.words


class Asked(Exception):
    """What `minipeft compare` would run."""


def settings_of(config: dict) -> dict:
    """Of a config.json, what a run depends on, as a run with these settings writes it."""
    return {name: value for name, value in config.items() if name not in ("data", "tune")} | {
        "tune": bool(config["tune"])
    }


@pytest.mark.parametrize("tuned", [False, True])
def test_the_command_asks_for_the_same_run(run_folder, monkeypatch, tuned):
    """The real command line, given what the page says, ends up with the settings that config.json holds."""
    config = {**CONFIG, "model": "my models/bert"}
    if tuned:
        config["tune"] = {"rates": [1e-3], "validation_size": 10}
        del config["lr"]
    (run_folder / "config.json").write_text(json.dumps(config))
    page = Outline(write_page(run_folder).read_text(encoding="utf-8"))
    (command,) = (line for line in page.words.splitlines() if line.startswith("minipeft compare "))

    def run(settings, specs, seeds, out, listener=None, tuned=False):
        asked = {
            **dataclasses.asdict(settings),
            "methods": [spec.name for spec in specs],
            "seeds": seeds,
            "tune": tuned,
        }
        raise Asked(asked if tuned else {**asked, "lr": {spec.name: spec.lr for spec in specs}})

    monkeypatch.setattr("minipeft.experiments.compare.compare", run)
    with pytest.raises(Asked) as asked:
        main(shlex.split(command)[1:])
    assert asked.value.args[0] == settings_of(config)


def test_what_comes_from_files_is_escaped(write_results, tmp_path):
    evil = "<script>alert('&')</script>"
    write_results([(evil, evil, 158_000, 0.79, 230.0)])
    (tmp_path / "config.json").write_text(
        json.dumps({**CONFIG, "model": evil, evil: [evil, {evil: evil}], "methods": [evil]})
    )
    text = write_page(tmp_path).read_text(encoding="utf-8")
    assert "<script>alert" not in text
    page = Outline(text)
    assert evil in page.words
    assert "<" not in data_of(page)["cells"][0]["label"]  # Plotly reads some HTML


def test_one_seed_shows_no_spread_and_a_diverged_run_says_so(write_results, tmp_path):
    write_results([("lora", "8", 222_000, 0.845, 232.0)], test_loss="nan")
    (tmp_path / "config.json").write_text("{}")
    page = Outline(write_page(tmp_path).read_text(encoding="utf-8"))
    assert "±" not in page.words
    assert "one seed" in page.words
    assert "diverged" in page.words
    assert data_of(page)["cells"][0]["spread"] == 0


def test_figures_are_drawn_when_they_are_older_than_the_results(run_folder):
    figure = run_folder / "figures" / "flops.svg"
    write_page(run_folder)
    assert figure.read_text() == STUB
    old = (run_folder / "results.csv").stat().st_mtime_ns - 10**9
    os.utime(figure, ns=(old, old))
    page = Outline(write_page(run_folder).read_text(encoding="utf-8"))
    assert "LoRA r=8" in figure.read_text()
    assert base64.b64encode(figure.read_bytes()).decode() in page.all("img")[-1]["src"]


@pytest.mark.parametrize(("content", "message"), [(None, "No file"), ("{", "is not JSON"), ("[1]", "holds a list")])
def test_a_bad_config_is_named(write_results, tmp_path, content, message):
    write_results()
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match=message) as error:
        write_page(tmp_path)
    assert "config.json" in str(error.value)
    assert not (tmp_path / "report.html").exists()
