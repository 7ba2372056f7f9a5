"""How the operating system closes a submission's process in: a command to start it with, or another user.

It lies beneath the watch (guard.py), which is in the process itself.
"""

from __future__ import annotations

import contextlib
import functools
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

# Of the environment: no tokens, no keys.
KEPT = ("PATH", "HOME", "LANG", "LD_LIBRARY_PATH", "SYSTEMROOT", "USERPROFILE")
NAMESPACES = "unshare --user --map-root-user --net --mount --pid --fork --kill-child sh -ec"
SCRIPT = """
while [ "$1" != -- ]; do mount -t tmpfs -o ro none "$1"; shift; done  # an empty folder in the place of each
shift
mount --bind "$PWD/scratch" "$PWD/scratch"  # all but this is to be read-only
mount -o remount,bind,ro /
while read -r _ place _ options _; do
    place=$(printf %b "$place")
    case $options in ro | ro,*) continue ;; esac
    [ "$place" = "$PWD/scratch" ] || mount -o remount,bind,ro "$place" || true
done < /proc/self/mounts 2> /dev/null
mount -t proc proc /proc 2> /dev/null || mount -t tmpfs none /proc  # the other processes are not to be seen
exec unshare --user -- "$@"
"""


def environment() -> dict[str, str]:
    """What the process knows of ours: where Python's modules are, and one thread."""
    kept = {name: os.environ[name] for name in KEPT if name in os.environ}
    threads = {f"{library}_NUM_THREADS": "1" for library in ("OPENBLAS", "OMP", "MKL")}
    paths = os.pathsep.join(str(Path(path).resolve()) for path in sys.path if path and Path(path).exists())
    python = {"PYTHONPATH": paths, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONHASHSEED": "0", "MPLBACKEND": "Agg"}
    return {**kept, **threads, **python}


def _concealed(labs: Path) -> list[Path]:
    """The folder of the labs, and the Git repository around it, which has the labs as well."""
    found = next((folder / ".git" for folder in labs.parents if (folder / ".git").exists()), None)
    if found is not None and found.is_file():  # of a worktree or a submodule: it names the folder
        named = found.read_text(encoding="utf-8", errors="replace").removeprefix("gitdir:").strip()
        found = (found.parent / named).resolve()
        found = found.parents[1] if found.parent.name == "worktrees" else found
    return [folder for folder in (labs, found) if folder is not None and folder.is_dir()]


@functools.cache
def confinement(hidden: Path) -> tuple[list[str], dict[str, Any]]:
    """What the operating system offers: a command to start with, and arguments of Popen; the first that works.

    1. Linux namespaces: no network, no other processes, nothing to write on, and empty folders in the place of `hidden` and
       of its Git repository.
    2. As root: the user `nobody`, who cannot read what is closed to others.
    3. Neither: the watch in the process (guard.py) is then the only one.
    """
    check = [sys.executable, "-P", "-c", "import minipeft.labs.child; open('scratch/written', 'w').close()"]
    choices: list[tuple[list[str], dict[str, Any]]] = []
    if sys.platform == "linux" and hidden.is_dir():
        choices.append(([*NAMESPACES.split(), SCRIPT, "sh", *map(str, _concealed(hidden)), "--"], {}))
    if os.name == "posix" and os.geteuid() == 0:
        choices.append(([], {"user": 65534, "group": 65534, "extra_groups": []}))
    for command, user in choices:
        with contextlib.suppress(OSError, subprocess.SubprocessError), tempfile.TemporaryDirectory() as name:
            folder = Path(name).resolve()
            folder.chmod(0o755)
            (folder / "scratch").mkdir()
            (folder / "scratch").chmod(0o777)
            options: dict[str, Any] = {"cwd": folder, "env": environment(), "capture_output": True, **user}
            done = subprocess.run([*command, *check], stdin=subprocess.DEVNULL, timeout=60, check=False, **options)
            if done.returncode == 0:
                return command, user
    return [], {}
