"""The grader can be trusted: what a submission may try gets a fair result, never a crash and never a false pass."""

from __future__ import annotations

import dataclasses
import os
import shutil
import sys
import time
from pathlib import Path

import pytest

from minipeft.labs import sandbox
from minipeft.labs.grade import grade
from minipeft.labs.release import starter
from minipeft.labs.spec import all_labs

ROOT = Path(__file__).parents[2] / "labs"
LAB = all_labs(ROOT)[3]
QUICK = dataclasses.replace(LAB, seconds=2.5)
SOLVED = LAB.solution().read_text(encoding="utf-8")
FORWARD = "        y = self.linear(x)\n"  # the first line of task 1
QUIET = {"on_task": lambda task: None}


@pytest.fixture
def submit(tmp_path):
    """Grades a source as lab 3, by one task alone unless told otherwise; gives the report."""

    def run(source, only=1, lab=QUICK, **files):
        folder = tmp_path / "submission"
        folder.mkdir(exist_ok=True)
        (folder / "lab3.py").write_text(source, encoding="utf-8")
        return grade(lab, folder, only=only, **QUIET)

    return run


def at_import(code):
    """The solved lab with some code before it."""
    assert "from __future__ import annotations\n" in SOLVED
    return SOLVED.replace("from __future__ import annotations\n", f"from __future__ import annotations\n{code}\n", 1)


def in_forward(code):
    """The solved lab with some code at the beginning of `forward`, which task 1 and task 3 call."""
    assert SOLVED.count(FORWARD) == 1
    lines = "".join(f"        {line}\n" for line in code.splitlines())
    return SOLVED.replace(FORWARD, lines + FORWARD)


def unsolved(code):
    """The starter with some code at its end: whatever it does, no task is solved."""
    return f"{starter(SOLVED, LAB)}\n{code}\n"


def all_failed(report, *says):
    assert report.outcomes
    assert report.total == 0, [o for o in report.outcomes if o.passed]
    for outcome in report.outcomes:
        assert any(text in outcome.message for text in says), outcome.message


def test_the_solution_gets_all_points_and_the_same_report_twice(submit):
    first = submit(SOLVED, None, LAB)
    assert first.total == 100, [o for o in first.outcomes if not o.passed]
    assert submit(SOLVED, None, LAB) == first


def test_the_starter_gets_none(submit):
    report = submit(unsolved(""), None)
    assert report.total == 0
    for outcome in report.outcomes:
        assert outcome.message.startswith(f"Lab 3, task {outcome.task}: ")


# ---- ending, hanging, flooding


def test_an_infinite_loop_costs_its_task_alone(submit):
    began = time.monotonic()
    report = submit(in_forward("while True:\n    pass"), None)
    assert time.monotonic() - began < 40
    loop, count = LAB.tasks[0], LAB.tasks[3]
    assert report.score(loop) == 0
    assert report.score(count) == count.points
    assert "did not finish in the time" in report.of(loop)[0].message


def test_an_infinite_loop_at_import(submit):
    all_failed(submit(at_import("while True:\n    pass")), "cannot be imported: your code did not finish")


@pytest.mark.parametrize("way", ["import sys; sys.exit(0)", "raise SystemExit", "raise KeyboardInterrupt", "quit()"])
def test_ending_the_program_is_a_failure(submit, way):
    report = submit(in_forward(way))
    all_failed(report, "ended the program", "NameError")  # quit() is there only where `site` puts it


@pytest.mark.parametrize("way", ["os._exit(0)", "os.abort()", "os.kill(os.getpid(), 9)", "os.killpg(0, 9)"])
def test_ending_the_process_is_a_failure_and_the_grader_goes_on(submit, way):
    report = submit(in_forward(f"import os\n{way}"), None)
    assert report.score(LAB.tasks[0]) == 0
    assert report.score(LAB.tasks[3]) == LAB.tasks[3].points


def test_an_exit_at_import(submit):
    all_failed(submit(at_import("import sys; sys.exit(0)")), "cannot be imported: your code ended the program")
    all_failed(submit(at_import("import os; os._exit(0)")), "cannot be imported: your code ended the program")


def test_an_exception_at_import(submit):
    all_failed(submit(at_import("1 / 0")), "cannot be imported: ZeroDivisionError: division by zero (lab3.py, line")


@pytest.mark.parametrize("source", ["def f(:\n", "\x00", "return 1\n", "é" * 10, "import nothing_of_that_name\n", ""])
def test_a_file_that_is_no_lab(submit, source):
    report = submit(source, None)
    assert report.total == 0
    assert all(outcome.message for outcome in report.outcomes)


def test_a_missing_file_and_an_empty_folder(tmp_path):
    all_failed(grade(LAB, tmp_path, **QUIET), "lab3.py is missing")
    all_failed(grade(LAB, tmp_path / "nowhere", **QUIET), "lab3.py is missing")


def test_a_folder_in_the_place_of_the_file(tmp_path):
    (tmp_path / "lab3.py").mkdir()
    all_failed(grade(LAB, tmp_path, **QUIET), "not a plain file")


def test_a_link_to_the_solution_is_not_followed(tmp_path):
    (tmp_path / "lab3.py").symlink_to(LAB.solution())
    all_failed(grade(LAB, tmp_path, **QUIET), "not a plain file")


def test_a_huge_print_costs_nothing_but_is_cut(submit):
    report = submit(in_forward("import os\nprint('x' * 10**7)\nos.write(1, b'y' * 10**7); os.write(2, b'z' * 10**7)"))
    assert all(outcome.passed for outcome in report.outcomes), report.outcomes
    assert 0 < len(report.printed) <= 4000


def test_printing_without_an_end(submit):
    all_failed(submit(in_forward("while True:\n    print('x' * 1000)")), "did not finish", "took all the time")


def test_too_much_memory(submit):
    report = submit(in_forward("x = np.ones(10**10)"))
    if sys.platform == "linux":
        all_failed(report, "more memory than the lab allows")


def test_recursion_without_an_end(submit):
    all_failed(submit(in_forward("return self.forward(x)")), "RecursionError")


def test_an_answer_that_is_too_long(submit):
    report = submit(in_forward("return np.ones(2 * 10**7)"), lab=LAB)
    assert report.total == 0


def test_answers_of_every_other_kind(submit):
    for value in ("None", "'text'", "object()", "[[1], [2, 3]]", "float('nan')", "type", "lambda: 1", "{1: 2}", "10**5000"):
        report = submit(in_forward(f"return {value}"))
        assert report.total == 0, value
        assert all(outcome.message for outcome in report.outcomes)


# ---- looking where it should not


def read_attempts(path):
    return [
        f"open({path!r}).read()",
        f"__import__('io').FileIO({path!r}).read()",
        f"__import__('os').open({path!r}, 0)",
        f"__import__('pathlib').Path({path!r}).read_text()",
        f"np.fromfile({path!r}, dtype='u1')",
        f"np.memmap({path!r}, dtype='u1')",
        f"__import__('linecache').getlines({path!r})[0]",
        f"__import__('runpy').run_path({path!r})",
        f"__import__('shutil').copyfile({path!r}, 'copy')",
        f"open('/proc/self/root' + {path!r}).read()",
        f"open({os.path.dirname(path)!r} + '/../' + {os.path.basename(os.path.dirname(path))!r} + '/' + "
        f"{os.path.basename(path)!r}).read()",
        f"[__import__('os').symlink({path!r}, 'link'), open('link').read()]",
        f"__import__('subprocess').check_output(['cat', {path!r}])",
        f"__import__('os').popen('cat ' + {path!r}).read()[0]",
        f"__import__('os').listdir({os.path.dirname(path)!r})[0]",
    ]


@pytest.mark.parametrize("confined", [True, False], ids=["as it is", "by the watch alone"])
@pytest.mark.parametrize("which", ["solution", "hidden_tests"])
def test_the_solution_and_the_hidden_tests_cannot_be_read(submit, monkeypatch, which, confined):
    """The submission does its own task right, but only if it can read: so each pass would be a leak."""
    if not confined:
        monkeypatch.setattr(sandbox, "confinement", lambda hidden: ([], {}))
    attempts = read_attempts(str(getattr(LAB, which)()))
    code = ["got = []"]
    for attempt in attempts:
        code += ["try:", f"    {attempt}", f"    got.append({attempt!r})", "except BaseException: pass"]
    report = submit(at_import("\n".join(["import numpy as np", *code, "print('read:', got)"])))
    assert report.total > 0, report.outcomes
    assert "read: []" in report.printed, report.printed


def test_with_the_solution_at_hand_a_starter_still_gets_nothing(submit):
    """Import the reference, or run it from wherever it may lie."""
    path = str(LAB.solution())
    code = f"""
import sys, importlib.util
sys.path.insert(0, {os.path.dirname(path)!r})
try:
    from solution import *
except BaseException:
    pass
try:
    exec(open({path!r}).read())
except BaseException:
    pass
"""
    assert submit(unsolved(code), None).total == 0


@pytest.mark.parametrize(
    "code",
    [
        "import socket; socket.socket()",
        "import urllib.request; urllib.request.urlopen('http://127.0.0.1:9')",
        "import subprocess; subprocess.run(['true'])",
        "import os; os.system('true')",
        "import os; os.fork()",
        "import multiprocessing; p = multiprocessing.Process(target=print); p.start()",
        "import ctypes; ctypes.CDLL(None)",
        "import _posixsubprocess; _posixsubprocess.fork_exec",
        "open('/tmp/minipeft-lab-was-here', 'w')",
        "import os; os.remove(__import__('numpy').__file__)",
        "import os; os.kill(os.getppid(), 9)",
        "import torch",
        "import scipy.linalg",
    ],
)
def test_no_network_no_processes_no_other_places(submit, code):
    all_failed(submit(at_import(code)), "cannot be imported: ")
    assert not Path("/tmp/minipeft-lab-was-here").exists()


def test_the_watch_cannot_be_talked_into_anything(submit):
    path = str(LAB.solution())
    code = f"""
import builtins, gc, os, posixpath, sys
posixpath.realpath = os.path.realpath = lambda path, **options: os.getcwd()
builtins.isinstance = lambda *inputs: True
class Path(str):
    def startswith(self, *inputs): return True
    def split(self, *inputs): return []
got = []
for hook in [f for f in gc.get_objects() if getattr(f, "__name__", "") == "hook"]:
    try:
        hook.__code__ = (lambda event, args: None).__code__
        got.append("code")
    except BaseException: pass
    try:
        hook.__defaults__ = ()
        got.append("defaults")
    except BaseException: pass
for place in (Path({path!r}), {path!r}, {path!r}.encode()):
    try:
        open(place).read()
        got.append(place)
    except BaseException: pass
print("got:", got)
"""
    report = submit(at_import(code.strip()))
    assert "got: []" in report.printed, (report.printed, report.outcomes[0])


# ---- patching


PATCHES = {
    "minipeft's comparisons": """
import minipeft.autograd.gradcheck as g, numpy.testing as t
g.gradcheck = t.assert_allclose = t.assert_array_equal = lambda *a, **k: None
np.allclose = np.array_equal = np.isclose = lambda *a, **k: True""",
    "the kit": """
import sys
for name in list(sys.modules):
    if name.startswith("minipeft.labs"):
        for key in list(vars(sys.modules[name])):
            if callable(vars(sys.modules[name])[key]): vars(sys.modules[name])[key] = lambda *a, **k: None""",
    "pytest": """
import sys, types
sys.modules["pytest"] = sys.modules["_pytest"] = types.ModuleType("pytest")
sys.modules["pytest"].main = lambda *a, **k: 0""",
    "assertions": """
import builtins
builtins.AssertionError = builtins.NotImplementedError = type("Nothing", (Exception,), {})""",
    "equality": """
class Always(float):
    def __eq__(self, other): return True
    def __sub__(self, other): return Always(0)
    __ne__ = __lt__ = __gt__ = lambda self, other: False
    __le__ = __ge__ = __eq__
LoRALinear.forward = lambda self, x: type("T", (), {"data": Always(0), "backward": lambda *a: None})()
count_lora = lambda *a, **k: Always(0)""",
    "the result file": """
import json
for path in ("results.json", "/autograder/results/results.json", "../results.json"):
    try:
        open(path, "w").write(json.dumps({"score": 100}))
    except OSError: pass""",
    "what Tensor computes": """
from minipeft.autograd import tensor
Tensor.data = property(lambda self: np.zeros((1, 1)))""",
    "an answer sent ahead": """
import gc, io
for channel in [f for f in gc.get_objects() if isinstance(f, io.BufferedWriter)]:
    try:
        for _ in range(3): channel.write(b'{"ok": null, "printed": ""}\\n')
        channel.flush()
    except Exception: pass""",
    "an answer that is none": """
import gc, io
for channel in [f for f in gc.get_objects() if isinstance(f, io.BufferedWriter)]:
    try:
        channel.write(b'{"ok": {"array": "AAAA", "dtype": "object", "shape": [-1]}}\\n[[[\\n\\xff\\n'); channel.flush()
    except Exception: pass""",
}


@pytest.mark.parametrize("patch", PATCHES.values(), ids=PATCHES.keys())
def test_patching_gains_nothing(submit, patch):
    report = submit(unsolved(patch.strip()), None)
    assert report.total == 0, [outcome for outcome in report.outcomes if outcome.passed]


def test_minipeft_on_the_disk_is_as_before(submit):
    import minipeft

    files = sorted(p for p in Path(minipeft.__file__).parent.rglob("*.py"))
    before = {path: path.stat().st_mtime_ns for path in files}
    code = f"open({str(files[0])!r}, 'a').write('# patched')"
    all_failed(submit(at_import(code)), "cannot be imported: PermissionError")
    assert {path: path.stat().st_mtime_ns for path in files} == before


# ---- the library's own implementation


@pytest.mark.parametrize(
    "code",
    [
        "from minipeft.peft.lora import LoRALinear",
        "import minipeft; LoRALinear = minipeft.peft.lora.LoRALinear",
        "import minipeft.peft",
        "from minipeft.cost.count import count",
        "import importlib; LoRALinear = importlib.import_module('minipeft.peft.lora').LoRALinear",
        "import sys; sys.meta_path = sys.meta_path[1:]; from minipeft.peft.lora import LoRALinear",
        "import minipeft, pathlib; exec((pathlib.Path(minipeft.__file__).parent / 'peft' / 'lora.py').read_text())",
    ],
)
def test_the_librarys_own_implementation_is_closed(submit, code):
    report = submit(unsolved(code))
    assert report.total == 0
    assert "cannot be imported" in report.outcomes[0].message


def test_closed_says_so(submit):
    report = submit(unsolved("from minipeft.peft.lora import LoRALinear"))
    assert "minipeft.peft is what this lab asks you to write" in report.outcomes[0].message


# ---- the layers beneath


def test_the_user_nobody_is_enough_to_grade(submit, monkeypatch, tmp_path):
    if os.name != "posix" or os.geteuid() != 0:
        pytest.skip("only root can run a submission as another user")
    monkeypatch.setattr(sandbox, "confinement", lambda hidden: ([], {"user": 65534, "group": 65534, "extra_groups": []}))
    try:
        report = submit(SOLVED)
    except (OSError, sandbox.SessionEnded):
        pytest.skip("nobody cannot read this Python")
    if "cannot be imported" in (report.outcomes[0].message or ""):
        pytest.skip("nobody cannot read this Python")
    assert all(outcome.passed for outcome in report.outcomes)


def test_without_anything_of_the_system_the_result_is_the_same(submit, monkeypatch):
    expected = submit(SOLVED)
    monkeypatch.setattr(sandbox, "confinement", lambda hidden: ([], {}))
    assert submit(SOLVED) == expected


def test_nothing_is_left_behind(submit, tmp_path, monkeypatch):
    import tempfile

    place = tmp_path / "place"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    submit(in_forward("import os\nopen('mine', 'w').write('x')\nos._exit(1)"))
    assert not list(place.iterdir())
    shutil.rmtree(place)
