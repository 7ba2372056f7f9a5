"""What closes a submission in, in its own process: limits, closed parts of minipeft, and a watch over what it touches.

The watch is an audit hook (PEP 578): Python asks it before every file is opened, process started or socket made, and no
Python code can remove it. Beneath it `sandbox.py` asks the operating system for the same where it can.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import sys
import sysconfig
import types
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import Any

from minipeft.labs.native import BELOW, ORDINARY, Closed, ClosedError, take_away

REFUSED = frozenset(  # audit events, or all those of a module
    [
        *("ctypes.", "socket.", "subprocess.", "pty.", "sqlite3.", "winreg.", "msvcrt.", "urllib.", "http.", "ftplib."),
        *("smtplib.", "imaplib.", "poplib.", "webbrowser.", "resource.", "syslog.", "fcntl.", "cpython.", "_winapi."),
        *("os.system", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.startfile", "os.kill"),
        *("os.killpg", "os.symlink", "os.link", "os.chmod", "os.chown", "os.lchmod", "os.setxattr", "os.removexattr"),
        *("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.truncate", "os.utime", "os.chflags", "shutil.rmtree"),
        *("signal.pthread_kill", "sys.remote_exec", "sys.settrace", "sys.setprofile"),
        *("sys._current_frames", "sys._current_exceptions"),
        "os.chdir",  # between the watch's look at a relative path and Python's, another thread could change where it leads
    ]
)
READS = frozenset(("os.listdir", "os.scandir", "os.walk", "os.fwalk", "glob.glob"))
HARMLESS = frozenset((os.devnull, "/dev/urandom", "/dev/random"))


def set_limits(megabytes: int, seconds: float) -> None:
    """Limit memory, processor time and file sizes, where the system has such limits (not on Windows)."""
    try:
        import resource
    except ImportError:
        return
    limits = [(resource.RLIMIT_CPU, int(seconds) + 5), (resource.RLIMIT_FSIZE, 10_000_000), (resource.RLIMIT_CORE, 0)]
    if sys.platform == "linux":  # elsewhere it counts what is never touched
        limits.append((resource.RLIMIT_AS, megabytes * 1_000_000))
    for which, limit in limits:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(which, (limit, limit))


class _Finder(MetaPathFinder):
    """Answers an import of a closed module with a sentence."""

    def __init__(self, closed: tuple[str, ...], message: str) -> None:
        self.closed, self.message = closed, message

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if any(name == module or name.startswith(f"{module}.") for module in self.closed):
            raise ClosedError(self.message.format(name))


def close_parts(closed: tuple[str, ...], message: str) -> list[str]:
    """Take modules, functions and methods of minipeft away; returns the files that must not be read from now on.

    Args:
        closed: dotted names.
        message: the sentence of the error, with {} for the name.
    """
    files, modules = [], []
    for name in closed:
        spec = _spec(name)
        if spec is not None:
            modules.append(name)
            files.append(str(Path(spec.origin).parent) if spec.submodule_search_locations else str(spec.origin))
        else:
            owner, attribute = _owner(name)
            if isinstance(owner, type):
                setattr(owner, attribute, Closed(message.format(name)))
            else:
                _replace_everywhere(getattr(owner, attribute), Closed(message.format(name)))
            files.append(str(sys.modules[owner.__module__ if isinstance(owner, type) else owner.__name__].__file__))
    things = [(thing, Closed(message.format(module))) for module in modules for thing in _contents(module)]
    for name in list(sys.modules):
        if any(name == module or name.startswith(f"{module}.") for module in modules):
            parent = sys.modules.get(name.rpartition(".")[0])
            if parent is not None:
                vars(parent).pop(name.rpartition(".")[2], None)
            del sys.modules[name]
    for thing, stand_in in things:  # where modules that stay have imported them
        _replace_everywhere(thing, stand_in)
    sys.meta_path.insert(0, _Finder(tuple(modules), message))
    return files


def _spec(name: str) -> Any:
    try:
        return importlib.util.find_spec(name)
    except (ImportError, AttributeError):
        return None


def _contents(module: str) -> list[Any]:
    """The functions and classes that are defined in a loaded module or below it."""
    inside = [m for name, m in list(sys.modules.items()) if name == module or name.startswith(f"{module}.")]
    own = {m.__name__ for m in inside}
    return [
        thing
        for m in inside
        for thing in list(vars(m).values())
        if isinstance(thing, type | types.FunctionType) and thing.__module__ in own
    ]


def _owner(name: str) -> tuple[Any, str]:
    """The module or the class that a dotted name's last part belongs to."""
    path, _, attribute = name.rpartition(".")
    try:
        return importlib.import_module(path), attribute
    except ImportError:
        outer, inner = _owner(path)
        return getattr(outer, inner), attribute


def _replace_everywhere(thing: Any, other: Any) -> None:
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == "minipeft" and not name.startswith("minipeft.labs"):
            for key, value in list(vars(module).items()):
                if value is thing:
                    vars(module)[key] = other


def readable_places() -> list[str]:
    """Folders and files of Python itself, and of the packages that are loaded by now."""
    roots = {sysconfig.get_path(which) for which in ("stdlib", "platstdlib")}
    if os.name == "nt":
        roots.add(os.path.join(sys.base_prefix, "DLLs"))
    for module in list(sys.modules.values()):
        origin = getattr(module, "__file__", None)
        packages, found, inside = (origin or "").rpartition(f"-packages{os.sep}")
        if found and not module.__name__.startswith("minipeft"):
            top = packages + found + inside.split(os.sep)[0]
            roots |= {top, f"{top}.libs"}
    return [root for root in roots if root] + ["/usr/share/zoneinfo", "/etc/localtime"]


def watch(readable: list[str], refused: list[str]) -> None:
    """From now on: read only `readable` without `refused`, write nothing, no network, no processes.

    The hook uses nothing that Python code can exchange. What it needs is bound now, methods of texts as well; it looks
    nothing up by name, runs no other Python code, and compares paths as texts, which must be plain: without "..", "." or
    an empty step. What is closed is compared without upper and lower case, which some systems do not tell apart.
    """
    exact = os.name != "nt"
    given = [place + os.sep for root in readable for place in {root, os.path.realpath(root)}]
    places = tuple(given if exact else map(str.casefold, given))
    out = [place for path in refused for place in {path, os.path.realpath(path)}]
    for path in out[:]:  # the compiled copy of a module lies in __pycache__
        if path.endswith(".py"):
            parent, name = os.path.split(path)
            out.append(os.path.join(parent, "__pycache__", name.removesuffix(".py")) + ".")
    short = not exact and not any("~" in place for place in places)  # PROGRA~1 is another name of a folder there
    closed = tuple(map(str.casefold, out))
    builtins = take_away()

    def hook(
        event: str,
        args: Any,
        allowed: Any = places,
        packages: Any = tuple(place for place in places if "-packages" in place),
        closed: Any = closed,
        here: str = os.getcwd() + os.sep,
        sep: str = os.sep,
        exact: bool = exact,
        tilde: str = "~" if short else "\0",
        look: Any = os.stat,
        refused: Any = REFUSED,
        reads: Any = READS,
        null: Any = HARMLESS,
        ordinary: Any = ORDINARY,
        builtins: Any = builtins,
        kind: Any = type,
        text: Any = str,
        raw: Any = bytes,
        whole: Any = int,
        no: Any = PermissionError,
        unknown: Any = ImportError,
        missing: Any = OSError,
        begins: Any = str.startswith,
        before: Any = str.partition,
        last: Any = str.rpartition,
        replace: Any = str.replace,
        split: Any = str.split,
        fold: Any = str.casefold,
        decode: Any = bytes.decode,
        below: str = BELOW,
        writing: int = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND,
        own: Any = None,
    ) -> None:
        if event in refused or before(event, ".")[0] + "." in refused or begins(event, "sys.monitoring."):
            raise no(f"{event} is not allowed while a lab is checked")
        if begins(event, "object.__") and args[0] is own:
            raise no("the code of the watch is not to be exchanged")
        if event == "import":
            name, path, write = args[0], args[1], False
            if kind(name) is not text or name in builtins:
                raise unknown(f"this import is not allowed while a lab is checked: {below}")
            if path is None:
                return  # Python code: its file is opened later
        elif event == "open":
            path, write = args[0], kind(args[2]) is whole and args[2] & writing != 0
        elif event in reads:
            path, write = args[0], False
        else:
            return
        if path is None or kind(path) is whole:
            return  # the folder that is current, or a file that is open already
        if kind(path) is raw:
            path = decode(path)
        if kind(path) is not text:
            raise no("a path must be a plain text while a lab is checked")
        if path in null:
            return
        if not begins(path, sep) and path[1:2] != ":":
            path = here + path
        steps = split(replace(path if exact else path[1:], "\\", "/"), "/")[1:]  # a share of Windows begins with two
        if "" in steps or "." in steps or ".." in steps or tilde in path:
            raise no(f"{path} is not allowed while a lab is checked: write a path without '..', '.' or '//' in it")
        folded = fold(path if exact else replace(path, "/", sep))
        place = (path if exact else folded) + sep
        found = begins(place, packages) or (begins(place, allowed) and "-packages" not in path)
        if event == "import" and found:  # an extension module
            found = begins(place, packages) or (last(name, ".")[2] in ordinary and not begins(folded, fold(here)))
            if not found:
                raise unknown(f"{name} is closed while a lab is checked: {below}")
        if event == "open" and found and not write:  # a folder's number would let paths begin elsewhere
            try:
                folder_opened = look(path)[0] & 0o170000 == 0o040000
            except missing:
                folder_opened = False
            if folder_opened:
                raise no(f"{path} is a folder")
        if write or not found or begins(folded, closed):
            what = "written" if write else "read"
            raise no(f"{path} is not to be {what} while a lab is checked: {below}")

    hook.__defaults__ = (*(hook.__defaults__ or ())[:-1], hook)  # `own`
    sys.addaudithook(hook)
