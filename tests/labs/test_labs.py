"""Every lab and task: the starter fails with its own message, the solution passes, and planted wrong answers fail."""

from __future__ import annotations

import functools
import importlib
import sys
import time
import tomllib
import types
import warnings
from pathlib import Path

import pytest

import minipeft
from minipeft.backend import random
from minipeft.errors import UserError
from minipeft.labs.release import release_files, starter, starter_answers
from minipeft.labs.run import load_tests, run_test
from minipeft.labs.spec import RELEASES, SPEC, all_labs, read_lab

ROOT = Path(__file__).parents[2] / "labs"
LABS = all_labs(ROOT)
EACH_LAB = pytest.mark.parametrize("number", LABS)


@functools.cache
def the_tests(number):
    lab = LABS[number]
    for name in lab.loads:
        importlib.import_module(name)
    return [*load_tests(lab.public_tests()), *load_tests(lab.hidden_tests())]


def wrong_answers(number):
    return tomllib.loads((ROOT / f"lab{number}" / "wrong.toml").read_text(encoding="utf-8"))["wrong"]


def messages(number, source, answers, task=None, until_one_fails=False):
    """[(task, message or None)] of every test (of a task) on a module of this source, in this process."""
    lab = LABS[number]
    module = types.ModuleType(lab.name)
    sys.modules[lab.name] = module
    found = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # wrong answers overflow
        exec(compile(source, f"{lab.name}.py", "exec"), vars(module))
        for test in the_tests(number):
            if task in (None, test.task):
                random.seed(0)
                found.append((test.task, run_test(test, module, minipeft, answers)))
                if until_one_fails and found[-1][1] is not None:
                    break
    return found


def solved(number):
    lab = LABS[number]
    answers = lab.folder / "answers.md"
    return lab.solution().read_text(encoding="utf-8"), answers.read_text(encoding="utf-8") if answers.exists() else ""


def test_there_are_six_labs():
    assert list(LABS) == [1, 2, 3, 4, 5, 6]


@EACH_LAB
def test_the_solution_passes(number):
    assert [m for _, m in messages(number, *solved(number)) if m is not None] == []


@EACH_LAB
def test_the_starter_fails_each_task_with_its_own_message(number):
    source, answers = solved(number)
    got = messages(number, starter(source, LABS[number]), starter_answers(answers))
    assert {task for task, _ in got} == {task.number for task in LABS[number].tasks}
    for task, message in got:
        assert message is not None
        assert message.startswith(f"Lab {number}, task {task}: "), message


@pytest.mark.parametrize("text", ["<!-- " * 20_000, "<!---->" * 20_000, "<!--" + "->" * 20_000])
def test_comments_are_cut_from_long_answers_in_no_time(text):
    """It takes a time that grows with their number, not with its square."""
    _, answers = solved(6)
    began = time.process_time()
    got = messages(6, solved(6)[0], answers.replace("## 2.", f"{text}\n## 2."), 5)
    assert time.process_time() - began < 2
    assert [message is None for _, message in got] == [True, True, True]


def test_what_is_in_comments_is_no_answer():
    _, answers = solved(6)
    first, rest = answers.split("<!-- BEGIN SOLUTION -->", 1)
    for changed in (first + "<!-- " + rest, first + "<!-- <!-- " + rest):
        got = messages(6, solved(6)[0], changed.replace("<!-- END SOLUTION -->", "-->", 1), 5)
        assert got[0][1] is not None
        assert "[0 words]" in got[0][1]
        assert [message is None for _, message in got[1:]] == [True, True]


PLANTED = [(n, wrong) for n in LABS for wrong in wrong_answers(n)]


@pytest.mark.parametrize(("number", "wrong"), PLANTED, ids=[f"{n}.{w['task']}-{w['name']}" for n, w in PLANTED])
def test_a_wrong_answer_fails_its_task(number, wrong):
    source, answers = solved(number)
    text = answers if wrong.get("file") == "answers.md" else source
    assert text.count(wrong["old"]) == 1, "the planted change fits the solution in one place"
    changed = text.replace(wrong["old"], wrong["new"])
    source, answers = (source, changed) if text is answers else (changed, answers)
    failed = [m for _, m in messages(number, source, answers, wrong["task"], True) if m is not None]
    assert failed
    assert not any(m.startswith(("SyntaxError", "NameError")) for m in failed), failed


@EACH_LAB
def test_three_wrong_answers_a_task(number):
    planted = [wrong["task"] for wrong in wrong_answers(number)]
    for task in LABS[number].tasks:
        assert planted.count(task.number) >= 3


@EACH_LAB
def test_the_release_is_built_from_the_source_as_it_is(number):
    folder = RELEASES / f"lab{number}"
    files = {path.name: path.read_text(encoding="utf-8") for path in folder.iterdir() if path.is_file()}
    assert files == release_files(LABS[number]), "run `minipeft lab build`"


@EACH_LAB
def test_the_release_holds_no_solution(number):
    names = {path.name for path in (RELEASES / f"lab{number}").iterdir() if path.name != "__pycache__"}
    assert names <= {f"lab{number}.py", f"test_lab{number}.py", "handout.md", "conftest.py", "answers.md", SPEC}
    source, _ = solved(number)
    given = (RELEASES / f"lab{number}" / f"lab{number}.py").read_text(encoding="utf-8")
    assert "SOLUTION" not in given
    cut = [line for line in source.splitlines() if line not in given.splitlines()]
    assert len(cut) > 10


@EACH_LAB
def test_a_lab_imports_no_reference_and_no_other_lab(number):
    lab = LABS[number]
    for path in (lab.solution(), lab.public_tests(), lab.hidden_tests()):
        text = path.read_text(encoding="utf-8")
        assert "import solution" not in text
        assert not any(f"import lab{n}" in text or f"from lab{n}" in text for n in LABS)
    for closed in lab.closed:
        assert f"from {closed}" not in lab.solution().read_text(encoding="utf-8")


@EACH_LAB
def test_a_hundred_points_and_a_time(number):
    assert LABS[number].points == 100
    assert 60 <= LABS[number].minutes <= 240


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("### BEGIN SOLUTION 1: a\n", "does not end"),
        ("### END SOLUTION\n", "did not begin"),
        ("### BEGIN SOLUTION 1: a\n### BEGIN SOLUTION 1: b\n", "inside another"),
        ("### BEGIN SOLUTION 9: a\n### END SOLUTION\n", "no task 9"),
        ("### BEGIN SOLUTION\n### END SOLUTION\n", "BEGIN SOLUTION 2: what to do"),
    ],
)
def test_marks_that_do_not_fit_are_refused(source, says):
    with pytest.raises(UserError, match=says):
        starter(source, LABS[3])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("number = 1", "needs number"),
        ("number = ", "lab.toml"),
        ('number=1\ntitle=""\nminutes=1\ntasks=[]', "one task"),
    ],
)
def test_a_lab_that_is_not_complete_is_refused(tmp_path, text, says):
    (tmp_path / SPEC).write_text(text)
    with pytest.raises(UserError, match=says):
        read_lab(tmp_path)
