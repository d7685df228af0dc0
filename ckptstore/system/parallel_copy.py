"""Copies with several cores: one alone uses a part of what the memory can do, and a training step waits for it."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial

import numpy as np

from ckptstore.system.arrays import Array
from ckptstore.system.cpu import usable_cores

Job = Callable[[], object]

# Bytes of one job: what is left to do when the others have finished is at most that.
PIECE = 4 << 20
# Bytes that are worth another thread, which takes some tenths of a millisecond to begin.
MIN_BYTES_PER_THREAD = 8 << 20
# More of them do not copy faster, on the machines that we know.
_THREADS = 4
_NAP_S = 1e-4


class ParallelCopy:
    """Does jobs that let go of the interpreter lock, with the calling thread and as many others as there are cores for.

    Args:
        threads: At most so many, the caller's among them; by itself, one for each core that this process may use,
            and no more than four.

    Attributes:
        threads: The same.

    Example:
        >>> target = np.zeros(3)
        >>> ParallelCopy()(copy_jobs(target, np.arange(3.0)), nbytes=24)
        >>> target.tolist()
        [0.0, 1.0, 2.0]
    """

    def __init__(self, threads: int | None = None) -> None:
        self.threads = min(_THREADS, usable_cores()) if threads is None else threads
        self._helpers: list[threading.Thread] = []
        self._left: deque[Job] = deque()
        # One entry for each helper that has a job, or is about to take one.
        self._at_work: list[None] = []
        self._pid = os.getpid()

    def __call__(
        self, jobs: Iterable[Job], *, nbytes: int, more_jobs: Iterable[Job] = (), own_job: Job | None = None
    ) -> None:
        """Do all jobs; when this returns, or raises, no thread is at one any more.

        After an interrupt some are done and others not. A second one, while the threads are waited for, leaves a job to
        the end of its time, and the next call waits for that.

        Args:
            jobs: In any order.
            nbytes: What all jobs copy together.
            more_jobs: Further jobs, which are made one by one while others begin with those that there are.
            own_job: What the calling thread does first, while others begin with the jobs.

        Raises:
            Exception: What `own_job` or a job raises; others may be left out then.
        """
        if self._pid != os.getpid():
            self._pid, self._at_work = os.getpid(), []  # a fork has none of the threads
        self._stop()
        left = self._left = deque[Job](jobs)
        errors = list[Exception]()
        helpers = min(self.threads - 1, nbytes // MIN_BYTES_PER_THREAD)
        try:
            for _ in range(min(helpers, len(left))):
                self._help(left, errors)
            for job in more_jobs:
                left.append(job)
                if len(self._helpers) < helpers:
                    self._help(left, errors)
            if own_job is not None:
                own_job()
            _do(left, errors)
        finally:
            self._stop()
        if errors:
            raise errors[0]

    def _help(self, left: deque[Job], errors: list[Exception]) -> None:
        helper = threading.Thread(
            target=_do, args=(left, errors, self._at_work), name="ckptstore-copy", daemon=True
        )
        # An interrupt may come while it starts, or before it is known that it has.
        self._helpers.append(helper)
        # Where no thread can be started, those that there are do it all.
        with suppress(RuntimeError):
            helper.start()

    def _stop(self) -> None:
        self._left.clear()
        while self._helpers:
            # RuntimeError: it was not started, or nobody knows yet that it was.
            with suppress(RuntimeError):
                self._helpers[-1].join()
            self._helpers.pop()
        # Such a one may have a job all the same; it says so before it takes one.
        while self._at_work:
            time.sleep(_NAP_S)


def copy_jobs(target: Array, source: Array) -> Iterator[Job]:
    """Return what copies an array, in pieces.

    Args:
        target: In C order.
        source: Of the same shape and dtype.

    Raises:
        ValueError: The target is not in C order, or the shapes differ.
    """
    if target.shape != source.shape or not target.flags.c_contiguous:
        raise ValueError(f"cannot copy {source.shape} to {target.shape} with strides {target.strides}")
    flat_target, flat_source = target.reshape(-1), source.reshape(-1)
    step = max(1, PIECE // target.itemsize)
    for begin in range(0, target.size, step):
        part = slice(begin, begin + step)
        yield partial(np.copyto, flat_target[part], flat_source[part], casting="no")


def _do(left: deque[Job], errors: list[Exception], at_work: list[None] | None = None) -> None:
    at_work = [] if at_work is None else at_work
    while not errors:
        at_work.append(None)
        try:
            try:
                job = left.popleft()
            except IndexError:
                return
            job()
        except Exception as error:
            errors.append(error)  # the caller raises it
        finally:
            at_work.pop()
