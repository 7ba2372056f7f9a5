"""Stands in for cuda.pathfinder, by which CuPy looks for NVIDIA's libraries.

It finds the fake ones only, so that real ones in the user's environment (PyTorch brings some) are never mixed in.
"""

import ctypes
import os
import types

RANDOM_MESSAGE = (
    "cupy.random is blocked by the CUDA emulator (cuRAND would have to be reproduced bit for bit): "
    "draw with NumPy and copy with cupy.asarray"
)
FAKE_LIBRARIES = {"cudart": "libcudart.so.13", "nvrtc": "libnvrtc.so.13", "cublas": "libcublas.so.13"}


class DynamicLibNotFoundError(RuntimeError):
    pass


def load_nvidia_dynamic_lib(name):
    if name == "curand":
        raise DynamicLibNotFoundError(RANDOM_MESSAGE)
    if name not in FAKE_LIBRARIES:
        raise DynamicLibNotFoundError(f"the CUDA library {name} is not emulated")
    path = os.path.join(os.environ["CUDA_EMULATOR_HOME"], "lib", FAKE_LIBRARIES[name])
    library = ctypes.CDLL(path)
    return types.SimpleNamespace(abs_path=path, found_via="CUDA_PATH", _handle_uint=library._handle)


def find_nvidia_binary_utility(name):
    return None


def find_nvidia_header_directory(name):
    return os.path.join(os.environ["CUDA_EMULATOR_HOME"], "include")
