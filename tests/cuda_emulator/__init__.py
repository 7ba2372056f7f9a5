"""Runs the CuPy wheel on a machine without a GPU: see README.md. `counters` says what went over to the device and back."""

import contextlib
import ctypes
import os
from collections.abc import Iterator

# The fields of EmulatorCounters in native/counters.h, in the same order.
COUNTERS = (
    "kernel_launches",
    "library_calls",
    "device_to_host",
    "host_to_device",
    "device_to_device",
    "memsets",
    "allocations",
    "synchronizations",
)


class _Counters(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_longlong) for name in COUNTERS)


class Counts:
    """What has happened since it was made, until `stop`."""

    kernel_launches: int
    library_calls: int
    device_to_host: int
    host_to_device: int
    device_to_device: int
    memsets: int
    allocations: int
    synchronizations: int

    def __init__(self) -> None:
        self._start = _read()
        self._end: dict[str, int] | None = None

    def as_dict(self) -> dict[str, int]:
        end = self._end or _read()
        return {name: end[name] - self._start[name] for name in COUNTERS}

    def stop(self) -> None:
        self._end = _read()

    def __getattr__(self, name: str) -> int:
        if name not in COUNTERS:
            raise AttributeError(name)
        return self.as_dict()[name]

    def __repr__(self) -> str:
        return f"Counts({self.as_dict()})"


def is_active() -> bool:
    """Whether this process was started by `python tests/cuda_emulator run`."""
    return "CUDA_EMULATOR_HOME" in os.environ


@contextlib.contextmanager
def counters() -> Iterator[Counts]:
    """Count CUDA calls: `with counters() as c: ...; assert c.device_to_host == 0`."""
    counts = Counts()
    try:
        yield counts
    finally:
        counts.stop()


def _read() -> dict[str, int]:
    live = _Counters.in_dll(ctypes.CDLL("libcuda_emulator.so"), "emulator_counters")
    return {name: getattr(live, name) for name in COUNTERS}
