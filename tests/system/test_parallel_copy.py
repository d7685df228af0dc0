"""Several threads copy the same bytes as one would, and have ended when the copy is done."""

from __future__ import annotations

import signal
import threading
import time
from collections import deque
from functools import partial
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from ckptstore.system.parallel_copy import PIECE, ParallelCopy, _do, copy_jobs, strided_copy_jobs

MANY = 1 << 40


def copying() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "ckptstore-copy"]


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((), "f4"),
        ((0, 3), "f4"),
        ((3, 5), "i8"),
        ((PIECE // 2 + 7,), "f8"),
        ((3, PIECE), "u1"),
        ((PIECE + 1,), "?"),
    ],
)
def test_arrays_of_any_size_are_copied_completely(threads: int, shape: tuple[int, ...], dtype: str) -> None:
    random = np.random.default_rng(0)
    source = random.integers(0, 2, shape).astype(dtype)
    target = np.full(shape, 1, dtype)

    ParallelCopy(threads)(copy_jobs(target, source), nbytes=MANY)

    assert np.array_equal(target, source)
    assert not copying()


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((0, 3), np.float32),
        ((1, 2 * PIECE), np.bool_),
        ((700, PIECE // 1024), ml_dtypes.bfloat16),
        ((3, 2, PIECE), np.int8),
        ((5, 4), ml_dtypes.int4),
    ],
)
def test_a_part_of_an_array_is_copied_in_pieces(shape: tuple[int, ...], dtype: Any) -> None:
    source = np.random.default_rng(0).integers(0, 2, shape).astype(dtype)
    whole = np.zeros((*shape[:-1], shape[-1] + 2), dtype)
    jobs = list(strided_copy_jobs(whole[..., 1:-1], source))
    assert len(jobs) >= source.nbytes / PIECE
    ParallelCopy(3)(jobs, nbytes=MANY)
    assert whole[..., 1:-1].tobytes() == source.tobytes()
    assert not whole[..., 0].any()
    assert not whole[..., -1].any()
    with pytest.raises(ValueError, match="cannot copy"):
        list(strided_copy_jobs(whole[..., :1], source))


def test_each_job_is_done_once_and_by_more_than_one_thread() -> None:
    done: list[tuple[int, int]] = []
    both = threading.Barrier(2, timeout=30)

    def job(number: int) -> None:
        if number < 2:
            both.wait()  # passes only if two threads are working
        done.append((number, threading.get_ident()))

    ParallelCopy(2)([partial(job, number) for number in range(50)], nbytes=MANY)

    assert sorted(number for number, _ in done) == list(range(50))
    assert len({thread for _, thread in done}) == 2


def test_few_bytes_are_copied_without_another_thread() -> None:
    threads = set()
    ParallelCopy(4)([lambda: threads.add(threading.get_ident())] * 3, nbytes=PIECE)
    assert threads == {threading.get_ident()}


def test_an_error_of_a_job_in_another_thread_is_raised_and_no_job_follows() -> None:
    caller, both = threading.get_ident(), threading.Barrier(2, timeout=30)
    later = []

    def job() -> None:
        both.wait()
        if threading.get_ident() != caller:
            raise ZeroDivisionError("in a thread")
        for thread in copying():
            thread.join(30)

    with pytest.raises(ZeroDivisionError, match="in a thread"):
        ParallelCopy(2)([job, job, lambda: later.append(1)], nbytes=MANY)

    assert not later


def test_all_jobs_are_done_where_no_thread_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    source = np.arange(PIECE, dtype="f4")
    target = np.zeros_like(source)

    ParallelCopy(4)(copy_jobs(target, source), nbytes=MANY)

    assert np.array_equal(target, source)


def test_other_threads_begin_while_the_caller_does_its_own_job_and_makes_more() -> None:
    order: list[str] = []
    others = [threading.Event(), threading.Event()]

    def job(number: int) -> None:
        if threading.current_thread() is threading.main_thread():
            order.append(f"job {number} by the caller")
        others[number].set()

    def jobs() -> Any:
        yield partial(job, 0)
        # The second job is not made yet, and another thread has done the first.
        assert others[0].wait(30)
        yield partial(job, 1)

    def own() -> None:
        assert others[1].wait(30)
        order.append("own")

    ParallelCopy(3)([], nbytes=MANY, more_jobs=jobs(), own_job=own)
    assert order == ["own"]


def test_the_own_job_is_done_without_other_jobs_and_its_error_is_raised() -> None:
    done: list[int] = []
    ParallelCopy(2)([], nbytes=0, own_job=lambda: done.append(1))
    assert done == [1]

    def fails() -> None:
        raise ZeroDivisionError

    left = ParallelCopy(1)
    with pytest.raises(ZeroDivisionError):
        left([lambda: done.append(2)], nbytes=MANY, own_job=fails)
    assert done == [1]
    assert not copying()


def test_after_an_interrupt_no_thread_is_working() -> None:
    working, parallel_copy = threading.Event(), ParallelCopy(2)
    done = []

    def job() -> None:
        if threading.current_thread() is threading.main_thread():
            assert working.wait(30)
            signal.raise_signal(signal.SIGINT)
        working.set()
        # It is still running when the interrupt has come, and a while longer.
        until = time.monotonic() + 30
        while parallel_copy._left and time.monotonic() < until:
            time.sleep(0.001)
        time.sleep(0.05)

    with pytest.raises(KeyboardInterrupt):
        parallel_copy([job, job, *[lambda: done.append(1)] * 1000], nbytes=MANY)

    assert not copying()
    assert not done


def test_other_shapes_and_dtypes_are_refused() -> None:
    zeros = np.zeros((4, 4))
    with pytest.raises(ValueError, match=r"cannot copy \(4,\) to \(4, 4\)"):
        ParallelCopy()(copy_jobs(zeros, np.ones(4)), nbytes=0)
    with pytest.raises(ValueError, match="strides"):
        ParallelCopy()(copy_jobs(zeros.T[:2], np.ones((2, 4))), nbytes=0)
    with pytest.raises(TypeError):
        ParallelCopy()(copy_jobs(zeros, np.ones((4, 4), "f4")), nbytes=0)
    assert not zeros.any()


def test_an_interrupt_while_a_thread_starts_leaves_none_working(monkeypatch: pytest.MonkeyPatch) -> None:
    begun, may_end = threading.Event(), threading.Event()
    start = threading.Thread.start
    ended: list[int] = []

    def interrupted(thread: threading.Thread) -> None:
        start(thread)
        if thread.name == "ckptstore-copy":
            assert begun.wait(30)
            threading.Timer(0.05, may_end.set).start()
            raise KeyboardInterrupt

    def job() -> None:
        begun.set()
        assert may_end.wait(30)
        ended.append(1)

    parallel_copy = ParallelCopy(2)
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", interrupted)
        with pytest.raises(KeyboardInterrupt):
            parallel_copy([job], nbytes=MANY)

    assert ended
    assert not copying()


def test_a_thread_whose_start_was_interrupted_is_waited_for() -> None:
    """As after an interrupt while it starts."""
    parallel_copy = ParallelCopy(2)
    begun, may_end, ended = threading.Event(), threading.Event(), []

    def job() -> None:
        begun.set()
        assert may_end.wait(30)
        ended.append(1)

    left: deque[Any] = deque([job])
    threading.Thread(target=_do, args=(left, [], parallel_copy._working), daemon=True).start()
    assert begun.wait(30)
    threading.Timer(0.05, may_end.set).start()
    parallel_copy([], nbytes=0)
    assert ended
