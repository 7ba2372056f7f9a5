"""Grading a submission: every task in a process of its own, judged from here. The same submission gets the same report."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from minipeft.errors import UserError
from minipeft.labs.run import Outcome, Test, load_tests, run_test, title
from minipeft.labs.sandbox import Session, SessionEnded, SubmissionError
from minipeft.labs.spec import Lab, Task

LARGEST = 1_000_000  # bytes of a submitted module
ANSWERS = "answers.md"
LONGEST = 20_000  # bytes of it
MISSING = " is missing"
PRINTED = 4000  # characters that are kept of what a task prints


@dataclass(frozen=True)
class Report:
    """What a submission got.

    Attributes:
        lab: the lab.
        name: whose submission it is.
        outcomes: of every test, task by task.
        printed: the beginning of what it printed, but for what it printed during hidden tests, whose inputs it knows.
        trouble: why it could not be graded, which is the grader's fault and not the submission's; "" when it was.
        seconds: what grading took; not part of the result.
    """

    lab: Lab
    name: str
    outcomes: tuple[Outcome, ...]
    printed: str = ""
    trouble: str = ""
    seconds: float = field(default=0.0, compare=False)

    def of(self, task: Task) -> list[Outcome]:
        """The outcomes of one task."""
        return [outcome for outcome in self.outcomes if outcome.task == task.number]

    def score(self, task: Task) -> float:
        """The points of a task: the part of its tests that passed, to a hundredth of a point."""
        outcomes = self.of(task)
        passed = sum(outcome.passed for outcome in outcomes)
        return round(task.points * passed / len(outcomes), 2) if outcomes else 0.0

    @property
    def total(self) -> float:
        """The points of the lab."""
        return round(sum(self.score(task) for task in self.lab.tasks), 2)


def grade(
    lab: Lab,
    submission: Path,
    hidden: bool = True,
    only: int | None = None,
    on_task: Callable[[Task], None] | None = None,
) -> Report:
    """Run the public tests of a lab, and the hidden ones, on the folder of a submission.

    Args:
        lab: from the instructor's folder, or a release for the public tests alone.
        submission: a folder that should hold labN.py (and answers.md where the lab asks for one).
        hidden: whether to run the hidden tests.
        only: the number of one task; None for all.
        on_task: called before each task.

    Raises:
        UserError: the lab's tests are missing or wrong. What the submission does raises nothing.
    """
    began = time.perf_counter()
    tests = [(test, False) for test in load_tests(lab.public_tests())]
    tests += [(test, True) for test in load_tests(lab.hidden_tests())] if hidden else []
    numbers = {task.number for task in lab.tasks}
    if {test.task for test, _ in tests} != numbers:  # type: ignore[attr-defined]
        raise UserError(f"The tests of lab {lab.number} are of other tasks than the {len(numbers)} in lab.toml.")
    sent = _sent(lab, submission)
    outcomes: list[Outcome] = []
    printed, trouble = "", sent.trouble
    for task in lab.tasks:
        if only in (None, task.number):
            if on_task is not None:
                on_task(task)
            mine = [(test, is_hidden) for test, is_hidden in tests if test.task == task.number]  # type: ignore[attr-defined]
            got, said, trouble = _run_task(lab, task, mine, sent, trouble)
            outcomes += got
            printed = printed or said
    name = submission.resolve().name
    return Report(lab, name, tuple(outcomes), printed, seconds=time.perf_counter() - began)


@dataclass(frozen=True)
class _Sent:
    """What was handed in: the module, the text of answers.md, and what is wrong with each; "" when nothing is."""

    file: Path
    answers: str
    trouble: str
    answers_trouble: str


def _sent(lab: Lab, submission: Path) -> _Sent:
    file, answers = submission / f"{lab.name}.py", submission / ANSWERS
    text, trouble = "", _unfit(answers, LONGEST)
    if not trouble:
        text = answers.read_bytes().decode("utf-8", errors="replace")
    if trouble.endswith(MISSING):  # the tests say which answer
        trouble = ""
    return _Sent(file, text, _unfit(file, LARGEST), trouble)


def _run_task(
    lab: Lab, task: Task, tests: list[tuple[Test, bool]], sent: _Sent, trouble: str
) -> tuple[list[Outcome], str, str]:
    """The outcomes of a task, what was printed, and why nothing can be run at all ("" when it can)."""
    outcomes: list[Outcome] = []
    session: Session | None = None
    printed, deadline, late = "", time.monotonic() + lab.seconds, ""
    try:
        for test, is_hidden in tests:
            message: str | None = trouble or late
            if not message and (session is None or session.ended):
                try:
                    began = time.monotonic()
                    session = Session(lab, sent.file, deadline - began)
                    deadline += session.started - began  # Python's own start is not the submission's time
                    if not outcomes:
                        printed = session.printed
                    session.printed = ""
                except (SubmissionError, SessionEnded) as error:
                    session, message = None, f"{sent.file.name} cannot be imported: {error}"
                    if outcomes:
                        late = message  # there was little time left: the next task may fare better
                    else:
                        trouble = message
            if not message and sent.answers_trouble and "answers" in inspect.signature(test).parameters:
                message = sent.answers_trouble
            elif not message:
                assert session is not None
                message = run_test(test, session.root(0), session.root(1), sent.answers)
                printed += "" if is_hidden else session.printed
                session.printed = ""
                if time.monotonic() >= deadline:
                    late = "not run: the tests before it took all the time of the task"
            outcomes.append(Outcome(title(test), task.number, is_hidden, message))
    finally:
        if session is not None:
            session.close()
    return outcomes, printed[:PRINTED], trouble


def _unfit(file: Path, most: int) -> str:
    """Why a submitted file is not looked at; "" when it is fit."""
    try:
        if file.is_symlink() or (file.exists() and not file.is_file()):
            return f"{file.name} is not a plain file"
        if not file.exists():
            return file.name + MISSING
        if file.stat().st_size > most:
            return f"{file.name} is larger than {most // 1000} kB"
        file.open("rb").close()
    except OSError:
        return f"{file.name} cannot be read"
    return ""
