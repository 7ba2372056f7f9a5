"""What other systems take: an autograder for Gradescope, and a repository for GitHub Classroom."""

from __future__ import annotations

import importlib.metadata
import zipfile
from pathlib import Path

import minipeft
from minipeft.errors import UserError
from minipeft.files import atomic_path, atomic_write
from minipeft.labs.release import release_files
from minipeft.labs.spec import SPEC, Lab

SETUP = """#!/usr/bin/env bash
# Gradescope runs this once, when the autograder is built.
set -euo pipefail
apt-get update && apt-get install -y --no-install-recommends python3 python3-pip python3-venv util-linux
if python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    python3 -m venv /autograder/venv
else  # an older Ubuntu: uv brings a Python of its own
    python3 -m venv /opt/uv && /opt/uv/bin/pip install --quiet uv
    UV_PYTHON_INSTALL_DIR=/opt/python /opt/uv/bin/uv venv --seed --python 3.12 /autograder/venv
    chmod -R a+rX /opt/python
fi
/autograder/venv/bin/pip install --quiet -r /autograder/source/requirements.txt
chmod -R a+rX /autograder/venv /autograder/source/minipeft
chmod -R go-rwx /autograder/source/labs /autograder/source/run_autograder
"""

RUN = """#!/usr/bin/env bash
# Gradescope runs this for every submission, as root. The submission itself runs as nobody, without the network.
set -uo pipefail
export PYTHONPATH=/autograder/source
cd /autograder
exec /autograder/venv/bin/python -m minipeft lab grade /autograder/submission --lab {number} \\
    --labs /autograder/source/labs --json /autograder/results/results.json
"""

WORKFLOW = """name: Autograding
on:
  push:
  workflow_dispatch:
permissions:
  checks: write
  actions: read
  contents: read
jobs:
  check:
    runs-on: ubuntu-latest
    if: github.actor != 'github-classroom[bot]'
    steps:
      - uses: actions/checkout@v4
      - uses: actions/setup-python@v5
        with:
          python-version: "3.12"
      - name: minipeft, from a wheel in vendor/ or from the package index
        run: pip install $(ls vendor/minipeft-*.whl 2>/dev/null || echo minipeft=={version})
{steps}
      - name: Points
        uses: classroom-resources/autograding-grading-reporter@v1
        env:
{results}
        with:
          runners: {runners}
"""

STEP = """      - name: "Task {task}: {title}"
        id: task{task}
        uses: classroom-resources/autograding-command-grader@v1
        with:
          test-name: "Task {task}"
          command: minipeft lab check . --task {task}
          timeout: 5
          max-score: {points:.0f}
"""


def gradescope_zip(lab: Lab, out: Path) -> Path:
    """Write OUT/labN-gradescope.zip: setup.sh, run_autograder, this minipeft, and the lab's tests without its solution.

    Raises:
        UserError: the lab has no hidden tests.
    """
    if not lab.hidden_tests().is_file():
        raise UserError(f"{lab.hidden_tests()} is missing: package a lab from the solved labs (--labs).")
    files = {
        "setup.sh": SETUP,
        "run_autograder": RUN.format(number=lab.number),
        "requirements.txt": "\n".join(requirements()) + "\n",
        f"labs/{lab.name}/{SPEC}": (lab.folder / SPEC).read_text(encoding="utf-8"),
        f"labs/{lab.name}/{lab.public_tests().name}": lab.public_tests().read_text(encoding="utf-8"),
        f"labs/{lab.name}/{lab.hidden_tests().name}": lab.hidden_tests().read_text(encoding="utf-8"),
    }
    package = Path(minipeft.__file__).parent
    for path in sorted(package.rglob("*")):
        inside = path.relative_to(package)
        if path.suffix in (".py", ".toml", ".md", ".typed") and "__pycache__" not in inside.parts:
            files[f"minipeft/{inside.as_posix()}"] = path.read_text(encoding="utf-8")
    target = out / f"{lab.name}-gradescope.zip"
    with atomic_path(target) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in files.items():
            entry = zipfile.ZipInfo(name)  # without the time of day: the same lab gives the same bytes
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = (0o755 if name in ("setup.sh", "run_autograder") else 0o644) << 16
            archive.writestr(entry, text)
    return target


def classroom_folder(lab: Lab, out: Path) -> Path:
    """Write OUT/labN-classroom, the template repository of a GitHub Classroom assignment: the release and a workflow."""
    folder = out / f"{lab.name}-classroom"
    for name, text in release_files(lab).items():
        atomic_write(folder / name, text)
    atomic_write(folder / ".github" / "workflows" / "classroom.yml", workflow(lab))
    return folder


def workflow(lab: Lab) -> str:
    """The workflow: one step a task, with its points; only public tests run there."""
    steps = "\n".join(STEP.format(task=t.number, title=t.title.replace('"', "'"), points=t.points) for t in lab.tasks)
    results = "\n".join(
        f"          TASK{t.number}_RESULTS: ${{{{ steps.task{t.number}.outputs.result }}}}" for t in lab.tasks
    )
    runners = ",".join(f"task{t.number}" for t in lab.tasks)
    return WORKFLOW.format(version=minipeft.__version__, steps=steps.rstrip(), results=results, runners=runners)


def requirements() -> list[str]:
    """What the installed minipeft needs, without its extras; its own list when it runs from a checkout."""
    try:
        wanted = importlib.metadata.requires("minipeft") or []
    except importlib.metadata.PackageNotFoundError:
        import tomllib

        project = Path(minipeft.__file__).parents[1] / "pyproject.toml"
        if not project.is_file():
            raise UserError("minipeft is neither installed nor run from its repository.") from None
        wanted = tomllib.loads(project.read_text(encoding="utf-8"))["project"]["dependencies"]
    return [line for line in wanted if "extra ==" not in line]
