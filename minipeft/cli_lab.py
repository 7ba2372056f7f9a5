"""`minipeft lab`: the course labs, for students (list, start, check) and for instructors (build, grade, package)."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from minipeft.cli_common import LINE, err, out
from minipeft.errors import UserError

if TYPE_CHECKING:
    from minipeft.labs.grade import Report
    from minipeft.labs.spec import Lab

app = typer.Typer(
    help="The course labs: start one, check it; build, grade and package them.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)

Labs = Annotated[Path, typer.Option("--labs", help="The folder of the solved labs, `labs` of the repository.")]


@app.command("list")
def list_labs() -> None:
    """Show the labs.

    Example: `minipeft lab list`
    """
    from rich.table import Table

    from minipeft.labs.spec import all_labs

    table = Table("lab", "title", "tasks", "points", "minutes")
    for lab in all_labs().values():
        table.add_row(str(lab.number), lab.title, str(len(lab.tasks)), f"{lab.points:g}", str(lab.minutes))
    out.print(table)


@app.command()
def start(
    number: Annotated[int, typer.Argument(help="As in `minipeft lab list`.")],
    folder: Annotated[Path, typer.Argument(help="A new or empty folder; nothing is ever overwritten.")],
) -> None:
    """Get a lab: the handout, the file to write in, and the public tests.

    Example: `minipeft lab start 3 my-lab3`
    """
    from minipeft.labs.release import start as begin

    lab = begin(number, folder)
    out.print(f"Lab {lab.number}, {lab.title}: about {lab.minutes} minutes, {lab.points:g} points.", highlight=False)
    out.print(f"1. Read   {folder / 'handout.md'}", **LINE)
    out.print(f"2. Write  {folder / f'{lab.name}.py'}", **LINE)
    out.print(f"3. Check  minipeft lab check {folder}", **LINE)


@app.command()
def check(
    folder: Annotated[Path, typer.Argument(help="The folder of your lab.")] = Path("."),
    task: Annotated[int | None, typer.Option(help="One task alone.")] = None,
) -> None:
    """Run the public tests and show what is right and what is missing. Exit status 0 when all is right.

    Example: `minipeft lab check my-lab3 --task 2`
    """
    from minipeft.labs.grade import grade as run
    from minipeft.labs.release import lab_in

    lab = lab_in(folder)
    if lab is None:
        raise UserError(f"{folder} holds no lab: there is no labN.py in it. Start one: minipeft lab start 3 {folder}")
    _known_task(lab, task)
    with err.status("Checking ...") as status:
        report = run(lab, folder, False, task, lambda t: status.update(f"Task {t.number}: {t.title} ..."))
    _scoreboard(report, "public tests")
    if not all(outcome.passed for outcome in report.outcomes):
        raise typer.Exit(1)


@app.command()
def build(
    number: Annotated[int | None, typer.Argument(help="One lab; all of them when left out.")] = None,
    labs: Labs = Path("labs"),
    out_folder: Annotated[
        Path | None, typer.Option("--out", help="Where to; the package's own releases when left out.")
    ] = None,
) -> None:
    """Instructors: write the students' release of the solved labs.

    Example: `minipeft lab build 3 --out handed-out`
    """
    from minipeft.labs.release import build as write
    from minipeft.labs.spec import RELEASES

    for lab in _solved(labs, number):
        out.print(f"Lab {lab.number}: {write(lab, out_folder or RELEASES)}", **LINE)


@app.command()
def grade(
    folder: Annotated[Path, typer.Argument(help="A submission; or, with --csv, a folder of submissions.")],
    number: Annotated[int | None, typer.Option("--lab", help="The lab; found by its file when left out.")] = None,
    labs: Labs = Path("labs"),
    json_file: Annotated[Path | None, typer.Option("--json", help="Gradescope's results.json.")] = None,
    junit_file: Annotated[Path | None, typer.Option("--junit", help="JUnit XML.")] = None,
    csv_file: Annotated[Path | None, typer.Option("--csv", help="A row for each folder in FOLDER.")] = None,
) -> None:
    """Instructors: grade a submission, or a folder of them, by the public and the hidden tests.

    Every task runs in a process of its own, in a copy, with limits of time and memory, without the network.

    Example: `minipeft lab grade submissions/ada --json results.json`

    Example: `minipeft lab grade submissions --lab 3 --csv grades.csv`
    """
    from rich.progress import track

    from minipeft.files import atomic_write
    from minipeft.labs.grade import grade as run
    from minipeft.labs.reports import gradescope, junit

    if not folder.is_dir():
        raise UserError(f"{folder} is no folder.")
    if csv_file and (json_file or junit_file):
        raise UserError("--csv is for a folder of submissions, --json and --junit are for one.")
    if csv_file:
        submissions = _folders_in(folder)
        lab = _lab_of(submissions, number, labs)
        shown = track(submissions, "Grading", console=err, disable=not err.is_terminal)
        _grade_all(lab, shown, csv_file)
        return
    report = run(_lab_of([folder], number, labs), folder)
    if json_file:
        atomic_write(json_file, gradescope(report))
    if junit_file:
        atomic_write(junit_file, junit(report))
    _scoreboard(report, "public and hidden tests")


@app.command()
def package(
    number: Annotated[int, typer.Argument(help="The lab.")],
    labs: Labs = Path("labs"),
    out_folder: Annotated[Path, typer.Option("--out", help="Where to.")] = Path("."),
) -> None:
    """Instructors: write a Gradescope autograder and a GitHub Classroom template.

    Example: `minipeft lab package 3 --out handed-out`
    """
    from minipeft.labs.package import classroom_folder, gradescope_zip

    (lab,) = _solved(labs, number)
    out.print(f"Gradescope        {gradescope_zip(lab, out_folder)}", **LINE)
    out.print(f"GitHub Classroom  {classroom_folder(lab, out_folder)}", **LINE)


def _solved(labs: Path, number: int | None) -> list[Lab]:
    """The solved labs in a folder, or one of them."""
    from minipeft.labs.spec import all_labs, find_lab

    if not all_labs(labs):
        raise UserError(
            f"{labs} holds no solved labs. They are not part of the installed package: clone minipeft's repository and "
            "give its folder `labs` with --labs."
        )
    return list(all_labs(labs).values()) if number is None else [find_lab(number, labs)]


def _folders_in(folder: Path) -> list[Path]:
    try:
        found = sorted(path for path in folder.iterdir() if path.is_dir())
    except OSError as error:
        raise UserError(f"{folder} cannot be read: {error.strerror}.") from None
    if not found:
        raise UserError(f"{folder} has no folders in it; with --csv, each folder in it is a submission.")
    return found


def _grade_all(lab: Lab, submissions: Iterable[Path], csv_file: Path) -> None:
    """Grade one after the other. The CSV is written anew after each, so that nothing is lost, whatever comes after.

    Raises:
        UserError: the lab or this machine is not in order; or the grader itself failed on a submission, in the end.
    """
    from minipeft.files import atomic_write
    from minipeft.labs.grade import Report
    from minipeft.labs.grade import grade as run
    from minipeft.labs.reports import course_csv

    reports: list[Report] = []
    for submission in submissions:
        try:
            reports.append(run(lab, submission))
        except UserError:
            raise
        except Exception as error:  # it should not be; the others have their points all the same
            reports.append(Report(lab, submission.name, (), trouble=f"{type(error).__name__}: {error}"))
        atomic_write(csv_file, course_csv(reports))
    for report in reports:
        points = "      -" if report.trouble else f"{report.total:7.2f}"
        out.print(f"{points} of {lab.points:g}   {escape(report.name)}", **LINE)
    failed = [report for report in reports if report.trouble]
    if failed:
        raise UserError(
            f"{len(failed)} of {len(reports)} could not be graded; {csv_file} says why: {failed[0].trouble}"
        )


def _lab_of(submissions: list[Path], number: int | None, labs: Path) -> Lab:
    if number is None:
        found = {lab.number for lab in _solved(labs, None) for s in submissions if os.path.exists(s / f"{lab.name}.py")}
        if len(found) != 1:
            raise UserError("Which lab is it? Say it with --lab, for example --lab 3.")
        number = found.pop()
    return _solved(labs, number)[0]


def _known_task(lab: Lab, task: int | None) -> None:
    if task is not None and not 1 <= task <= len(lab.tasks):
        raise UserError(f"Lab {lab.number} has the tasks 1 to {len(lab.tasks)}, not {task}.")


def _scoreboard(report: Report, tests: str) -> None:
    """The tasks with their points, and the first thing that is missing in each."""
    from rich.table import Table

    lab = report.lab
    table = Table(
        "task", "tests", "points", "what is missing", title=f"Lab {lab.number}: {lab.title}", title_style="bold"
    )
    for task in lab.tasks:
        outcomes = report.of(task)
        if not outcomes:
            continue
        wrong = [outcome for outcome in outcomes if not outcome.passed]
        what = f"[red]{escape(wrong[0].name)}[/]\n{escape(wrong[0].message or '')}" if wrong else "[green]nothing[/]"
        more = f"\n[dim]and {len(wrong) - 1} more[/]" if len(wrong) > 1 else ""
        passed = f"{len(outcomes) - len(wrong)} of {len(outcomes)}"
        points = f"{report.score(task):g} of {task.points:g}"
        table.add_row(f"{task.number}. {escape(task.title)}", passed, points, what + more)
        table.add_section()
    out.print(table)
    if report.printed:
        out.print(f"[dim]Your code printed:[/]\n{escape(report.printed)}", highlight=False)
    most = sum(task.points for task in lab.tasks if report.of(task))
    out.print(f"[bold]{report.total:g} of {most:g} points[/] by the {tests}, {report.seconds:.0f} s.", highlight=False)
    sys.stdout.flush()
