"""`minipeft lab`, the reports, the packages, and pytest in a student's folder."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
import zipfile
from pathlib import Path

import pytest

import minipeft.labs.grade
from minipeft.labs.grade import Report
from minipeft.labs.reports import course_csv, gradescope, junit
from minipeft.labs.run import Outcome
from minipeft.labs.spec import RELEASES, all_labs

ROOT = Path(__file__).parents[2]


@pytest.fixture
def run(run, monkeypatch):
    """Runs `minipeft lab ARGUMENTS` in an empty folder; gives (status, stdout, stderr)."""
    monkeypatch.setenv("COLUMNS", "200")
    return lambda *arguments: run("lab", *arguments)


@pytest.fixture
def submissions(lab, tmp_path):
    """Five submissions: right, half right, nothing, one that ends the program, one that forges an answer."""
    solved = lab.solution().read_text()
    forged = """
import gc, io
for channel in [f for f in gc.get_objects() if isinstance(f, io.BufferedWriter)]:
    channel.write(b'{"ok": {"held": {"id": Infinity, "kind": "f"}}}\\n')
    channel.flush()
"""
    folder = tmp_path / "submissions"
    texts = {
        "ada": solved,
        "=bob": solved.replace("3.0 * x", "4.0 * x"),
        "cy": None,
        "dan": f"{solved}\nimport sys\nsys.exit()\n",
        "eve": solved + forged,
    }
    for name, text in texts.items():
        (folder / name).mkdir(parents=True)
        if text is not None:
            (folder / name / "lab9.py").write_text(text)
    return folder


def test_list_shows_every_lab(run):
    status, out, _ = run("list")
    assert status == 0
    for lab in all_labs().values():
        assert lab.title[:20] in out


def test_start_then_check(run, tmp_path):
    status, out, err = run("start", 1, "mine")
    assert status == 0, err
    assert "minipeft lab check mine" in out
    there = {p.name for p in (RELEASES / "lab1").iterdir()} - {"__pycache__"}  # pip compiles what it installs
    assert {p.name for p in (tmp_path / "mine").iterdir()} == there
    status, out, _ = run("check", "mine", "--task", 2)
    assert status == 1
    assert "Lab 1, task 2: " in out
    assert "0 of 25 points" in out
    source = (tmp_path / "mine" / "lab1.py").read_text()
    solved = (ROOT / "labs" / "lab1" / "solution.py").read_text()
    (tmp_path / "mine" / "lab1.py").write_text(solved)
    status, out, _ = run("check", "mine", "--task", 2)
    assert status == 0, out
    assert "25 of 25 points" in out
    assert source != solved


def test_start_overwrites_nothing(run, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "lab1.py").write_text("my work")
    status, _, err = run("start", 1, "mine")
    assert status == 1
    assert "never overwrites" in err
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["lab1.py"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["start", 99, "mine"], "no lab 99"),
        (["check", "."], "there is no labN.py"),
        (["grade", "nowhere"], "is no folder"),
        (["grade", "."], "clone minipeft's repository"),
        (["build"], "clone minipeft's repository"),
        (["package", 3], "clone minipeft's repository"),
        (["grade", ".", "--labs", ROOT / "labs"], "Say it with --lab"),
        (["grade", ".", "--labs", ROOT / "labs", "--lab", 77], "no lab 77"),
        (["grade", ".", "--csv", "a", "--json", "b"], "--csv is for a folder"),
        (["grade", ".", "--labs", ROOT / "labs", "--lab", 3, "--csv", "a.csv"], "no folders in it"),
    ],
)
def test_a_mistake_is_one_line(run, arguments, says):
    status, _, err = run(*arguments)
    assert status == 1
    assert err.startswith("Error: ")
    assert err.count("\n") == 1
    assert says in err


def test_an_unknown_task(run):
    run("start", 1, "mine")
    status, _, err = run("check", "mine", "--task", 9)
    assert status == 1
    assert "tasks 1 to 4, not 9" in err


@pytest.mark.parametrize("command", ["list", "start", "check", "build", "grade", "package"])
def test_help_has_an_example(run, command):
    status, out, _ = run(command, "--help")
    assert status == 0
    assert f"minipeft lab {command}" in re.sub(r"\s+", " ", out)


def test_grade_a_submission(run, lab, submissions, tmp_path):
    labs = lab.folder.parent
    status, out, err = run("grade", submissions / "=bob", "--labs", labs, "--json", "r.json", "--junit", "r.xml")
    assert status == 0, err
    assert "60 of 100 points" in out
    result = json.loads((tmp_path / "r.json").read_text())
    assert result["score"] == 60
    assert "60" not in result["output"]  # the points of hidden tests do not show before the grades are published
    assert sum(test["max_score"] for test in result["tests"]) == pytest.approx(100)
    assert sum(test["score"] for test in result["tests"]) == pytest.approx(60)
    shown = {test["name"]: (test["visibility"], test["status"]) for test in result["tests"]}
    assert shown == {
        "1.1 two": ("visible", "passed"),
        "1.2 two of others": ("after_published", "passed"),
        "2.1 three": ("visible", "failed"),
    }
    assert "three times x" in result["tests"][2]["output"]
    suites = ET.parse(tmp_path / "r.xml").getroot()
    assert [(s.get("tests"), s.get("failures")) for s in suites] == [("2", "0"), ("1", "1")]


def test_grade_a_folder_of_submissions(run, lab, submissions, tmp_path):
    status, out, err = run("grade", submissions, "--labs", lab.folder.parent, "--csv", "grades.csv")
    assert status == 0, err
    rows = list(csv.DictReader((tmp_path / "grades.csv").read_text().splitlines()))
    assert [(row["submission"], row["total"], row["task_1"], row["task_2"]) for row in rows] == [
        ("'=bob", "60", "60", "0"),  # a spreadsheet would take =bob for a formula
        ("ada", "100", "60", "40"),
        ("cy", "0", "0", "0"),
        ("dan", "0", "0", "0"),
        ("eve", "0", "0", "0"),
    ]
    assert "lab9.py is missing" in rows[2]["note"]
    assert "your code ended the program with SystemExit" in rows[3]["note"]
    assert "not of the agreed form" in rows[4]["note"]
    assert out.count(" of 100 ") == 5


def test_a_submission_that_the_grader_fails_on_loses_no_other(run, lab, submissions, tmp_path, monkeypatch):
    """It should not be; if it is, the others have their points, and it is said whose are missing."""
    grade = minipeft.labs.grade.grade

    def fails(lab, submission, *options):
        if submission.name == "ada":
            raise RuntimeError("a fault of the grader")
        return grade(lab, submission, *options)

    monkeypatch.setattr("minipeft.labs.grade.grade", fails)
    status, _, err = run("grade", submissions, "--labs", lab.folder.parent, "--csv", "grades.csv")
    assert status == 1
    assert "1 of 5 could not be graded" in err
    assert err.count("\n") == 1
    rows = list(csv.DictReader((tmp_path / "grades.csv").read_text().splitlines()))
    assert [(row["submission"], row["total"]) for row in rows] == [
        ("'=bob", "60"),
        ("ada", ""),
        ("cy", "0"),
        ("dan", "0"),
        ("eve", "0"),
    ]
    assert "could not be graded: RuntimeError: a fault of the grader" in rows[1]["note"]


def test_what_is_graded_is_kept_when_grading_stops(run, lab, submissions, tmp_path, monkeypatch):
    grade = minipeft.labs.grade.grade

    def stops(lab, submission, *options):
        if submission.name == "cy":
            raise KeyboardInterrupt
        return grade(lab, submission, *options)

    monkeypatch.setattr("minipeft.labs.grade.grade", stops)
    run("grade", submissions, "--labs", lab.folder.parent, "--csv", "grades.csv")
    rows = list(csv.DictReader((tmp_path / "grades.csv").read_text().splitlines()))
    assert [(row["submission"], row["total"]) for row in rows] == [("'=bob", "60"), ("ada", "100")]
    assert not list(tmp_path.glob("*.tmp"))


def test_a_changed_point_value_is_everywhere(run, lab, submissions, tmp_path):
    labs = tmp_path / "labs"
    (labs / "lab9").mkdir(parents=True)
    for path in lab.folder.iterdir():
        if path.is_file():
            text = path.read_text().replace("points = 60", "points = 10")
            (labs / "lab9" / path.name).write_text(text)
    assert run("build", 9, "--labs", labs, "--out", "handed-out")[0] == 0
    assert "| 1 | twice | 10 |" in (tmp_path / "handed-out" / "lab9" / "handout.md").read_text()
    _, out, _ = run("grade", submissions / "=bob", "--labs", labs)
    assert "10 of 50 points" in out


def test_the_release_of_a_lab(run, lab, tmp_path):
    assert run("build", 9, "--labs", lab.folder.parent, "--out", "handed-out")[0] == 0
    given = (tmp_path / "handed-out" / "lab9" / "lab9.py").read_text()
    assert 'raise NotImplementedError("Lab 9, task 1: return twice x.")' in given
    assert "2.0 * x" not in given
    assert not (tmp_path / "handed-out" / "lab9" / "hidden_lab9.py").exists()


def outcome(message, hidden=False):
    return Outcome("a test", 1, hidden, message)


def test_reports_hold_whatever_a_submission_says(lab):
    nasty = "\x00\x1b[31m]]><b>&\ud800 =1+1\n" + "x" * 500
    report = Report(lab, "n", (outcome(nasty), outcome(None, True), Outcome("b", 2, False, nasty)), nasty)
    assert json.loads(gradescope(report))["score"] == 30
    assert len(ET.fromstring(junit(report).encode("utf-8"))) == 2
    (row,) = csv.DictReader(course_csv([report]).splitlines())
    assert row["total"] == "30"


@pytest.mark.parametrize(
    "name", ["=1+1", "=A1", "+cmd|' /C calc'!A0", "-2+3", "-1+cmd|' /C calc'!A0", "@SUM(1)", " =1", "\t=1"]
)
def test_a_name_that_a_spreadsheet_would_compute_is_quoted(lab, name):
    (row,) = csv.DictReader(course_csv([Report(lab, name, (outcome(None),))]).splitlines())
    assert row["submission"] == f"'{name}"


@pytest.mark.parametrize("name", ["ada", "-1", "+49", "-1.5", "12"])
def test_other_names_are_as_they_are(lab, name):
    (row,) = csv.DictReader(course_csv([Report(lab, name, (outcome(None),))]).splitlines())
    assert row["submission"] == name


def test_the_gradescope_zip(run, lab, submissions, tmp_path):
    """Unpacked somewhere, it grades without the repository; it holds no solution, and is the same bytes again."""
    labs = lab.folder.parent
    assert run("package", 9, "--labs", labs, "--out", "one")[0] == 0
    assert run("package", 9, "--labs", labs, "--out", "two")[0] == 0
    first = tmp_path / "one" / "lab9-gradescope.zip"
    assert first.read_bytes() == (tmp_path / "two" / "lab9-gradescope.zip").read_bytes()
    with zipfile.ZipFile(first) as archive:
        archive.extractall(tmp_path / "source")
        assert archive.getinfo("run_autograder").external_attr >> 16 & 0o111
    names = {path.name for path in (tmp_path / "source").rglob("*")}
    assert {"setup.sh", "run_autograder", "requirements.txt", "hidden_lab9.py", "lab.toml"} <= names
    assert "solution.py" not in names
    for script in ("setup.sh", "run_autograder"):
        subprocess.run(["bash", "-n", tmp_path / "source" / script], check=True)
    command = re.search(r"-m minipeft lab grade .*", (tmp_path / "source" / "run_autograder").read_text(), re.S)[0]
    command = command.replace("\\\n", " ").replace("/autograder/source", str(tmp_path / "source"))
    command = command.replace("/autograder/submission", str(submissions / "ada"))
    command = command.replace("/autograder/results", str(tmp_path / "results"))
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "source")}
    subprocess.run([sys.executable, *command.split()], cwd="/", env=environment, check=True, capture_output=True)
    assert json.loads((tmp_path / "results" / "results.json").read_text())["score"] == 100


def test_the_classroom_repository(run, lab, tmp_path):
    yaml = pytest.importorskip("yaml")
    run("package", 9, "--labs", lab.folder.parent)
    folder = tmp_path / "lab9-classroom"
    assert (folder / "lab9.py").exists()
    assert not list(folder.rglob("hidden*"))
    flow = yaml.safe_load((folder / ".github" / "workflows" / "classroom.yml").read_text())
    steps = flow["jobs"]["check"]["steps"]
    graders = [step for step in steps if "command-grader" in step.get("uses", "")]
    assert [step["with"]["max-score"] for step in graders] == [60, 40]
    assert graders[1]["with"]["command"] == "minipeft lab check . --task 2"
    assert steps[-1]["with"]["runners"] == "task1,task2"


def test_pytest_runs_one_task(run, tmp_path):
    """`pytest -m lab3_2` in a student's folder."""
    run("start", 3, "mine")
    (tmp_path / "mine" / "lab3.py").write_text((ROOT / "labs" / "lab3" / "solution.py").read_text())
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--strict-markers", "-m", "lab3_2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path / "mine", env=environment, capture_output=True, text=True, check=False)
    assert "2 passed, 7 deselected" in done.stdout, done.stdout


def test_the_students_copy_of_the_tests_does_not_count(run, tmp_path):
    run("start", 3, "mine")
    (tmp_path / "mine" / "test_lab3.py").write_text("def test_all_is_well(): pass\n")
    (tmp_path / "mine" / "lab.toml").write_text("points = 1000\n")
    status, out, _ = run("check", "mine", "--task", 4)
    assert status == 1
    assert "0 of 25 points" in out
