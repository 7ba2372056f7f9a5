"""The form of a lesson: short, a percent notebook, a question first, claims, three exercises and sources last.

That it runs is checked by `.ci/run`, in fast mode.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

LESSONS = sorted((Path(__file__).parents[2] / "lessons").glob("[0-9]*.py"))
HEADER = "# ---\n# jupyter:\n"
IDS = [path.stem for path in LESSONS]


def cells(path: Path) -> list[tuple[str, str]]:
    """(kind, text) of each cell, the kind "markdown" or "code"; a Markdown cell without its comment signs."""
    found = []
    for part in re.split(r"^# %%", path.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]:
        mark, _, body = part.partition("\n")
        if mark.strip() == "[markdown]":
            lines = [line for line in body.splitlines() if line.strip()]
            assert all(line.startswith("#") for line in lines), f"code in a Markdown cell: {lines}"
            found.append(("markdown", "\n".join(line.removeprefix("#").removeprefix(" ") for line in lines)))
        else:
            assert not mark.strip(), f"an unknown kind of cell: {mark}"
            found.append(("code", body))
    return found


@pytest.mark.parametrize("path", LESSONS, ids=IDS)
def test_it_is_a_short_percent_notebook(path):
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") < 250
    assert text.startswith(HEADER)
    assert "formats: py:percent" in text.partition("# %%")[0]
    kinds = [kind for kind, _ in cells(path)]
    assert kinds.count("markdown") >= 5
    assert kinds.count("code") >= 4
    for kind, body in cells(path):
        if kind == "code":
            ast.parse(body)  # a cell is whole: it can be run alone


@pytest.mark.parametrize("path", LESSONS, ids=IDS)
def test_it_begins_with_its_question(path):
    kind, first = cells(path)[0]
    assert kind == "markdown"
    assert first.startswith("# ")
    assert re.search(r"\*\*The question\.\*\* [^*]*\?", first)


@pytest.mark.parametrize("path", LESSONS, ids=IDS)
def test_it_is_called_as_all_lessons_are(path):
    text = path.read_text(encoding="utf-8")
    assert f'begin("{path.stem}")' in text
    assert "lesson.save(" in text
    assert "plt.show" not in text  # a script would wait for a window to be closed


@pytest.mark.parametrize("path", LESSONS, ids=IDS)
def test_it_ends_with_claims_exercises_and_sources(path):
    (before, found), (code, claims), (last, end) = cells(path)[-3:]
    assert (before, code, last) == ("markdown", "code", "markdown")
    assert re.search("^## What we found$", found, flags=re.MULTILINE)
    asserts = [node for node in ast.walk(ast.parse(claims)) if isinstance(node, ast.Assert)]
    assert len(asserts) >= 4
    head, exercises, sources = re.split(r"^## (?:Exercises|Sources)$", end, flags=re.MULTILINE)
    assert not head.strip()
    assert re.findall(r"^(\d)\. ", exercises, flags=re.MULTILINE) == ["1", "2", "3"]
    assert re.search(r"arXiv \d{4}\.\d{5}|\(\d{4}\)|NeurIPS \d{4}", sources)
    assert "The code: `minipeft/" in sources


@pytest.mark.parametrize("path", LESSONS, ids=IDS)
def test_the_code_that_it_names_is_there(path):
    root = path.parents[1]
    for name in re.findall(r"`((?:minipeft|tests|benchmarks)/[\w/]+\.py)`", path.read_text(encoding="utf-8")):
        assert (root / name).exists(), name


def test_there_are_lessons():
    assert len(LESSONS) >= 9
