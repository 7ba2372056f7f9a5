"""Compiles the one module of CuPy that is replaced: python build_runtime.py CUDA_INCLUDE LIBRARIES TARGET

It runs inside CuPy's source tree. The wheel's module has NVIDIA's runtime linked into it; this one calls a shared library.
"""

import sys

from Cython.Build import cythonize
from setuptools import Distribution, Extension
from setuptools.command.build_ext import build_ext

include, libraries, target = sys.argv[1:]
extension = Extension(
    "cupy_backends.cuda.api.runtime",
    ["cupy_backends/cuda/api/runtime.pyx"],
    language="c++",
    include_dirs=[include, "."],
    extra_compile_args=["-O1", "-w"],
    define_macros=[("_FORCE_INLINES", "1"), ("CUDA_API_PER_THREAD_DEFAULT_STREAM_NO", "1")],
    extra_link_args=[f"-L{libraries}", "-Wl,--no-as-needed", "-l:libcudart.so.13"],
)
modules = cythonize(
    [extension],
    language_level=3,
    compiler_directives={"embedsignature": True},
    compile_time_env={
        "CUPY_USE_CUDA_PYTHON": False,
        "CUPY_CUFFT_STATIC": False,
        "CUPY_CUDA_VERSION": 13000,
        "CUPY_HIP_VERSION": 0,
        "CUPY_CYTHON_VERSION": "3",
    },
)
command = build_ext(Distribution({"ext_modules": modules}))
command.build_lib = command.build_temp = target
command.ensure_finalized()
command.run()
