"""Copies many buffers of other objects into one memory, and lets other threads run Python meanwhile.

Python's own loop over a thousand small copies holds the interpreter lock, so that a second core cannot help with them.
The kernel copies as many by one call, process_vm_readv(2) asked of this process itself, for about a third more of
one core's time: it is worth it where there is another core. An address that is none is an error there, and no crash.
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

from ckptstore.system.parallel_copy import Job

# The kernel takes no more pieces at once (UIO_MAXIOV).
MAX_PIECES = 1024
# As contiguous bytes; an object that has them in another order refuses.
_SIMPLE = 0


class _Buffer(ctypes.Structure):
    """`Py_buffer`, as Python's stable interface has it."""

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
    """Copies buffers into the same parts of a memory again and again.

    Args:
        memory: Is written to; its pages are better there already.
        parts: Of the memory, one for each buffer, none of them empty.
        calls: How many calls of the kernel it takes, one for each thread that helps: between two of its own a thread
            waits for the interpreter lock, and where another one loops, until that has done all. More, where one would
            have more than `MAX_PIECES`.

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
        self._addresses = [ctypes.addressof(one) for one in self._buffers]
        self._groups = list(_groups([int(nbytes) for nbytes in to["nbytes"]], calls))
        # The block that holds buffers.
        self._block: object | None = None

    @contextmanager
    def jobs(self, values: Sequence[Any]) -> Iterator[Iterator[Job]]:
        """Yield what copies them: in any order, in any threads, within the block.

        A buffer that is still being computed is waited for, when the job that copies it is asked for; all are held
        until the block ends. A job raises OSError where the kernel does not copy; what it has copied is unknown then.

        Args:
            values: One object for each part, of as many bytes.

        Raises:
            BufferError: (when asked for a job, as the others) A value does not lie in this process' memory in C order.
            TypeError: A value is no buffer.
            ValueError: A value has another number of bytes.
        """
        if self._block is not None:
            self._release()  # an interrupt came just when another block ended
        self._block = block = object()
        try:
            yield (self._job(values, *group) for group in self._groups)
        finally:
            # A block that an interrupt has left open may end behind the next one's beginning.
            if self._block is block:
                self._release()
                self._block = None

    def _release(self) -> None:
        # Also those that were not got: nothing happens to them.
        deque(map(_release_buffer, self._addresses), maxlen=0)

    def _job(self, values: Sequence[Any], first: int, count: int, nbytes: int) -> Job:
        group = slice(first, first + count)
        deque(map(_get_buffer, values[group], self._addresses[group], repeat(_SIMPLE)), maxlen=0)
        if not np.array_equal(self._found["nbytes"][group], self._from["nbytes"][group]):
            raise ValueError("a value has not as many bytes as its place")
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
    """Return whether this platform has what `SmallCopies` asks for; a container may forbid it all the same."""
    return None not in (_copy_pieces, _get_buffer, _release_buffer)


def _structures(kind: type[ctypes.Structure], count: int) -> tuple[Any, Any]:
    """Return structures of zeros, for C and for numpy."""
    ones: Any = (kind * count)()
    return ones, np.frombuffer(ones, kind)


def _groups(sizes: Sequence[int], calls: int) -> Iterator[tuple[int, int, int]]:
    """Yield what one call copies: the first piece, how many, and their bytes."""
    first = nbytes = 0
    share = -(-sum(sizes) // calls)
    for place, size in enumerate(sizes):
        nbytes += size
        if nbytes >= share or place - first + 1 == MAX_PIECES:
            yield first, place - first + 1, nbytes
            first, nbytes = place + 1, 0
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
    """Return a function that is called with the interpreter lock held, and whose errors are raised.

    None where Python's own functions are hidden, as in some programs that Python is a part of.
    """
    # Not `ctypes.pythonapi`, which others too tell what its functions take.
    function = getattr(ctypes.PyDLL(None), name, None)
    if function is not None:
        function.argtypes, function.restype = arguments, returns
    return function


_copy_pieces = _find_copy_pieces()
_get_buffer = _find_in_python(
    "PyObject_GetBuffer", ctypes.py_object, ctypes.c_void_p, ctypes.c_int, returns=ctypes.c_int
)
_release_buffer = _find_in_python("PyBuffer_Release", ctypes.c_void_p, returns=None)
