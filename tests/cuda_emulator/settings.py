"""Pinned versions, and the places where things are kept."""

import hashlib
import os
import sys
from collections.abc import Iterable
from pathlib import Path

CUPY_VERSION = "14.2.0"
CUPY = [f"cupy-cuda13x=={CUPY_VERSION}"]
HEADERS = ["nvidia-cuda-runtime==13.5.37", "nvidia-cuda-crt==13.5.37", "nvidia-cuda-profiler-api==13.5.25"]
BUILD_TOOLS = ["Cython==3.2.9", "setuptools==84.2.1", "wheel==0.48.0"]
NVRTC = ["nvidia-cuda-nvrtc==13.5.37"]

PACKAGE = Path(__file__).resolve().parent
NATIVE, OVERLAY = PACKAGE / "native", PACKAGE / "overlay"


def home() -> Path:
    """The cache folder that holds everything the emulator builds: CUDA_EMULATOR_HOME, or one in the user's cache."""
    if override := os.environ.get("CUDA_EMULATOR_HOME"):
        return Path(override).resolve()
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    version = f"py{sys.version_info.major}{sys.version_info.minor}"
    return Path(cache).resolve() / f"minipeft-cuda-emulator-{CUPY_VERSION}-{version}"


def digest(files: Iterable[Path], *extra: object) -> str:
    """A short hash of file contents and settings, to see whether to build again."""
    result = hashlib.sha256(repr(extra).encode())
    for path in sorted(files):
        result.update(path.name.encode() + path.read_bytes())
    return result.hexdigest()[:16]


def native_digest() -> str:
    """What the fake libraries and the compiled kernels depend on."""
    return digest([*NATIVE.iterdir(), PACKAGE / "compile_kernel.py", PACKAGE / "build.py"])


def kernel_folder(root: Path) -> Path:
    """Compiled kernels, for this version of the fake libraries; those of others are of no use."""
    return root / "kernels" / native_digest()


def include_flags(root: Path) -> list[str]:
    """The include paths of every kernel; the precompiled header needs the same."""
    own = root / "site" / "cupy" / "_core" / "include"
    folders = [root / "prelude", root / "include", own]
    folders += [own / "cupy" / "_cccl" / name for name in ("libcudacxx", "thrust", "cub")]
    return [f"-I{folder}" for folder in folders]


def kernel_flags(root: Path) -> list[str]:
    """How g++ compiles a kernel: -O1 takes least time over compiling and running together."""
    return ["-std=c++17", "-O1", "-w", "-fpermissive", "-fPIC", "-fno-gnu-unique", *include_flags(root)]
