"""Builds the emulator into the cache folder, from packages of PyPI and with g++. Does nothing where it is up to date."""

import contextlib
import fcntl
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from cuda_emulator import settings


class Library(NamedTuple):
    """A fake of one of NVIDIA's libraries. What is not emulated returns `refusal`, an error code of that library."""

    file: str
    source: str
    prefix: str
    refusal: int


LIBRARIES = {
    "cuda": Library("libcuda.so.1", "fake_cuda.cpp", "cu", 801),
    "nvrtc": Library("libnvrtc.so.13", "fake_nvrtc.cpp", "nvrtc", 11),
    "cudart": Library("libcudart.so.13", "fake_cudart.cpp", "cuda", 801),
    "cublas": Library("libcublas.so.13", "fake_cublas.cpp", "cublas", 15),
}


def build() -> Path:
    """Bring the cache folder up to date; returns it."""
    root = settings.home()
    overlay = settings.digest(settings.OVERLAY.glob("*.py"), settings.CUPY)
    runtime = settings.digest([settings.PACKAGE / "build_runtime.py"], overlay, settings.HEADERS, settings.BUILD_TOOLS)
    steps: list[tuple[str, str, Callable[[Path], None]]] = [  # (name, what it depends on, how)
        ("headers", repr(settings.HEADERS), install_headers),
        ("site", overlay, install_cupy),
        ("runtime", runtime, build_runtime),
        ("native", runtime + settings.native_digest(), build_native),
    ]
    with locked(root):
        for name, key, step in steps:
            stamp = root / "stamps" / name
            if stamp.exists() and stamp.read_text() == key:
                continue
            began = time.monotonic()
            stamp.unlink(missing_ok=True)
            step(root)
            stamp.write_text(key)
            print(f"cuda_emulator: {step.__doc__} ({time.monotonic() - began:.0f} s)", file=sys.stderr, flush=True)
    return root


def install_headers(root: Path) -> None:
    """CUDA's headers installed"""
    pip_install(root / "headers", settings.HEADERS)
    include = root / "include"
    include.unlink(missing_ok=True)
    include.symlink_to(Path("headers") / "nvidia" / "cu13" / "include")


def install_cupy(root: Path) -> None:
    """the CuPy wheel installed into a folder of its own"""
    site = root / "site"
    pip_install(site, settings.CUPY)
    for folder, module in (("cupy/cuda", "thrust"), ("cupy/random", "_generator_api")):  # these contain GPU code
        next((site / folder).glob(f"{module}.*.so")).unlink()
        shutil.copy(settings.OVERLAY / f"{module}.py", site / folder)
    (site / "cuda").mkdir()  # cuda.pathfinder, by which CuPy finds NVIDIA's libraries
    shutil.copy(settings.OVERLAY / "pathfinder.py", site / "cuda")


def build_runtime(root: Path) -> None:
    """CuPy's runtime module compiled from its source package"""
    (root / "info").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        pip_install(work / "tools", settings.BUILD_TOOLS)
        # With the stub, pip can read the metadata of the source package without a CUDA toolkit.
        environment = {**os.environ, "PYTHONPATH": str(work / "tools"), "CUPY_INSTALL_USE_STUB": "1"}
        source = ("--no-deps", "--no-binary", "cupy", "--no-build-isolation", f"cupy=={settings.CUPY_VERSION}")
        pip("download", *source, "--dest", work, env=environment)
        with tarfile.open(next(work.glob("cupy-*.tar.gz"))) as archive:
            archive.extractall(work, filter="data")
        tree = work / f"cupy-{settings.CUPY_VERSION}"

        # An empty library is enough to link against; the fake one needs the list of what this module calls.
        file = LIBRARIES["cudart"].file
        run("gcc", "-shared", "-x", "c", os.devnull, f"-Wl,-soname,{file}", "-o", work / file)
        script = settings.PACKAGE / "build_runtime.py"
        run(sys.executable, script, root / "include", work, work / "out", env=environment, cwd=tree)
        module = Path("cupy_backends/cuda/api") / f"runtime{sysconfig.get_config_var('EXT_SUFFIX')}"
        shutil.copy(work / "out" / module, root / "site" / module)

        # The driver and NVRTC are loaded by name at run time: note the names.
        for name, path in (("cuda", "api/_driver_extern.pxi"), ("nvrtc", "libs/_cnvrtc.pxi")):
            text = (tree / "cupy_backends" / "cuda" / path).read_text()
            found = re.findall(r"_L\.get\(\s*f?'(\w+)(\{version\})?", text)
            names = [LIBRARIES[name].prefix + stem + ("_v2" if version else "") for stem, version in found]
            (root / "info" / name).write_text("\n".join(names))


def build_native(root: Path) -> None:
    """the fake CUDA libraries compiled"""
    flags = ["-O2", "-fPIC", "-w", f"-I{settings.NATIVE}", *settings.include_flags(root)]
    with tempfile.TemporaryDirectory(dir=root) as temporary:
        work = Path(temporary)
        lib = work / "lib"
        lib.mkdir()
        counters = "libcuda_emulator.so"
        run("gcc", *flags, "-shared", settings.NATIVE / "counters.c", "-o", lib / counters, f"-Wl,-soname,{counters}")
        for name, library in LIBRARIES.items():
            compiled, stubs, exports = (work / f"{name}{ending}" for ending in (".o", "_stubs.c", ".map"))
            run("g++", "-std=c++17", *flags, "-c", settings.NATIVE / library.source, "-o", compiled)
            defined = set(re.findall(r"\bT (\w+)", run("nm", compiled)))
            stubs.write_text(stub_source(wanted_functions(root, name) - defined, library.refusal))
            run("gcc", *flags, "-c", stubs, "-o", stubs.with_suffix(".o"))
            exports.write_text(f"{library.file} {{ global: *; }};\n")  # CuPy asks for symbols of this version
            links = [f"-Wl,-soname,{library.file}", f"-Wl,--version-script={exports}", f"-L{lib}", "-lcuda_emulator"]
            run("g++", "-shared", compiled, stubs.with_suffix(".o"), "-o", lib / library.file, *links, "-ldl")
        shutil.rmtree(root / "lib", ignore_errors=True)
        lib.rename(root / "lib")

    prelude = root / "prelude"  # precompiled in place: g++ ties the result to this path
    shutil.rmtree(prelude, ignore_errors=True)
    prelude.mkdir()
    for header in ("kernel_prelude.h", "block_scheduler.h"):
        shutil.copy(settings.NATIVE / header, prelude)
    header = prelude / "kernel_prelude.h"
    run("g++", *settings.kernel_flags(root), "-x", "c++-header", header, "-o", f"{header}.gch")
    shutil.rmtree(root / "kernels", ignore_errors=True)


def wanted_functions(root: Path, name: str) -> set[str]:
    """The functions that CuPy may call in a library."""
    if name in ("cuda", "nvrtc"):
        return set((root / "info" / name).read_text().split())
    pattern = {"cudart": "api/runtime.*.so", "cublas": "libs/cublas.*.so"}[name]
    module = next((root / "site" / "cupy_backends" / "cuda").glob(pattern))
    symbols = re.findall(r"\bU (\w+)", run("nm", "-D", module))
    return {symbol for symbol in symbols if symbol.startswith(LIBRARIES[name].prefix)}


def stub_source(functions: set[str], refusal: int) -> str:
    """C code for functions that are not emulated: each says its name and returns an error."""
    body = [
        f'int {function}(void) {{ EMULATOR_ERROR("{function} is not emulated"); return {refusal}; }}'
        for function in sorted(functions)
    ]
    return "\n".join(['#include "counters.h"', *body]) + "\n"


@contextlib.contextmanager
def locked(root: Path) -> Iterator[None]:
    """One process at a time builds; the others wait for it."""
    (root / "stamps").mkdir(parents=True, exist_ok=True)
    with open(root / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def pip_install(target: Path, packages: list[str]) -> None:
    """Into a folder of its own: no environment is changed."""
    shutil.rmtree(target, ignore_errors=True)
    pip("install", "--no-deps", "--target", target, *packages)


def pip(command: str, *arguments: object, env: dict[str, str] | None = None) -> None:
    """Run pip quietly."""
    run(sys.executable, "-m", "pip", command, "--quiet", "--disable-pip-version-check", *arguments, env=env)


def run(*command: object, env: dict[str, str] | None = None, cwd: Path | None = None) -> str:
    """Run a command and return what it prints. Raises SystemExit, with the output, when it fails."""
    words = [str(part) for part in command]
    done = subprocess.run(
        words, cwd=cwd, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
    )
    if done.returncode != 0:
        raise SystemExit(f"{done.stdout}\ncuda_emulator: failed: {' '.join(words)}")
    return done.stdout
