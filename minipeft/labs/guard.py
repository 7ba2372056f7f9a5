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

REFUSED = frozenset(  # audit events, or all those of a module
    [
        *("ctypes.", "socket.", "subprocess.", "pty.", "sqlite3.", "winreg.", "msvcrt.", "urllib.", "http.", "ftplib."),
        *("smtplib.", "imaplib.", "poplib.", "webbrowser.", "resource.", "syslog.", "fcntl.", "sys.remote_exec"),
        *("os.system", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.startfile", "os.kill"),
        *(
            "os.killpg",
            "signal.pthread_kill",
            "os.symlink",
            "os.link",
            "os.chmod",
            "os.chown",
            "os.lchmod",
            "os.setxattr",
        ),
    ]
)
READS = frozenset(("os.listdir", "os.scandir", "os.walk", "os.fwalk", "glob.glob", "os.chdir"))
WRITES = frozenset(("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.truncate", "os.utime", "shutil.rmtree"))
HARMLESS = frozenset((os.devnull, "/dev/urandom", "/dev/random"))
NONE = type(None)
NATIVE = frozenset(("_ctypes", "ctypes", "_posixsubprocess", "_multiprocessing", "_winapi"))


class ClosedError(ImportError):
    """A part of minipeft that the lab asks for was used."""


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


class _Closed:
    """Stands in the place of something that the lab asks for; any use of it says so."""

    def __init__(self, message: str) -> None:
        object.__setattr__(self, "message", message)

    def _refuse(self, *inputs: Any, **options: Any) -> Any:
        raise ClosedError(object.__getattribute__(self, "message"))

    __call__ = __getattr__ = __setattr__ = __mro_entries__ = _refuse


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
                setattr(owner, attribute, _Closed(message.format(name)))
            else:
                _replace_everywhere(getattr(owner, attribute), _Closed(message.format(name)))
            files.append(str(sys.modules[owner.__module__ if isinstance(owner, type) else owner.__name__].__file__))
    things = [(thing, _Closed(message.format(module))) for module in modules for thing in _contents(module)]
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
    for module in list(sys.modules.values()):
        origin = getattr(module, "__file__", None)
        packages, found, inside = (origin or "").rpartition(f"-packages{os.sep}")
        if found and not module.__name__.startswith("minipeft"):
            top = packages + found + inside.split(os.sep)[0]
            roots |= {top, f"{top}.libs"}
    return [root for root in roots if root] + ["/usr/share/zoneinfo", "/etc/localtime"]


def watch(readable: list[str], refused: list[str]) -> None:
    """From now on: read only `readable` without `refused`, write nothing, no network, no processes.

    The hook uses nothing that Python code can exchange: what it needs is bound now, and paths are compared as texts.
    """
    allowed = tuple(place for root in readable for place in {root, os.path.realpath(root)})
    closed = tuple(place for path in refused for place in {path, os.path.realpath(path)})
    for path in closed[:]:  # the compiled copy of a module lies in __pycache__
        if path.endswith(".py"):
            parent, name = os.path.split(path)
            closed += (os.path.join(parent, "__pycache__", name.removesuffix(".py")) + ".",)

    def hook(
        event: str,
        args: Any,
        allowed: Any = allowed,
        closed: Any = closed,
        sep: str = os.sep,
        here: Any = os.getcwd,
        look: Any = os.stat,
        refused: Any = REFUSED,
        reads: Any = READS,
        writes: Any = WRITES,
        native: Any = NATIVE,
        kind: Any = type,
        text: Any = str,
        raw: Any = bytes,
        whole: Any = int,
        none: Any = NONE,
        no: Any = PermissionError,
        null: Any = HARMLESS,
        writing: int = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND,
    ) -> None:
        if event in refused or event.partition(".")[0] + "." in refused:
            raise no(f"{event} is not allowed while a lab is checked")
        if event == "object.__setattr__" and args[1] in ("__code__", "__defaults__", "__kwdefaults__"):
            raise no("the code of a function is not to be exchanged while a lab is checked")
        if event == "import":
            name, place = args[0], args[1]
            if kind(name) is not text or name.rpartition(".")[2] in native:
                raise no("this import is not allowed while a lab is checked")
            if place is None:
                return
            paths, write = (place,), False
        elif event == "open":
            paths, write = args[:1], kind(args[2]) is whole and bool(args[2] & writing)
        elif event in reads:
            paths, write = args[:1], False
        elif event in writes:
            paths, write = args[:2], True
        else:
            return
        for path in paths:
            if kind(path) is raw:
                path = path.decode()
            if kind(path) in (whole, none):
                continue  # a file that is open already
            if kind(path) is not text or ".." in path.split(sep):
                raise no("a path must be a plain text without '..' while a lab is checked")
            if path in null:
                continue
            whole_path = path if path.startswith(sep) or path[1:2] == ":" else here() + sep + path
            if event == "open" and not write:  # a folder's number would let paths begin elsewhere
                try:
                    folder_opened = look(whole_path).st_mode & 0o170000 == 0o040000
                except OSError:
                    folder_opened = False
                if folder_opened:
                    raise no(f"{whole_path} is a folder")
            found = False
            for root in () if write else allowed:
                under = whole_path == root or whole_path.startswith(root + sep)
                found = found or (under and ("-packages" in root or "-packages" not in whole_path))
            for root in closed:
                found = found and not (whole_path.startswith(root))
            if not found:
                raise no(f"{whole_path} is not to be {'written' if write else 'read'} while a lab is checked")

    for module, name in (("_posixsubprocess", "fork_exec"), ("subprocess", "_fork_exec")):
        if module in sys.modules and hasattr(sys.modules[module], name):
            delattr(sys.modules[module], name)
    sys.addaudithook(hook)
