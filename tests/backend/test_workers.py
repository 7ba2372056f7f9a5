"""Workers: copies of this process that share arrays, meet, and never outlive a failure."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import numpy as np
import pytest

from minipeft import UserError
from minipeft.backend import active
from minipeft.backend.workers import CAN_FORK, MOST, Workers, current_workers, default_workers

needs_fork = pytest.mark.skipif(not CAN_FORK, reason="this system does not fork safely")


@pytest.fixture(autouse=True)
def _no_copy_is_left() -> Iterator[None]:
    yield
    assert current_workers().count == 1
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def test_one_worker_is_this_process() -> None:
    with Workers(1) as workers:
        assert (workers.rank, workers.count) == (0, 1)
        assert current_workers() is workers
        workers.barrier()
        assert workers.mine([1, 2, 3]) == [1, 2, 3]
        assert workers.slice(7) == slice(0, 7)


@needs_fork
@pytest.mark.parametrize("count", [2, 3, 5])
def test_every_rank_runs_the_block_and_shared_arrays_keep_what_they_wrote(count: int) -> None:
    shared, own = active().shared((count, 2), "int64"), np.zeros(count)
    with Workers(count) as workers:
        shared[workers.rank] = workers.rank + 1, os.getpid()
        own[workers.rank] = 1
    assert shared[:, 0].tolist() == list(range(1, count + 1))
    assert len(set(shared[:, 1].tolist())) == count
    assert own.tolist() == [1] + [0] * (count - 1)


@needs_fork
def test_a_barrier_waits_for_the_slowest() -> None:
    seen = active().shared((3, 40), "int32")
    with Workers(3) as workers:
        for step in range(40):
            if step % 3 == workers.rank:
                time.sleep(0.002)
            seen[workers.rank, step] = 1
            workers.barrier()
            assert seen[:, step].all()
    assert seen.all()


@pytest.mark.parametrize("size", [0, 1, 2, 7, 100])
@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_the_parts_of_all_ranks_are_the_whole(size: int, count: int) -> None:
    parts, items = [], []
    for rank in range(count):
        workers = Workers(count)
        workers.rank = rank
        parts += list(range(size))[workers.slice(size)]
        items += workers.mine(list(range(size)))
    assert parts == list(range(size))
    assert sorted(items) == list(range(size))


@needs_fork
@pytest.mark.parametrize("at_barrier", [True, False])
def test_an_error_of_a_copy_is_raised_here(at_barrier: bool) -> None:
    def run(error: Exception) -> None:
        with Workers(3) as workers:
            if workers.rank == 2:
                raise error
            if at_barrier:
                workers.barrier()

    with pytest.raises(UserError, match=r"^a file with ümlauts$"):
        run(UserError("a file with ümlauts"))
    with pytest.raises(RuntimeError, match=r"(?s)Worker 3 failed:.*test_workers\.py.*ZeroDivisionError: by zero"):
        run(ZeroDivisionError("by zero"))


@needs_fork
@pytest.mark.parametrize("at_barrier", [True, False])
def test_a_copy_that_is_killed_is_a_clear_error(at_barrier: bool) -> None:
    def run() -> None:
        with Workers(2) as workers:
            if workers.rank == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            if at_barrier:
                workers.barrier()

    with pytest.raises(UserError, match=r"Worker 2 of 2 was killed by signal 9 \(SIGKILL\)"):
        run()


@needs_fork
@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_error_here_ends_the_copies_at_once(error: type[BaseException]) -> None:
    def run() -> None:
        with Workers(3) as workers:
            if workers.rank:
                time.sleep(60)
            raise error

    began = time.monotonic()
    with pytest.raises(error):
        run()
    assert time.monotonic() - began < 20


ORPHANS = """
import os, sys, time
from minipeft.backend.workers import Workers
with Workers(3) as workers:
    if workers.rank == 0:
        print(*workers._copies, flush=True)
    while True:
        workers.barrier()
        time.sleep(0.01)
"""


@needs_fork
def test_copies_do_not_outlive_a_killed_process() -> None:
    process = subprocess.Popen([sys.executable, "-c", ORPHANS], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    copies = [int(pid) for pid in process.stdout.readline().split()]
    assert len(copies) == 2
    process.kill()
    process.wait()
    process.stdout.close()
    end = time.monotonic() + 20
    while any(os.path.exists(f"/proc/{pid}") for pid in copies):
        assert time.monotonic() < end, "a copy is still running"
        time.sleep(0.05)


@needs_fork
def test_ctrl_c_reaches_this_process_alone() -> None:
    """The terminal sends it to the whole group; a copy goes on until rank 0 has decided."""
    done = active().shared((2,), "int32")
    with Workers(2) as workers:
        if workers.rank == 1:
            os.kill(os.getpid(), signal.SIGINT)
        workers.barrier()
        done[workers.rank] = 1
    assert done.all()


@needs_fork
def test_nothing_is_printed_twice(capfd: pytest.CaptureFixture[str]) -> None:
    sys.stdout.write("in the buffer;")
    with Workers(3):
        pass
    sys.stdout.flush()
    assert capfd.readouterr().out.count("in the buffer") <= 1


@pytest.mark.parametrize("count", [0, -1, MOST + 1])
def test_a_number_of_workers_that_cannot_be(count: int) -> None:
    with pytest.raises(UserError, match=f"{count} workers"):
        Workers(count)


def test_where_there_is_no_fork_one_worker_is_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minipeft.backend.workers.CAN_FORK", False)
    assert default_workers() == 1
    assert Workers(1).count == 1
    with pytest.raises(UserError, match="use 1 worker"):
        Workers(2)
