"""Compiled code: what of it a submission may load, and what is taken away before.

The watch (guard.py) is asked by Python. Compiled code can open a file, or start an interpreter without a watch, and ask
nobody. So of the standard library's extension modules only those come in that compute, or that ask; the others are refused,
whatever the next version of Python adds. Packages that read and write files by themselves are replaced by stand-ins.
"""

from __future__ import annotations

import gc
import importlib
import sys
import types
from typing import Any

# Of Python 3.11 to 3.14, on every system. Not here, for example: _ctypes, _interpreters, _posixsubprocess, _sqlite3, _ssl,
# _testcapi, _tkinter, _winapi, _xxsubinterpreters, readline, spwd. What NumPy or the lab loaded before stays as it is.
NAMES = """
_abc _ast _asyncio _bisect _blake2 _bz2 _codecs _codecs_cn _codecs_hk _codecs_iso2022 _codecs_jp _codecs_kr _codecs_tw
_collections _contextvars _csv _datetime _decimal _elementtree _functools _hashlib _heapq _hmac _io _json _locale _lsprof
_lzma _md5 _multibytecodec _opcode _operator _pickle _queue _random _sha1 _sha2 _sha256 _sha3 _sha512 _signal _socket _sre
_stat _statistics _string _struct _suggestions _symtable _sysconfig _thread _tokenize _tracemalloc _types _typing _uuid
_warnings _weakref _zoneinfo _zstd array atexit binascii builtins cmath errno fcntl gc grp itertools marshal math nt posix
pwd pyexpat select sys time unicodedata zlib
"""
ORDINARY = frozenset(NAMES.split())
TAKEN = (  # functions that ask nobody, and the modules that hold them
    ("fork_exec", ("_posixsubprocess",)),
    ("_fork_exec", ("subprocess",)),
    ("create_builtin", ("_imp",)),
    ("pidfd_open", ("posix", "os")),
    ("pidfd_send_signal", ("_signal", "signal")),
)
SILENT = (  # what would run other code in the middle of the watch: from Python 3.13 on it could change its variables
    ("signal", ("_signal", "signal")),
    ("enable", ("gc",)),
)
BELOW = "what needs it, its imports too, goes below `if __name__ == '__main__':`"  # the advice in every refusal
BY_THEMSELVES = ("safetensors", "safetensors.numpy", "tokenizers")  # they read and write files without Python's help


class ClosedError(ImportError):
    """A part of minipeft that the lab asks for was used, or a package that is closed while a lab is checked."""


class Closed:
    """Stands in the place of something that is closed; any use of it says so."""

    def __init__(self, message: str) -> None:
        object.__setattr__(self, "message", message)

    def _refuse(self, *inputs: Any, **options: Any) -> Any:
        raise ClosedError(object.__getattribute__(self, "message"))

    __call__ = __getattr__ = __setattr__ = __mro_entries__ = _refuse


def stand_in(name: str) -> None:
    """From now on `import name` gives a module that is empty but for things that refuse to be used."""
    message = f"{name} is closed while a lab is checked: {BELOW}"
    module = types.ModuleType(name)

    def give(attribute: str) -> Closed:
        if attribute.startswith("__"):
            raise AttributeError(attribute)
        return Closed(message)

    vars(module)["__getattr__"] = give  # PEP 562
    sys.modules[name] = module


def _nothing(*inputs: Any) -> None:
    """Does nothing."""


def take_away() -> frozenset[str]:
    """Load what is ordinary among Python's built-in modules, and make it impossible to load others, or to start a process.

    `subprocess` is loaded for modules that import it for their own purposes; nothing can be run with it.

    Returns:
        The names of the built-in modules that cannot be loaded from now on.
    """
    for name in ["subprocess", *sorted(ORDINARY & set(sys.builtin_module_names))]:
        importlib.import_module(name)
    for function, modules in TAKEN:
        for module in modules:
            if hasattr(sys.modules.get(module), function):
                delattr(sys.modules[module], function)
    gc.disable()
    for function, modules in SILENT:
        for module in modules:
            setattr(sys.modules[module], function, _nothing)
    return frozenset(sys.builtin_module_names) - ORDINARY
