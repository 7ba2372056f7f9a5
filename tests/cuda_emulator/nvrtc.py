"""Compiles the kernels that the last run used with NVIDIA's own compiler, which needs neither a GPU nor a driver."""

import ctypes
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from cuda_emulator import settings
from cuda_emulator.build import locked, pip_install


def check(root: Path, architectures: list[str]) -> int:
    """Compile every source for every architecture and say what failed; returns the exit status.

    What has compiled once is not compiled again: a file KEY.ARCHITECTURE.ok is left beside the source.
    """
    library = install(root)
    kernels = settings.kernel_folder(root)
    began = (kernels / "last_run").stat().st_mtime_ns if (kernels / "last_run").exists() else 0
    used = [path.with_suffix(".cu") for path in kernels.glob("*.so") if path.stat().st_mtime_ns >= began]
    if not used:
        print("cuda_emulator: no kernels to compile; run the tests first")
        return 1
    status = 0
    for architecture in architectures:
        start = time.monotonic()
        missing = [path for path in used if not path.with_suffix(f".{architecture}.ok").exists()]
        with ProcessPoolExecutor(initializer=_load, initargs=(library,)) as pool:
            errors = list(
                pool.map(compile_error, missing, [architecture] * len(missing), [root / "include"] * len(missing))
            )
        failed = {path: error for path, error in zip(missing, errors, strict=True) if error}
        for path, error in failed.items():
            print(f"{architecture} {path}:\n{error[:2000]}")
        seconds = time.monotonic() - start
        print(
            f"NVRTC, {architecture}: {len(used) - len(failed)} of {len(used)} CUDA sources compile "
            f"({len(used) - len(missing)} of them at an earlier time; {seconds:.0f} s)",
            flush=True,
        )
        status |= bool(failed)
    return int(status)


def install(root: Path) -> Path:
    """NVIDIA's compiler as a library, in a folder of its own."""
    folder, stamp = root / "nvrtc", root / "stamps" / "nvrtc"
    with locked(root):
        if not stamp.exists() or stamp.read_text() != repr(settings.NVRTC):
            pip_install(folder, settings.NVRTC)
            stamp.write_text(repr(settings.NVRTC))
    return next(folder.glob("nvidia/*/lib/libnvrtc.so.[0-9]*"))


_nvrtc: ctypes.CDLL


def _load(library: Path) -> None:
    global _nvrtc
    _nvrtc = ctypes.CDLL(str(library))


def compile_error(path: Path, architecture: str, include: Path) -> str | None:
    """None if the source compiles with the options that CuPy gave, else what the compiler says."""
    given = path.with_suffix(".options").read_text().splitlines()
    options = [o for o in given if not o.startswith(("-arch", "--gpu-architecture"))]
    options += [f"-arch={architecture}", f"-I{include}"]
    program = ctypes.c_void_p()
    if _nvrtc.nvrtcCreateProgram(ctypes.byref(program), path.read_bytes(), b"kernel.cu", 0, None, None) != 0:
        return "nvrtcCreateProgram failed"
    values = (ctypes.c_char_p * len(options))(*[option.encode() for option in options])
    status = _nvrtc.nvrtcCompileProgram(program, len(options), values)
    size = ctypes.c_size_t()
    _nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value + 1)
    _nvrtc.nvrtcGetProgramLog(program, log)
    _nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    if status == 0:
        path.with_suffix(f".{architecture}.ok").touch()
        return None
    return log.value.decode() or f"status {status}"
