"""A report in the forms that others read: Gradescope's results.json, JUnit XML, and a CSV of a whole course."""

from __future__ import annotations

import csv
import io
import json
import re
import xml.etree.ElementTree as ET
from typing import Any

from minipeft.labs.grade import Report
from minipeft.labs.run import Outcome
from minipeft.labs.wire import plain


def numbered(report: Report) -> list[tuple[str, Outcome, float]]:
    """("2.1", outcome, the most that it is worth) of every test."""
    rows = []
    for task in report.lab.tasks:
        outcomes = report.of(task)
        rows += [(f"{task.number}.{i}", o, task.points / len(outcomes)) for i, o in enumerate(outcomes, start=1)]
    return rows


def gradescope(report: Report) -> str:
    """Gradescope's results.json (its "Autograder specifications"): hidden tests show once the grades are published."""
    tests: list[dict[str, Any]] = [
        {
            "name": f"{number} {outcome.name}",
            "number": number,
            "score": round(worth, 4) if outcome.passed else 0.0,
            "max_score": round(worth, 4),
            "status": "passed" if outcome.passed else "failed",
            "output": outcome.message or "Correct.",
            "visibility": "after_published" if outcome.hidden else "visible",
        }
        for number, outcome, worth in numbered(report)
    ]
    printed = f"\n\nYour code printed (beginning):\n{report.printed}" if report.printed else ""
    about = f"Lab {report.lab.number}: {report.lab.title}"  # no points here: they would tell of the hidden tests
    result = {
        "score": report.total,
        "output": about + printed,
        "visibility": "visible",
        "stdout_visibility": "hidden",
        "tests": tests,
    }
    return json.dumps(result, indent=2, ensure_ascii=True) + "\n"


def junit(report: Report) -> str:
    """JUnit XML: one suite a task, one case a test."""
    root = ET.Element("testsuites", name=plain(f"lab {report.lab.number}: {report.name}", 200))
    for task in report.lab.tasks:
        outcomes = report.of(task)
        failed = sum(not outcome.passed for outcome in outcomes)
        about = {"name": f"task {task.number}: {task.title}", "tests": str(len(outcomes)), "failures": str(failed)}
        suite = ET.SubElement(root, "testsuite", about)
        for outcome in outcomes:
            case = ET.SubElement(
                suite, "testcase", classname=f"lab{report.lab.number}_{task.number}", name=outcome.name
            )
            if outcome.message is not None:
                ET.SubElement(case, "failure", message=plain(outcome.message, 2000))
    ET.indent(root)
    return ET.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def course_csv(reports: list[Report]) -> str:
    """A row for each submission: its name, the total, and the points of every task; none where grading itself failed."""
    if not reports:
        return ""
    lab = reports[0].lab
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["submission", "total", *(f"task_{t.number}" for t in lab.tasks), "passed", "tests", "note"])
    for report in reports:
        passed = sum(outcome.passed for outcome in report.outcomes)
        note = next((o.message for o in report.outcomes if o.message is not None), "") or ""
        points = [f"{points:g}" for points in (report.total, *(report.score(task) for task in lab.tasks))]
        if report.trouble:
            note, points = f"could not be graded: {report.trouble}", [""] * len(points)
        cells = [plain(report.name, 200), *points, passed, len(report.outcomes), plain(note, 200)]
        writer.writerow([_not_a_formula(cell) for cell in cells])
    return text.getvalue()


def _not_a_formula(cell: Any) -> Any:
    """A text that a spreadsheet would compute, quoted. A number with a sign is what it says."""
    begins = cell.lstrip()[:1] if isinstance(cell, str) else ""
    if begins and begins in "=+-@＝＋－＠" and not re.fullmatch(r"[+-]\d+(\.\d+)?", cell):
        return f"'{cell}"
    return cell
