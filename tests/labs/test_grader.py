"""The grader can be trusted: what a submission may try gets a fair result, never a crash and never a false pass."""

from __future__ import annotations

import contextlib
import dataclasses
import dis
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from minipeft.errors import UserError
from minipeft.labs import guard, sandbox
from minipeft.labs.confine import confinement, environment
from minipeft.labs.grade import grade
from minipeft.labs.spec import all_labs

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2] / "labs"
SOLVED = """from __future__ import annotations
import numpy as np
def twice(x):
    return 2.0 * x
def thrice(x):
    return 3.0 * x
"""


@pytest.fixture
def submit(lab, tmp_path):
    """Grades a source, by task 1 alone unless told otherwise; gives the report."""

    def run(source, only=1):
        folder = tmp_path / "submission"
        folder.mkdir(exist_ok=True)
        (folder / "lab9.py").write_text(source, encoding="utf-8")
        return grade(lab, folder, only=only)

    return run


@pytest.fixture(params=[True, False], ids=["as it is", "by the watch alone"])
def _layers(request, monkeypatch):
    """With what the operating system offers here, and without it."""
    if not request.param:
        monkeypatch.setattr(sandbox, "confinement", lambda hidden: ([], {}))


either_way = pytest.mark.usefixtures("_layers")


def at_import(code):
    """The solved lab with some code before it."""
    return SOLVED.replace("import numpy as np\n", f"import numpy as np\n{code}\n", 1)


def in_task_1(code):
    """The solved lab with some code at the beginning of task 1."""
    lines = "".join(f"    {line}\n" for line in code.splitlines())
    return SOLVED.replace("    return 2.0 * x\n", lines + "    return 2.0 * x\n")


NOT_1, NOT_2 = (f'raise NotImplementedError("Lab 9, task {number}")' for number in (1, 2))


def unsolved(code):
    """The starter with some code at its end: whatever it does, no task is solved."""
    return f"{SOLVED.replace('return 2.0 * x', NOT_1).replace('return 3.0 * x', NOT_2)}\n{code}\n"


def all_failed(report, *says):
    assert report.outcomes
    assert report.total == 0, [o for o in report.outcomes if o.passed]
    for outcome in report.outcomes:
        assert any(text in outcome.message for text in says), outcome.message


def test_the_solution_gets_all_points_and_the_same_report_twice(submit):
    first = submit(SOLVED, None)
    assert first.total == 100, first.outcomes
    assert submit(SOLVED, None) == first


def test_without_a_solution_there_are_no_points(submit):
    report = submit(unsolved(""), None)
    assert report.total == 0
    assert [outcome.message for outcome in report.outcomes] == ["Lab 9, task 1"] * 2 + ["Lab 9, task 2"]


def test_partial_credit(submit):
    report = submit(in_task_1("if x.ndim == 2: return x"), None)
    assert report.total == 70
    assert [outcome.passed for outcome in report.outcomes] == [True, False, True]


@pytest.mark.parametrize("number", range(1, 7))
def test_the_solution_of_every_lab_gets_a_hundred(number, tmp_path):
    """Through the grader as it is: closed in, task by task."""
    course = all_labs(ROOT)[number]
    shutil.copy(course.solution(), tmp_path / f"{course.name}.py")
    if (course.folder / "answers.md").exists():
        shutil.copy(course.folder / "answers.md", tmp_path)
    report = grade(course, tmp_path)
    assert [outcome for outcome in report.outcomes if not outcome.passed] == []
    assert report.total == 100


# ---- ending, hanging, flooding


def test_an_infinite_loop_costs_its_task_alone(submit):
    began = time.monotonic()
    report = submit(in_task_1("while True:\n    pass"), None)
    assert time.monotonic() - began < 30
    assert report.total == 40
    assert "did not finish in the time" in report.outcomes[0].message
    assert "took all the time" in report.outcomes[1].message


def test_an_infinite_loop_at_import(submit):
    all_failed(submit(at_import("while True:\n    pass")), "cannot be imported: your code did not finish")


@pytest.mark.parametrize("way", ["import sys; sys.exit(0)", "raise SystemExit", "raise KeyboardInterrupt", "quit()"])
def test_ending_the_program_is_a_failure(submit, way):
    report = submit(in_task_1(way))
    all_failed(report, "ended the program", "NameError")  # quit() is there only where `site` puts it


@pytest.mark.parametrize("way", ["os._exit(0)", "os.abort()", "os.kill(os.getpid(), 9)", "os.killpg(0, 9)"])
def test_ending_the_process_is_a_failure_and_the_grader_goes_on(submit, way):
    report = submit(in_task_1(f"import os\n{way}"), None)
    assert report.total == 40
    assert [outcome.passed for outcome in report.outcomes] == [False, False, True]


def test_an_exit_at_import(submit):
    all_failed(submit(at_import("import sys; sys.exit(0)")), "cannot be imported: your code ended the program")
    all_failed(submit(at_import("import os; os._exit(0)")), "cannot be imported: your code ended the program")


def test_an_exception_at_import(submit):
    all_failed(submit(at_import("1 / 0")), "cannot be imported: ZeroDivisionError: division by zero (lab9.py, line")


@pytest.mark.parametrize("source", ["def f(:\n", "\x00", "return 1\n", "é" * 10, "import nothing_of_that_name\n", ""])
def test_a_file_that_is_no_lab(submit, source):
    report = submit(source, None)
    assert report.total == 0
    assert all(outcome.message for outcome in report.outcomes)


def test_a_missing_file_and_an_empty_folder(lab, tmp_path):
    all_failed(grade(lab, tmp_path), "lab9.py is missing")
    all_failed(grade(lab, tmp_path / "nowhere"), "lab9.py is missing")


def test_a_folder_in_the_place_of_the_file(lab, tmp_path):
    (tmp_path / "lab9.py").mkdir()
    all_failed(grade(lab, tmp_path), "not a plain file")


def test_a_link_to_the_solution_is_not_followed(lab, tmp_path):
    (tmp_path / "lab9.py").symlink_to(lab.solution())
    all_failed(grade(lab, tmp_path), "not a plain file")


@contextlib.contextmanager
def without_privileges():
    """As a user who may not read everything."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


@pytest.mark.skipif(os.name != "posix", reason="there are no modes of files here")
@pytest.mark.parametrize("which", ["the file", "the folder"])
def test_a_file_that_cannot_be_read(lab, which):
    with tempfile.TemporaryDirectory() as name:  # pytest's own folder is closed to others
        place = Path(name)
        place.chmod(0o755)
        course = dataclasses.replace(lab, folder=place / "lab9")
        shutil.copytree(lab.folder, course.folder)
        (place / "ada").mkdir()
        (place / "ada" / "lab9.py").write_text(SOLVED)
        closed = place / "ada" / "lab9.py" if which == "the file" else place / "ada"
        closed.chmod(0)
        with without_privileges():
            report = grade(course, place / "ada")
        closed.chmod(0o700)
    all_failed(report, "lab9.py cannot be read")


def test_a_file_that_is_gone_before_it_is_copied(lab, tmp_path, monkeypatch):
    monkeypatch.setattr("minipeft.labs.grade._unfit", lambda *inputs: "")
    (tmp_path / "answers.md").touch()
    all_failed(grade(lab, tmp_path), "lab9.py cannot be read")


def test_answers_have_a_largest_size(tmp_path):
    course = all_labs(ROOT)[6]
    shutil.copy(course.solution(), tmp_path / "lab6.py")
    (tmp_path / "answers.md").write_text("## 1. Which?\n" + "word 1 " * 3000)
    all_failed(grade(course, tmp_path, only=5), "answers.md is larger than 20 kB")


def test_what_is_printed_in_hidden_tests_is_not_shown(submit):
    """It would tell the students their inputs."""
    report = submit(in_task_1("print('asked with', x.shape)"))
    assert report.printed == "asked with (3,)\n"
    assert [outcome.hidden for outcome in report.outcomes] == [False, True]
    crashing = submit(at_import("print('imported')") + "def twice(x):\n    import os\n    os._exit(0)\n")
    assert crashing.printed == "imported\n"


def test_a_machine_that_cannot_start_a_process_costs_nobody_points(lab, tmp_path):
    (tmp_path / "lab9.py").write_text(SOLVED)
    with pytest.raises(UserError, match="what lab9 loads did not start"):
        grade(dataclasses.replace(lab, loads=("nothing_of_that_name",)), tmp_path)


def test_a_huge_print_costs_nothing_but_is_cut(submit):
    report = submit(in_task_1("import os\nprint('x' * 10**7)\nos.write(1, b'y' * 10**7); os.write(2, b'z' * 10**7)"))
    assert all(outcome.passed for outcome in report.outcomes), report.outcomes
    assert 0 < len(report.printed) <= 4000


def test_printing_without_an_end(submit):
    all_failed(submit(in_task_1("while True:\n    print('x' * 1000)")), "did not finish", "took all the time")


def test_too_much_memory(submit):
    report = submit(in_task_1("x = np.ones(10**10)"))
    if sys.platform == "linux":
        all_failed(report, "more memory than the lab allows")


def test_recursion_without_an_end(submit):
    all_failed(submit(in_task_1("return twice(x)")), "RecursionError")


def test_an_answer_sent_ahead_and_then_a_loop(submit):
    """The grader sends the next request, which is longer than a pipe holds, to a process that reads no more."""
    code = """
import gc, io
for channel in [f for f in gc.get_objects() if isinstance(f, io.BufferedWriter)]:
    channel.write(b'{"ok": {"list": []}}\\n{"ok": {"held": {"id": 0, "kind": "f"}}}\\n')
    channel.flush()
while True:
    pass"""
    report = submit(in_task_1(code.strip()))
    assert report.total == 0
    assert "ended the program" in report.outcomes[1].message


SENT = {
    "a number that is infinite": '{"ok": {"held": {"id": Infinity, "kind": "f"}}}',
    "a shape that is infinite": '{"ok": {"array": "AAAA", "dtype": "float64", "shape": [1e999]}}',
    "a number that is none": '{"ok": {"held": {"id": NaN, "kind": "f"}}}',
    "a held thing that is a list": '{"ok": {"held": [1]}}',
    "an error that is a number": '{"error": 5}',
    "an error within": '{"error": [{"a": 1}], "line": 1e999, "message": [1e999]}',
    "a depth without an end": '{"ok": ' + 900 * '{"list": [' + 900 * "]}" + "}",
    "no answer": '{"printed": 5}',
}


@pytest.mark.parametrize("at", ["at import", "in a task"])
@pytest.mark.parametrize("line", SENT.values(), ids=SENT.keys())
def test_a_forged_answer_is_no_crash(submit, line, at):
    code = f"""
import gc, io
for channel in [f for f in gc.get_objects() if isinstance(f, io.BufferedWriter)]:
    channel.write({line!r}.encode() + b"\\n")
    channel.flush()
raise ValueError"""
    report = submit(at_import(code.strip()) if at == "at import" else in_task_1(code.strip()), None)
    assert report.total < 50
    assert all(outcome.message for outcome in report.outcomes if outcome.task == 1)


def test_an_answer_that_is_too_long(submit):
    report = submit(in_task_1("return np.ones(7 * 10**6)"))
    assert report.total == 0


def test_answers_of_every_other_kind(submit):
    for value in ("None", "'text'", "object(), object()", "[[1], [2, 3]]", "[float('nan')] * 3, lambda: 1", "10**5000"):
        report = submit(in_task_1(f"return {value}"))
        assert report.total == 0, value
        assert all(outcome.message for outcome in report.outcomes)


# ---- looking where it should not


def read_attempts(path):
    inside = f"open({path!r}).read()"
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
        f"import readline\nreadline.read_history_file({path!r})\nreadline.get_history_item(1)[0]",
        f"import tokenizers\ntokenizers.models.WordPiece.read_file({path!r})",
        f"import _xxsubinterpreters as s\ns.run_string(s.create(isolated=False), {inside!r})",
        f"import _interpreters as s\nassert s.run_string(s.create(), {inside!r}) is None",
        f"""
class Kind(type):  # whose instances are of a type that is equal to every other
    __hash__ = type.__hash__
    def __eq__(self, other): return True
class Path(metaclass=Kind):
    def __fspath__(self): return {path!r}
import io
io.FileIO(Path()).read()""",
        f"""
class Leak:
    def __eq__(self, other): self.found = other
leak = Leak()
str.__dict__ == leak  # the methods of every text
kept = leak.found["startswith"]
leak.found["startswith"] = lambda *inputs: True
try: open({path!r}).read()
finally: leak.found["startswith"] = kept""",
        f"""
import gc, sys
def change(frame, event, arg):
    if frame.f_code.co_name == "hook": frame.f_locals["event"] = "nothing"
    return change
for hook in [f for f in gc.get_objects() if getattr(f, "__name__", "") == "hook"]: hook.__cantrace__ = True
sys.settrace(change)
try: open({path!r}).read()
finally: sys.settrace(None)""",
        f"""
import gc, sys
def change(phase, info):  # at a collection in the middle of the watch
    frame = sys._getframe(1)
    if frame.f_code.co_name == "hook": frame.f_locals["event"] = "nothing"
gc.callbacks.append(change)
gc.enable()
gc.set_threshold(1)
try:
    for _ in range(50):
        try: text = open({path!r}).read()
        except OSError: pass
    text
finally:
    gc.set_threshold(700)
    gc.callbacks.clear()""",
    ]


@either_way
@pytest.mark.parametrize("which", ["solution", "hidden_tests"])
def test_the_solution_and_the_hidden_tests_cannot_be_read(lab, submit, which):
    printed = attempts_that_work(submit, read_attempts(str(getattr(lab, which)())))
    assert "done: []" in printed, printed


def test_with_the_solution_at_hand_a_starter_still_gets_nothing(lab, submit):
    """Import the reference, or run it from wherever it may lie."""
    path = str(lab.solution())
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


ELSEWHERE = [
    "import socket; socket.socket()",
    "import urllib.request; urllib.request.urlopen('http://127.0.0.1:9')",
    "import subprocess; subprocess.run(['true'])",
    "import os; os.system('true')",
    "import os; os._exit(0) if os.fork() else None",
    "import multiprocessing; multiprocessing.Process(target=print).start()",
    "import ctypes; ctypes.CDLL(None)",
    "import _posixsubprocess; _posixsubprocess.fork_exec",
    "open('/tmp/minipeft-lab-was-here', 'w')",
    "open('here', 'w')",
    "import tempfile; tempfile.TemporaryFile()",
    "np.save('here', np.ones(3))",
    "import os; os.mkdir('here')",
    "import os; os.remove(np.__file__)",
    "import os; os.kill(os.getppid(), 9)",
    "import torch",
    "import scipy.linalg",
    "import _xxsubinterpreters; _xxsubinterpreters.create()",
    "import _interpreters; _interpreters.create()",
    "import _testcapi; _testcapi.run_in_subinterp('1')",
    "import importlib; importlib.import_module('_testinternalcapi')",
    "import _imp, importlib.util; _imp.create_builtin(importlib.util.find_spec('xxsubtype'))",
    "import importlib.util as u; u.module_from_spec(u.find_spec('xxsubtype'))",
    "import readline",
    "import spwd",
    "import _tkinter",
    "import sqlite3; sqlite3.connect(':memory:')",
    "import ssl; ssl.create_default_context().keylog_filename = 'here'",
    "import safetensors.numpy; safetensors.numpy.save_file({'a': np.ones(3)}, '/tmp/minipeft-lab-was-here')",
    "import os, signal; signal.pidfd_send_signal(os.pidfd_open(os.getppid()), 0)",
    "import os; os.chdir(os.path.dirname(os.__file__))",
    "import sys; sys.settrace(lambda *inputs: None)",
    "import sys; sys._current_frames()",
    """
import builtins, os
kept, builtins.bool = builtins.bool, lambda thing: False
try: os.open("here", os.O_WRONLY | os.O_CREAT)
finally: builtins.bool = kept""",
]


def attempts_that_work(submit, attempts):
    """Which of some attempts a submission gets away with; each one raises where it is stopped."""
    code = ["got = []"]
    for attempt in attempts:
        lines = [f"    {line}" for line in attempt.strip().splitlines()]
        code += ["try:", *lines, f"    got.append({attempt!r})", "except BaseException: pass"]
    report = submit(at_import("\n".join([*code, "print('done:', got)"])))
    assert all(outcome.passed for outcome in report.outcomes), report.outcomes
    return report.printed


@either_way
def test_no_network_no_processes_no_other_places(submit):
    written = Path("/tmp/minipeft-lab-was-here")
    written.unlink(missing_ok=True)
    assert "done: []" in attempts_that_work(submit, ELSEWHERE)
    assert not written.exists()


def test_the_watch_looks_nothing_up():
    """Whatever it looked up by name, a submission could exchange: functions, builtins, methods of its own inputs."""
    (hook,) = (c for c in guard.watch.__code__.co_consts if getattr(c, "co_name", "") == "hook")
    assert {i.opname for i in dis.get_instructions(hook) if i.argval in hook.co_names} == set()
    assert not hook.co_freevars


ORDINARY = """
abc argparse array ast asyncio base64 bisect bz2 calendar cmath collections concurrent.futures configparser contextlib
copy cProfile csv dataclasses datetime decimal difflib dis doctest enum fractions functools gzip hashlib heapq hmac
html inspect io itertools json locale logging lzma math numbers operator pathlib pdb pickle platform pprint queue
random re secrets shutil statistics string struct subprocess tempfile textwrap threading timeit tokenize tomllib
traceback typing unicodedata unittest urllib.parse uuid warnings weakref xml.etree.ElementTree zipfile zlib zoneinfo
"""


@either_way
def test_the_standard_library_is_open(submit):
    code = f"""
import importlib, typing
for name in {ORDINARY.split()!r}:
    importlib.import_module(name)
class Pair(typing.NamedTuple):
    a: int = 1
assert importlib.import_module("datetime").datetime.now() and Pair().a == 1
assert importlib.import_module("decimal").Decimal(1) + 1 == 2
assert importlib.import_module("json").loads("[1]") == [1]
print("all")"""
    report = submit(at_import(code.strip()))
    assert report.printed == "all\n", report.outcomes[0]
    assert report.total == 60


def test_a_refusal_says_what_to_do(submit):
    below = "goes below `if __name__ == '__main__':`"
    for code in (
        "import matplotlib.pyplot",
        "open('data.csv', 'w')",
        "from minipeft.training import Trainer",
        "import ssl",
    ):
        report = submit(at_import(code))
        assert below in report.outcomes[0].message, report.outcomes[0]
    all_failed(submit(at_import("open('./data.csv')")), "write a path without '..', '.' or '//' in it")


@pytest.mark.parametrize("number", [3, 4, 5, 6])
def test_what_the_handouts_say_is_open(lab, tmp_path, number):
    """minipeft but for what the lab asks for, with models and data; in lab 6 matplotlib as well."""
    course = all_labs(ROOT)[number]
    small = dataclasses.replace(lab, closed=course.closed, loads=course.loads, seconds=20)
    code = "import minipeft.data, minipeft.optim, minipeft.autograd.gradcheck\nfrom minipeft import load_model\n"
    if number == 6:
        code += "import matplotlib.pyplot as plt, minipeft.training\nplt.figure()\nplt.bar([1], [2])\nplt.show()\n"
    (tmp_path / "lab9.py").write_text(at_import(code))
    report = grade(small, tmp_path, only=1)
    assert report.total == 60, report.outcomes


def test_the_watch_cannot_be_talked_into_anything(lab, submit):
    path = str(lab.solution())
    code = f"""
import builtins, gc, os, posixpath, sys
posixpath.realpath = os.path.realpath = lambda path, **options: os.getcwd()
real, builtins.isinstance = builtins.isinstance, lambda *inputs: True
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
builtins.isinstance = real
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
twice = thrice = lambda x: Always(0)""",
    "the result file": """
import json
for path in ("results.json", "/autograder/results/results.json", "../results.json"):
    try:
        open(path, "w").write(json.dumps({"score": 100}))
    except OSError: pass""",
    "what minipeft and NumPy compute": """
from minipeft import Tensor
Tensor.__init__ = Tensor.backward = lambda *a, **k: None
np.ndarray = np.zeros""",
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
    report = submit(unsolved(patch.strip()))
    assert report.total == 0, [outcome for outcome in report.outcomes if outcome.passed]


def test_minipeft_on_the_disk_is_as_before(submit):
    import minipeft

    files = sorted(p for p in Path(minipeft.__file__).parent.rglob("*.py"))
    before = {path: path.stat().st_mtime_ns for path in files}
    code = f"open({str(files[0])!r}, 'a').write('# patched')"
    all_failed(submit(at_import(code)), "cannot be imported: PermissionError")
    assert {path: path.stat().st_mtime_ns for path in files} == before


# ---- the library's own implementation


OWN = [
    "from minipeft.peft.lora import LoRALinear",
    "import minipeft; minipeft.peft.lora.LoRALinear",
    "import minipeft.peft",
    "from minipeft.cost.count import count",
    "import importlib; importlib.import_module('minipeft.peft.lora').LoRALinear",
    "import sys; sys.meta_path = sys.meta_path[1:]; from minipeft.peft.lora import LoRALinear",
    "import minipeft, pathlib; exec((pathlib.Path(minipeft.__file__).parent / 'peft' / 'lora.py').read_text())",
    "import minipeft, os; open(os.path.dirname(minipeft.__file__) + '//peft/lora.py').read()",
    "import minipeft, os; open(os.path.dirname(minipeft.__file__) + '/./peft/lora.py').read()",
    "import minipeft, os; open(os.path.dirname(minipeft.__file__) + '/peft//lora.py').read()",
    "import minipeft, os; open(os.path.dirname(minipeft.__file__).encode() + b'//peft/lora.py').read()",
    """
import importlib.util as u, minipeft, os
spec = u.spec_from_file_location("mine", os.path.dirname(minipeft.__file__) + "//peft/lora.py")
spec.loader.exec_module(u.module_from_spec(spec))""",
    "import minipeft.labs.kit",
]


@either_way
def test_the_librarys_own_implementation_is_closed(submit):
    assert "done: []" in attempts_that_work(submit, OWN)


@pytest.mark.parametrize("name", ["numba_kernels", "numba_backend", "cupy_kernels", "cupy_backend"])
def test_no_other_backend_has_lab_2s_kernels(lab, tmp_path, name):
    """With something in the place of Numba or CuPy, which need not be installed, kernels would be Python functions."""
    closed = dataclasses.replace(lab, closed=all_labs(ROOT)[2].closed)
    code = f"""
import sys, types
for stub in ("numba", "cupy", "cupy.cuda", "cupy_backends", "cupy_backends.cuda", "cupy_backends.cuda.libs"):
    sys.modules[stub] = types.ModuleType(stub)
    sys.modules[stub].__getattr__ = lambda attribute: (lambda *inputs, **options: lambda thing: thing)
from minipeft.backend.{name} import attention_weights"""
    (tmp_path / "lab9.py").write_text(unsolved(code))
    all_failed(grade(closed, tmp_path, only=1), f"minipeft.backend.{name} is what this lab asks you to write")


@pytest.mark.parametrize(
    "name", ["functional.attention(x, x, x, 1)", "nn.LayerNorm(2)(x)", "nn.Block", "functional.softmax(x)"]
)
def test_a_single_function_can_be_closed(lab, tmp_path, name):
    """As lab 2 closes attention, and leaves softmax open; what is closed says so."""
    closed = dataclasses.replace(lab, closed=all_labs(ROOT)[2].closed)
    code = f"import minipeft\nfrom minipeft import functional, nn\nx = minipeft.Tensor(np.ones((1, 2, 2)))\n{name}.data"
    (tmp_path / "lab9.py").write_text(at_import(code))
    report = grade(closed, tmp_path, only=1)
    if "softmax" in name:
        assert report.total == 60
    else:
        all_failed(report, "is what this lab asks you to write")


def test_closed_says_so(submit):
    report = submit(unsolved("from minipeft.peft.lora import LoRALinear"))
    assert "minipeft.peft is what this lab asks you to write" in report.outcomes[0].message


def test_what_is_closed_is_nowhere_in_the_memory(lab, tmp_path):
    """Lab 2's attention and Block, lab 1's everything: in no module, no list of objects, no globals of the runner."""
    labs = all_labs(ROOT)
    code = """
import gc, sys
runner = vars(sys.modules["__main__"])
spaces = [runner] + [f.__globals__ for f in runner.values() if hasattr(f, "__globals__")]
names = {name for space in spaces for name in space} & {"active", "functional", "cross_entropy"}
kinds = [o for o in gc.get_objects() if isinstance(o, (type, type(lambda: 1)))]
own = {o.__qualname__ for o in kinds if str(o.__module__).startswith("minipeft.")}
print("left:", sorted(names), sorted(own & {"attention", "Block", "Transformer", "cross_entropy", "matmul"}))
"""
    for number, left in ((2, "['cross_entropy', 'matmul']"), (1, "[]")):
        (tmp_path / "lab9.py").write_text(at_import(code.strip()))
        printed = grade(dataclasses.replace(lab, closed=labs[number].closed), tmp_path, only=1).printed
        assert printed == f"left: [] {left}\n"


def test_what_is_taken_away_is_nowhere_in_the_memory(submit):
    """Functions that start a process, or have other code run in the middle of the watch."""
    code = """
import gc
functions = {o.__qualname__ for o in gc.get_objects() if type(o) is type(len) and str(o.__module__) != "builtins"}
print("left:", functions & {"fork_exec", "create_builtin", "pidfd_open", "pidfd_send_signal", "signal", "enable"})
print("there:", functions & {"create_dynamic", "getpid"})"""
    assert submit(at_import(code.strip())).printed.startswith("left: set()\nthere: {")


# ---- the layers beneath


@pytest.fixture
def closed_in(tmp_path):
    """Runs Python code in the namespaces alone, without the watch; gives the process."""
    (tmp_path / "course" / "labs" / "lab9").mkdir(parents=True)
    (tmp_path / "course" / ".git" / "objects").mkdir(parents=True)
    (tmp_path / "here" / "scratch").mkdir(parents=True)
    command, _ = confinement(tmp_path / "course" / "labs")
    if not command:
        pytest.skip("this system has no namespaces for us")
    started = []

    def run(code):
        options = {"cwd": tmp_path / "here", "env": environment(), "start_new_session": True, "text": True}
        started.append(subprocess.Popen([*command, sys.executable, "-c", code], stdout=subprocess.PIPE, **options))
        return started[-1]

    yield run
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.stdout.close()
        process.wait()


def test_the_namespaces_alone_hide_everything_and_let_nothing_be_written(closed_in, tmp_path):
    code = f"""
import json, os, socket
written = []
for place in ("/tmp", os.path.expanduser("~"), "/dev/shm", {str(tmp_path)!r}, ".", "scratch"):
    try:
        open(os.path.join(place, "minipeft-lab-was-here"), "w").close()
        written.append(place)
    except OSError: pass
try:
    os.kill({os.getpid()}, 0)
    killed = True
except OSError:
    killed = False
try:
    socket.create_connection(("127.0.0.1", 9), timeout=5)
except OSError as error:
    network = error.strerror
seen = [name for name in os.listdir("/proc") if name.isdigit()]
course = {str(tmp_path / "course")!r}
hidden = os.listdir(course + "/labs") + os.listdir(course + "/.git")
print(json.dumps([written, killed, network, len(seen), hidden, os.getpid()]))
"""
    out, _ = closed_in(code).communicate(timeout=60)
    assert json.loads(out) == [["scratch"], False, "Network is unreachable", 1, [], 1]


def test_no_process_is_left_behind(closed_in, tmp_path):
    """Not one that has a session of its own either."""
    name = f"minipeft-left-{os.getpid()}"
    code = f"""
import os, time
if not os.fork():
    os.setsid()
    os.execv("/bin/sleep", [{name!r}, "300"])
print("started", flush=True)
time.sleep(300)
"""

    def alive():
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                found.append(path.read_bytes())
        return any(line.startswith(name.encode()) for line in found)

    process = closed_in(code)
    assert process.stdout.readline() == "started\n"
    deadline = time.monotonic() + 20
    while not alive() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert alive()
    os.killpg(process.pid, signal.SIGKILL)
    while alive() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive()


def test_the_user_nobody_is_enough_to_grade(submit, monkeypatch):
    nobody = {"user": 65534, "group": 65534, "extra_groups": []}
    try:
        readable = not subprocess.call([sys.executable, "-c", "import numpy, minipeft"], cwd="/", **nobody)
    except (OSError, ValueError):
        readable = False
    if not readable:
        pytest.skip("not root, or the user nobody cannot read this Python")
    monkeypatch.setattr(sandbox, "confinement", lambda hidden: ([], nobody))
    assert submit(SOLVED, None).total == 100


def test_without_anything_of_the_system_the_result_is_the_same(submit, monkeypatch):
    expected = submit(SOLVED)
    monkeypatch.setattr(sandbox, "confinement", lambda hidden: ([], {}))
    assert submit(SOLVED) == expected


def test_nothing_is_left_behind(submit, tmp_path, monkeypatch):
    place = tmp_path / "place"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    submit(in_task_1("import os\nos._exit(1)"))
    assert not list(place.iterdir())
    shutil.rmtree(place)
