"""Workers: processes that run the same lines side by side, each with a part of the work and one thread of BLAS.

Threads would have to take turns at the interpreter thousands of times a step, and each turn that is not free costs a
sleep and a wake-up; two threads inside every matrix product wait for each other as often. Processes made by `fork` see all
that was there before as it was, share the arrays that `Backend.shared` made, and meet a few times a step.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import sys
import threading
import traceback
import warnings
from collections.abc import Sequence
from functools import cache
from types import TracebackType
from typing import TypeVar

from threadpoolctl import ThreadpoolController

from minipeft.errors import UserError

T = TypeVar("T")
MOST = 64  # workers there can be
CAN_FORK = sys.platform.startswith("linux")  # on macOS the system's own BLAS does not survive a fork

_current: Workers | None = None


class Workers:
    """`count` processes: this one, of rank 0, and copies of it that live as long as the `with` block.

    Every process runs the block, as in MPI or torch's distributed data parallel; the copies end where the block does, and
    what they changed is gone with them, but for the contents of shared arrays. With `count` 1 nothing is copied::

        total = active().shared((2,), "float32")
        with Workers(2) as workers:
            total[workers.rank] = part(workers.rank)
        print(total.sum())

    Ctrl-C reaches rank 0 alone, which ends the others when it leaves the block with an error. An error of another rank, or
    its death, is raised at rank 0's next `barrier`, or at the end of the block.

    Raises:
        UserError: more than one worker on a system that cannot fork, or an error of another rank.
    """

    def __init__(self, count: int) -> None:
        if not 1 <= count <= MOST:
            raise UserError(f"{count} workers: there can be 1 to {MOST}.")
        if count > 1 and not CAN_FORK:
            raise UserError(f"Workers are copies made by fork, which {sys.platform} does not do safely: use 1 worker.")
        self.count, self.rank = count, 0
        self._links: list[socket.socket] = []  # at rank 0, one to each of the others; there, one to rank 0
        self._copies: list[int] = []  # their process ids

    def __enter__(self) -> Workers:
        global _current
        _keep_freed_memory()
        self._before, _current = _current, self
        self._limit = _blas().limit(limits=1, user_api="blas") if self.count > 1 else None
        for rank in range(1, self.count):
            mine, theirs = socket.socketpair()
            pid = _fork()
            if pid == 0:
                signal.signal(signal.SIGINT, signal.SIG_IGN) if _in_main_thread() else None
                for link in (mine, *self._links):  # held here too, they would not close when rank 0 dies
                    link.close()
                self.rank, self._links, self._copies = rank, [theirs], []
                break
            theirs.close()
            self._links.append(mine)
            self._copies.append(pid)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        global _current
        if self.rank:
            self._leave(error)
        _current = self._before
        try:
            if error is None:
                for i in range(len(self._links)):
                    self._receive(i, b"d")
        finally:
            self._end_copies()
            if self._limit is not None:
                self._limit.restore_original_limits()

    def barrier(self) -> None:
        """Go on when all have come here."""
        if self.rank == 0:
            for i in range(len(self._links)):
                self._receive(i, b"b")
            for link in self._links:
                link.sendall(b"g")
        else:
            with contextlib.suppress(OSError):
                self._links[0].sendall(b"b")
                if self._links[0].recv(1) == b"g":
                    return
            os._exit(1)  # rank 0 is gone

    def mine(self, items: Sequence[T]) -> Sequence[T]:
        """This rank's part of the items: every `count`-th."""
        return items[self.rank :: self.count]

    def slice(self, size: int) -> slice:
        """This rank's part of range(size): the rank-th of `count` pieces of one length."""
        step = -(-size // self.count)
        return slice(min(self.rank * step, size), min((self.rank + 1) * step, size))

    def _receive(self, i: int, expected: bytes) -> None:
        """Wait for a byte of rank i + 1: `expected`, or "e" before an error's text."""
        link = self._links[i]
        got = b""
        with contextlib.suppress(ConnectionError):
            got = link.recv(1)
        if got == b"e":
            text = b"".join(iter(lambda: link.recv(65536), b"")).decode()
            raise UserError(text[1:]) if text[0] == "U" else RuntimeError(f"Worker {i + 2} failed:\n{text[1:]}")
        if got != expected:
            status = os.waitpid(self._copies.pop(i), 0)[1]
            code = os.waitstatus_to_exitcode(status)
            how = f"was killed by signal {-code} ({signal.Signals(-code).name})" if code < 0 else f"ended with {code}"
            raise UserError(
                f"Worker {i + 2} of {self.count} {how}: the system may be out of memory. What was saved is whole; "
                "run the same command again, with fewer workers if it comes back."
            )

    def _leave(self, error: BaseException | None) -> None:
        """The end of a copy: nothing of the caller's `finally` blocks, buffers or exit handlers runs twice."""
        with contextlib.suppress(OSError):
            if error is None:
                self._links[0].sendall(b"d")
            else:
                text = f"U{error}" if isinstance(error, UserError) else "E" + "".join(traceback.format_exception(error))
                self._links[0].sendall(b"e" + text.encode())
        os._exit(0 if error is None else 1)

    def _end_copies(self) -> None:
        for link in self._links:
            link.close()
        for pid in self._copies:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        self._links, self._copies = [], []


ALONE = Workers(1)


def current_workers() -> Workers:
    """The workers of the `with` block around; outside of any, one."""
    return _current or ALONE


def default_workers() -> int:
    """The processors that this process may use, at most 4: with more, the shards of a usual batch get too small.

    One where processes cannot be copied: there BLAS uses all processors inside each product.
    """
    if not CAN_FORK:
        return 1
    return min(len(os.sched_getaffinity(0)), 4)


def _fork() -> int:
    with warnings.catch_warnings():
        # Python 3.12 warns when there are other threads, whose locks would stay locked in the copy. OpenBLAS ends its
        # own before a fork; a copy prints nothing and takes no other lock.
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


@cache
def _keep_freed_memory() -> None:
    """Ask glibc not to hand freed memory back to the system after every large array.

    A training step frees and allocates the same sizes over and over; getting each page afresh, filled with zeros, costs a
    fifth of a small model's step. Other C libraries go without.
    """
    trim_threshold, mmap_threshold = -1, -3  # names in malloc.h
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(mmap_threshold, 1 << 25)
        mallopt(trim_threshold, 2**31 - 1)


@cache
def _blas() -> ThreadpoolController:
    """The BLAS libraries of this process; looking them up takes milliseconds, so it is done once."""
    return ThreadpoolController()
