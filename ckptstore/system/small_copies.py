"""Copies many small buffers into one memory with few system calls, while other threads run Python.

A Python loop over a thousand small copies holds the interpreter lock, so that a second core cannot help. The kernel
copies as many in one call, process_vm_readv(2) on this process itself, for about a third more time of one core: worth
it where there is another core. An invalid address is an error there, and no crash.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import repeat
from typing import Any

import numpy as np

from ckptstore.system.parallel_copy import CopyJob

# The most pieces that the kernel copies in one call (UIO_MAXIOV).
MAX_PIECES = 1024
# PyBUF_SIMPLE: contiguous bytes; an object that has them in another order raises an error.
_SIMPLE = 0


class _Buffer(ctypes.Structure):
    """`Py_buffer` of Python's stable C interface."""

    _fields_ = (
        ("begin", ctypes.c_void_p),
        ("owner", ctypes.c_void_p),
        ("nbytes", ctypes.c_ssize_t),
        ("itemsize", ctypes.c_ssize_t),
        ("readonly", ctypes.c_int),
        ("ndim", ctypes.c_int),
        ("format", ctypes.c_void_p),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("suboffsets", ctypes.c_void_p),
        ("internal", ctypes.c_void_p),
    )


class _Piece(ctypes.Structure):
    """`struct iovec`."""

    _fields_ = (("begin", ctypes.c_void_p), ("nbytes", ctypes.c_size_t))


class SmallCopies:
    """Copies buffers into fixed parts of a memory, as often as asked.

    Args:
        memory: The memory to write; its pages should be faulted in already.
        parts: A part of the memory for each buffer, none of them empty.
        calls: The number of system calls to divide the work into: one for each thread that helps, since between two
            calls a thread waits for the interpreter lock, and if another thread loops, until that has finished. There
            are more where one call would have more than `MAX_PIECES`.

    Example:
        >>> memory = mmap.mmap(-1, 4096)
        >>> with SmallCopies(memory, [slice(0, 3), slice(3, 5)]).jobs([b"one", b"to"]) as jobs:
        ...     for job in jobs:
        ...         job()
        >>> memory[:5]
        b'oneto'
    """

    def __init__(self, memory: mmap.mmap, parts: Sequence[slice], *, calls: int = 1) -> None:
        begin = np.frombuffer(memory, np.uint8).ctypes.data
        self._memory = memory
        self._buffers, self._found = _structures(_Buffer, len(parts))
        self._sources, self._from = _structures(_Piece, len(parts))
        self._targets, to = _structures(_Piece, len(parts))
        to["begin"] = [begin + part.start for part in parts]
        self._from["nbytes"] = to["nbytes"] = [part.stop - part.start for part in parts]
        self._addresses = [ctypes.addressof(buffer) for buffer in self._buffers]
        self._groups = list(_groups([int(nbytes) for nbytes in to["nbytes"]], calls))
        # The open `with` block that holds the buffers.
        self._block: object | None = None

    @contextmanager
    def jobs(self, values: Sequence[Any]) -> Iterator[Iterator[CopyJob]]:
        """Yield the jobs that copy the values, to be run within the block, in any order and in any threads.

        Asking for a job waits for buffers that are still being computed. The buffers are held until the block ends. A
        job raises OSError if the kernel does not copy; how much it has copied is then unknown.

        Args:
            values: One object for each part, of as many bytes.

        Raises:
            BufferError: A value is not in this process' memory in C order. This and the others are raised when a job
                is asked for.
            TypeError: A value is no buffer.
            ValueError: A value has another number of bytes.
        """
        if self._block is not None:
            self._release()  # an interrupt came just as the block before ended
        self._block = block = object()
        try:
            yield (self._job(values, *group) for group in self._groups)
        finally:
            # A block that an interrupt has left open may end after the next one has begun.
            if self._block is block:
                self._release()
                self._block = None

    def _release(self) -> None:
        # Releasing a buffer that was never acquired does nothing.
        deque(map(_release_buffer, self._addresses), maxlen=0)

    def _job(self, values: Sequence[Any], first: int, count: int, nbytes: int) -> CopyJob:
        group = slice(first, first + count)
        deque(map(_get_buffer, values[group], self._addresses[group], repeat(_SIMPLE)), maxlen=0)
        if not np.array_equal(self._found["nbytes"][group], self._from["nbytes"][group]):
            raise ValueError("the number of bytes of a value differs from that of its part")
        self._from["begin"][group] = self._found["begin"][group]
        return partial(self._copy, first, count, nbytes)

    def _copy(self, first: int, count: int, nbytes: int) -> None:
        offset = first * ctypes.sizeof(_Piece)
        done = _copy_pieces(
            os.getpid(),
            ctypes.addressof(self._targets) + offset,
            count,
            ctypes.addressof(self._sources) + offset,
            count,
            0,
        )
        if done != nbytes:
            code = ctypes.get_errno() if done < 0 else 0
            raise OSError(code, f"process_vm_readv has copied {done} of {nbytes} bytes")


def can_copy_buffers() -> bool:
    """Return True if this platform has the functions that `SmallCopies` calls; a container may still forbid them."""
    return None not in (_copy_pieces, _get_buffer, _release_buffer)


def _structures(kind: type[ctypes.Structure], count: int) -> tuple[Any, Any]:
    """Return an array of zeroed C structures, and a numpy view of it."""
    structures: Any = (kind * count)()
    return structures, np.frombuffer(structures, kind)


def _groups(sizes: Sequence[int], calls: int) -> Iterator[tuple[int, int, int]]:
    """Yield for each call the index of its first piece, the number of pieces, and their bytes."""
    first = nbytes = 0
    share = -(-sum(sizes) // calls)
    for index, size in enumerate(sizes):
        nbytes += size
        if nbytes >= share or index - first + 1 == MAX_PIECES:
            yield first, index - first + 1, nbytes
            first, nbytes = index + 1, 0
    if first < len(sizes):
        yield first, len(sizes) - first, nbytes


def _find_copy_pieces() -> Any:
    function = getattr(ctypes.CDLL(None, use_errno=True), "process_vm_readv", None)
    if function is not None:
        pieces = (ctypes.c_void_p, ctypes.c_ulong)
        function.argtypes = [ctypes.c_int, *pieces, *pieces, ctypes.c_ulong]
        function.restype = ctypes.c_ssize_t
    return function


def _find_in_python(name: str, *arguments: Any, returns: Any) -> Any:
    """Return a C function of Python, which is called with the interpreter lock held and whose errors are raised.

    None where these functions are hidden, as in some programs that embed Python.
    """
    # Not `ctypes.pythonapi`, whose functions other code may give other argument types.
    function = getattr(ctypes.PyDLL(None), name, None)
    if function is not None:
        function.argtypes, function.restype = arguments, returns
    return function


_copy_pieces = _find_copy_pieces()
_get_buffer = _find_in_python(
    "PyObject_GetBuffer", ctypes.py_object, ctypes.c_void_p, ctypes.c_int, returns=ctypes.c_int
)
_release_buffer = _find_in_python("PyBuffer_Release", ctypes.c_void_p, returns=None)
