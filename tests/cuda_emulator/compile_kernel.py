"""Compiles one CUDA C++ source with g++. The fake NVRTC runs it: python compile_kernel.py FOLDER

FOLDER holds source.cu and options (one a line). The result goes to the kernel cache under a hash of both; FOLDER/key gets
the hash, FOLDER/log the compiler's messages. The exit status is 1 if the source does not compile.
"""

import hashlib
import os
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import settings

# __global__ functions, except templates (their names are not plain names).
KERNEL = re.compile(
    r'(template\s*<[^;{}]*>\s*)?(?:extern\s*"C"\s*)?__global__\s+'
    r"(?:__launch_bounds__\s*\([^)]*\)\s*)?void\s+"
    r"(?:__launch_bounds__\s*\([^)]*\)\s*)?(\w+)\s*\("
)
DYNAMIC_SHARED = re.compile(r"extern\s+__shared__\s+(?:__align__\s*\(\d+\)\s*)?(\w[\w: ]*?)\s+(\w+)\s*\[\s*\]")
BARRIER = re.compile(r"__sync|__shfl_|__ballot_sync|__any_sync|__all_sync")


def translate(source: str, options: Iterable[str]) -> str:
    """CUDA C++ to C++: adds the prelude, and an entry function for each kernel."""
    kernels = [name for template, name in KERNEL.findall(source) if not template]
    has_barriers = "true" if BARRIER.search(source) else "false"
    source = DYNAMIC_SHARED.sub(r"static \1 *\2 = (\1 *)emulator_dynamic_shared", source)
    lines = ['#include "kernel_prelude.h"']
    for option in options:  # macros come after the prelude, so that the precompiled one can be used
        if option.startswith("-D"):
            name, _, value = option[2:].partition("=")
            lines.append(f"#define {name} {value or 1}")
    lines.append(source)
    for name in dict.fromkeys(kernels):
        lines += [
            f'extern "C" int emulator_entry_{name}(const unsigned *dimensions, void **arguments) {{',
            f"    return emulator_launch({name}, dimensions, arguments, {has_barriers});",
            "}",
        ]
    return "\n".join(lines) + "\n"


def main(folder: Path) -> int:
    """Compile what is in the folder, unless the cache has it."""
    root, kernels = settings.home(), Path(os.environ["CUDA_EMULATOR_KERNELS"])
    source = (folder / "source.cu").read_text()
    options = (folder / "options").read_text().splitlines()
    own = [option for option in options if option.startswith(("-D", "-I"))]  # the others steer code for GPUs
    key = hashlib.sha256("\0".join([source, *own]).encode()).hexdigest()
    (folder / "key").write_text(key)
    if (kernels / f"{key}.so").exists():
        return 0

    # Written under private names and renamed: processes side by side never see half a file.
    translated, library = (kernels / f"{key}.{os.getpid()}.{ending}" for ending in ("cpp", "so"))
    translated.write_text(translate(source, own))
    includes = [option for option in own if option.startswith("-I")]
    flags = [*settings.kernel_flags(root), "-shared", *includes]
    command = ["g++", *flags, str(translated), "-o", str(library), f"-L{root / 'lib'}", "-l:libcuda.so.1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    translated.unlink()
    if done.returncode != 0:
        (folder / "log").write_text(done.stderr[:200_000] or "g++ failed")
        return 1
    for ending, text in (("cu", source), ("options", "\n".join(options))):
        private = kernels / f"{key}.{os.getpid()}.{ending}"
        private.write_text(text)
        private.rename(kernels / f"{key}.{ending}")
    library.rename(kernels / f"{key}.so")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
