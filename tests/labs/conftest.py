"""A small lab of two tasks, which takes no time to grade."""

import pytest

from minipeft.labs.spec import read_lab

SPEC = """number = 9
title = "a lab for these tests"
minutes = 60
seconds = 2.0
megabytes = 1500
closed = ["minipeft.peft"]
[[tasks]]
title = "twice"
points = 60
[[tasks]]
title = "thrice"
points = 40
"""
SOLVED = """from __future__ import annotations
import numpy as np
def twice(x):
    ### BEGIN SOLUTION 1: return twice x
    return 2.0 * x
    ### END SOLUTION
def thrice(x):
    ### BEGIN SOLUTION 2: return three times x
    return 3.0 * x
    ### END SOLUTION
"""
TESTS = """from minipeft.labs.kit import close, draw, task
@task(1)
def test_two(lab):
    close(lab.twice(draw(3)), 2 * draw(3), "twice x")
@task(2)
def test_three(lab):
    close(lab.thrice(draw(3)), 3 * draw(3), "three times x")
"""
HIDDEN = """from minipeft.labs.kit import close, draw, task
@task(1)
def test_two_of_others(lab):
    close(lab.twice(draw(200, 100, seed=1)), 2 * draw(200, 100, seed=1), "twice x")
"""
HANDOUT = "# Lab 9\n\n<!-- tasks -->\n"


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """The lab, solved, in a folder of its own."""
    folder = tmp_path_factory.mktemp("labs") / "lab9"
    folder.mkdir()
    files = {"lab.toml": SPEC, "solution.py": SOLVED, "test_lab9.py": TESTS, "hidden_lab9.py": HIDDEN}
    for name, text in {**files, "handout.md": HANDOUT}.items():
        (folder / name).write_text(text, encoding="utf-8")
    return read_lab(folder)
