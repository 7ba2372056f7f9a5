"""From the solved source of a lab to what a student gets: the solutions are cut out, nothing else is changed.

A solution stands between the marks that nbgrader uses, the first of which names the task:

    ### BEGIN SOLUTION 2: merge and unmerge
    ...
    ### END SOLUTION

In the student's file `raise NotImplementedError("Lab 3, task 2: merge and unmerge.")` stands in its place.
"""

from __future__ import annotations

import re
from pathlib import Path

from minipeft.errors import UserError
from minipeft.files import atomic_write, disk_errors
from minipeft.labs.spec import RELEASES, SPEC, Lab, find_lab

BEGIN = re.compile(r"^(\s*)### BEGIN SOLUTION (\d+): (.+?)\.?\s*$")
END = re.compile(r"^\s*### END SOLUTION\s*$")
TASK_TABLE = "<!-- tasks -->"
CONFTEST = '''"""Lets `pytest` find the lab: `pytest` runs every public test, `pytest -m lab{0}_2` those of task 2."""

pytest_plugins = ["minipeft.labs.plugin"]
'''


def starter(source: str, lab: Lab) -> str:
    """The student's version of a solved source.

    Raises:
        UserError: a mark is not closed, is closed twice, or names a task that the lab does not have.
    """
    lines: list[str] = []
    inside = False
    for number, line in enumerate(source.splitlines(), start=1):
        where = f"{lab.solution()}, line {number}"
        begins, ends = BEGIN.match(line), END.match(line)
        if begins:
            if inside:
                raise UserError(f"{where}: a solution begins inside another one.")
            indent, task, text = begins.groups()
            if not 1 <= int(task) <= len(lab.tasks):
                raise UserError(f"{where}: lab {lab.number} has no task {task}.")
            lines.append(f'{indent}raise NotImplementedError("Lab {lab.number}, task {task}: {text}.")')
            inside = True
        elif ends:
            if not inside:
                raise UserError(f"{where}: a solution ends that did not begin.")
            inside = False
        elif "SOLUTION" in line and "###" in line:
            raise UserError(f"{where}: write '### BEGIN SOLUTION 2: what to do' and '### END SOLUTION'.")
        elif not inside:
            lines.append(line)
    if inside:
        raise UserError(f"{lab.solution()}: the last solution does not end.")
    return "\n".join(lines) + "\n"


def handout(text: str, lab: Lab) -> str:
    """The handout, with a table of the tasks and their points where the mark for it stands."""
    rows = [f"| {task.number} | {task.title} | {task.points:g} |" for task in lab.tasks]
    table = "\n".join(["| Task | What | Points |", "|---:|:---|---:|", *rows, f"| | **in all** | **{lab.points:g}** |"])
    if TASK_TABLE not in text:
        raise UserError(f"{lab.folder / 'handout.md'}: the line {TASK_TABLE} is missing, where the points go.")
    time = f"About {lab.minutes} minutes, on any laptop, without a GPU."
    return text.replace(TASK_TABLE, f"{time}\n\n{table}")


def release_files(lab: Lab) -> dict[str, str]:
    """What a student gets of a solved lab: file names and contents.

    Raises:
        UserError: as `starter`; or a file of the lab is missing.
    """
    try:
        files = {
            f"{lab.name}.py": starter(lab.solution().read_text(encoding="utf-8"), lab),
            "handout.md": handout((lab.folder / "handout.md").read_text(encoding="utf-8"), lab),
            lab.public_tests().name: lab.public_tests().read_text(encoding="utf-8"),
            "conftest.py": CONFTEST.format(lab.number),
            SPEC: (lab.folder / SPEC).read_text(encoding="utf-8"),
        }
    except OSError as error:
        raise UserError(f"Lab {lab.number} is not complete: {error.filename} cannot be read.") from None
    answers = lab.folder / "answers.md"
    if answers.exists():
        files["answers.md"] = starter_answers(answers.read_text(encoding="utf-8"))
    return files


def starter_answers(text: str) -> str:
    """Written answers without the answers: what stands between the marks is cut out."""
    return re.sub(r"<!-- BEGIN SOLUTION -->.*?<!-- END SOLUTION -->\n?", "", text, flags=re.S)


def build(lab: Lab, out: Path = RELEASES) -> Path:
    """Write the student's release of a solved lab to `out`/labN; returns that folder. Raises as `release_files`."""
    folder = out / lab.name
    for name, text in release_files(lab).items():
        atomic_write(folder / name, text)
    return folder


def start(number: int, folder: Path) -> Lab:
    """Give a student lab `number` in `folder`, which must be new or empty.

    Raises:
        UserError: there is no such lab, or there is something in the folder already; nothing is ever overwritten.
    """
    lab = find_lab(number)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is not empty, and a lab never overwrites anything. Choose a new folder.")
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    for path in sorted(lab.folder.iterdir()):
        if path.is_file():
            atomic_write(folder / path.name, path.read_bytes())
    return lab


def lab_in(folder: Path) -> Lab | None:
    """The released lab whose module lies in `folder`, or None."""
    from minipeft.labs.spec import all_labs

    return next((lab for lab in all_labs().values() if (folder / f"{lab.name}.py").is_file()), None)
