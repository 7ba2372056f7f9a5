"""The emulator's command.

python tests/cuda_emulator build                            # once, about a minute
python tests/cuda_emulator run -- pytest tests/on_cupy      # `import cupy` gives the emulated one in that command
python tests/cuda_emulator nvrtc [sm_80 ...]                # NVIDIA's compiler on the kernels that the last run used
"""

import os
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # the package's folder, in the place of the package

from cuda_emulator import settings  # noqa: E402
from cuda_emulator.build import build  # noqa: E402
from cuda_emulator.nvrtc import check  # noqa: E402


def environment(root: Path) -> dict[str, str]:
    """In this environment `import cupy` gives the emulated CuPy, and `import cuda_emulator` its counters."""
    kernels = settings.kernel_folder(root)
    kernels.mkdir(parents=True, exist_ok=True)
    (kernels / "last_run").touch()

    def before(name: str, *folders: Path) -> str:
        return os.pathsep.join([*map(str, folders), *filter(None, [os.environ.get(name)])])

    return {
        **os.environ,
        "CUDA_EMULATOR_HOME": str(root),
        "CUDA_EMULATOR_KERNELS": str(kernels),
        "CUDA_EMULATOR_PYTHON": sys.executable,
        "CUDA_EMULATOR_COMPILER": str(settings.PACKAGE / "compile_kernel.py"),
        "CUPY_CACHE_DIR": str(kernels / "cupy"),
        "CUPY_ACCELERATORS": "",  # CUB and cuTENSOR contain GPU code
        "CUDA_PATH": str(root),
        "LD_LIBRARY_PATH": before("LD_LIBRARY_PATH", root / "lib"),
        "PYTHONPATH": before("PYTHONPATH", root / "site", settings.PACKAGE.parent),
    }


def main(arguments: list[str]) -> int:
    """The command line."""
    command, rest = (arguments[0], arguments[1:]) if arguments else ("", [])
    if command == "build" and not rest:
        print(f"cuda_emulator: ready in {build()}")
        return 0
    if command == "run" and rest[:1] == ["--"] and rest[1:]:
        words = rest[1:]
        if words[0] == "pytest":
            words = ["python", "-m", *words]
        if words[0] in ("python", "python3"):
            words = [sys.executable, *words[1:]]
        os.execvpe(words[0], words, environment(build()))
    if command == "nvrtc":
        return check(build(), rest or ["sm_80", "sm_90"])
    print(__doc__, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
