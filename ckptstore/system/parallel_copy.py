"""Copies with several threads: one core alone does not use the memory's bandwidth, and a training step waits for it."""

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

CopyJob = Callable[[], object]

# Bytes of one job, and so the most that is left to one thread when the others have finished.
PIECE = 4 << 20
# Another thread takes some tenths of a millisecond to begin; for fewer bytes it is not worth it.
MIN_BYTES_PER_THREAD = 8 << 20
# More threads did not copy faster on the machines that were measured.
_MAX_THREADS = 4
_NAP_S = 1e-4


class ParallelCopy:
    """Runs jobs that release the interpreter lock, in the calling thread and in one more for each further core.

    Args:
        threads: The most threads at once, the caller's included. None for one for each core that this process may
            use, and no more than four.

    Attributes:
        threads: The most threads at once.

    Example:
        >>> target = np.zeros(3)
        >>> ParallelCopy()(copy_jobs(target, np.arange(3.0)), nbytes=24)
        >>> target.tolist()
        [0.0, 1.0, 2.0]
    """

    def __init__(self, threads: int | None = None) -> None:
        self.threads = min(_MAX_THREADS, usable_cores()) if threads is None else threads
        self._helpers: list[threading.Thread] = []
        self._left: deque[CopyJob] = deque()
        # One entry for each helper that has a job, or is about to take one.
        self._working: list[None] = []
        self._pid = os.getpid()

    def __call__(
        self,
        jobs: Iterable[CopyJob],
        *,
        nbytes: int,
        more_jobs: Iterable[CopyJob] = (),
        own_job: CopyJob | None = None,
    ) -> None:
        """Do all jobs; when this returns or raises, no thread is working on one.

        After an interrupt some jobs are done and others not. A second interrupt, while this waits for the threads,
        leaves a job running, and the next call waits for that.

        Args:
            jobs: The jobs, done in any order.
            nbytes: The bytes that all jobs copy together.
            more_jobs: Further jobs, which are made one by one while other threads work on those that exist.
            own_job: A job that the calling thread does first, while other threads work on the rest.

        Raises:
            Exception: What `own_job` or a job raises; other jobs may then be left undone.
        """
        if self._pid != os.getpid():
            self._pid, self._working = os.getpid(), []  # a forked child has none of the threads
        self._stop()
        left = self._left = deque[CopyJob](jobs)
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

    def _help(self, left: deque[CopyJob], errors: list[Exception]) -> None:
        helper = threading.Thread(
            target=_do, args=(left, errors, self._working), name="ckptstore-copy", daemon=True
        )
        # Recorded first: an interrupt may come while it starts.
        self._helpers.append(helper)
        # If no thread can be started, the others do all the jobs.
        with suppress(RuntimeError):
            helper.start()

    def _stop(self) -> None:
        self._left.clear()
        while self._helpers:
            # RuntimeError: it was not started, or an interrupt came before Python had recorded that it was.
            with suppress(RuntimeError):
                self._helpers[-1].join()
            self._helpers.pop()
        # Such a thread may have a job anyway. It adds its entry before it takes one.
        while self._working:
            time.sleep(_NAP_S)


def copy_jobs(target: Array, source: Array) -> Iterator[CopyJob]:
    """Yield jobs that copy an array in pieces.

    Args:
        target: The array to write, in C order.
        source: An array of the same shape and dtype.

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


def strided_copy_jobs(target: Array, source: Array) -> Iterator[CopyJob]:
    """Yield jobs that copy an array in pieces to a part of a larger array, such as some of its columns.

    Args:
        target: The array to write, a view with any strides.
        source: An array of the same shape and dtype.

    Raises:
        ValueError: The shapes differ.
    """
    if target.shape != source.shape:
        raise ValueError(f"cannot copy {source.shape} to {target.shape}")
    if target.dtype == source.dtype and target.dtype.isbuiltin != 1:
        # numpy takes half as long again for types of other packages, such as bfloat16.
        bits = np.dtype(f"u{target.itemsize}")
        target, source = target.view(bits), source.view(bits)
    yield from _strided_pieces(target, source)


def _strided_pieces(target: Array, source: Array) -> Iterator[CopyJob]:
    if target.nbytes <= PIECE or target.ndim == 0:
        yield partial(np.copyto, target, source, casting="no")
        return
    rows = max(1, PIECE * len(target) // target.nbytes)
    for begin in range(0, len(target), rows):
        part = slice(begin, begin + rows)
        if target[part].nbytes <= PIECE:
            yield partial(np.copyto, target[part], source[part], casting="no")
        else:
            yield from _strided_pieces(target[begin], source[begin])


def _do(left: deque[CopyJob], errors: list[Exception], working: list[None] | None = None) -> None:
    working = [] if working is None else working
    while not errors:
        working.append(None)
        try:
            try:
                job = left.popleft()
            except IndexError:
                return
            job()
        except Exception as error:
            errors.append(error)  # the caller raises it
        finally:
            working.pop()
