"""The emulated device refuses what a GPU refuses, says by name what it does not emulate, and counts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest


@pytest.fixture
def cp(on_cupy: Any, device_kind: str) -> Any:
    if device_kind != "emulated":
        pytest.skip("the CUDA emulator is not built into this process: python tests/cuda_emulator run -- pytest ...")
    return on_cupy.xp


def raw(cp: Any, body: str) -> Any:
    return cp.RawKernel(f'extern "C" __global__ void kernel(float *x) {{ {body} }}', "kernel")


def test_a_barrier_that_some_threads_never_reach(cp, capfd):
    stuck = raw(cp, "if (threadIdx.x < 16) __syncwarp(); else __syncthreads(); x[0] = 1;")
    with pytest.raises(cp.cuda.driver.CUDADriverError):
        stuck((1,), (32,), (cp.zeros(1, dtype="float32"),))
    assert "wait at a barrier that the others never reach" in capfd.readouterr().err
    assert float(cp.ones(5, dtype="float32").sum()) == 5, "the emulator still works"


def test_a_kernel_that_does_not_compile(cp):
    with pytest.raises(cp.cuda.compiler.CompileException, match="no_such_name"):
        raw(cp, "x[0] = no_such_name;")((1,), (1,), (cp.zeros(1, dtype="float32"),))


def test_a_cuda_function_that_is_not_emulated_does_not_compile(cp):
    with pytest.raises(cp.cuda.compiler.CompileException, match="__nanosleep"):
        raw(cp, "__nanosleep(1); x[0] = 1;")((1,), (1,), (cp.zeros(1, dtype="float32"),))


@pytest.mark.parametrize(("grid", "block"), [((1,), (2048,)), ((1, 70000), (1,))])
def test_a_launch_that_no_gpu_takes(cp, grid, block):
    with pytest.raises(cp.cuda.driver.CUDADriverError):
        raw(cp, "x[0] = 1;")(grid, block, (cp.zeros(1, dtype="float32"),))


def test_a_copy_beyond_the_end_of_an_allocation(cp):
    a = cp.zeros(128, dtype="float32")
    size = cp.cuda.runtime.memGetInfo()[1]
    with pytest.raises(cp.cuda.runtime.CUDARuntimeError):
        cp.cuda.runtime.memcpy(a.data.ptr, a.data.ptr, size, cp.cuda.runtime.memcpyDeviceToDevice)
    host = np.zeros(4)
    with pytest.raises(cp.cuda.runtime.CUDARuntimeError):
        cp.cuda.runtime.memcpy(host.ctypes.data, a.data.ptr, 4, cp.cuda.runtime.memcpyDeviceToDevice)


def test_memory_is_not_zero_before_it_is_written(cp):
    assert cp.isnan(cp.empty(1 << 20, dtype="float32")).all()


def test_memory_ends(cp):
    with pytest.raises(cp.cuda.memory.OutOfMemoryError):
        cp.empty(1 << 40, dtype="uint8")


@pytest.mark.parametrize(
    "draw", [lambda r: r.rand(3), lambda r: r.default_rng(0).random(3), lambda r: r.RandomState(0).standard_normal(3)]
)
def test_random_numbers_are_blocked(cp, draw):
    with pytest.raises(Exception, match=r"cupy\.random is blocked"):
        draw(cp.random)


def test_what_is_not_emulated_says_so(cp, capfd):
    with pytest.raises(ImportError, match="cusolver is not emulated"):
        cp.linalg.svd(cp.ones((3, 3), dtype="float32"))
    with pytest.raises(RuntimeError, match="Thrust is needed"):
        cp.sort(cp.ones(3, dtype="float32"))
    with pytest.raises(Exception, match="NOT_SUPPORTED"):
        cp.ones((4, 4), dtype="complex64") @ cp.ones((4, 4), dtype="complex64")
    assert "cublasGemmEx is not emulated for data types" in capfd.readouterr().err


def test_what_is_counted(cp):
    import cuda_emulator

    x = np.ones((3, 4), dtype="float32")
    a = cp.asarray(x)
    a + 1  # compiled, and the pool has a block to use again
    with cuda_emulator.counters() as counts:
        b = a + 1
        c = b @ b.T
    assert (counts.kernel_launches, counts.library_calls, counts.device_to_host) == (1, 1, 0)
    with cuda_emulator.counters() as counts:
        float(c[0, 0])
        cp.asarray(x)
    assert (counts.device_to_host, counts.host_to_device) == (1, 1)
    with cuda_emulator.counters() as counts:
        cp.cuda.Device().synchronize()
    assert counts.synchronizations == 1
