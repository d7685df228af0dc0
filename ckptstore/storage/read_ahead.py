"""Yields the bytes of a large file in order, while another thread reads the next ones.

A read copies from the page cache at some 10 GB/s, and a digest takes a quarter of that time on top.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from contextlib import suppress
from itertools import cycle
from queue import SimpleQueue

from ckptstore.system.cpu import usable_cores

# The sizes of a part, small enough to be in the processor's cache still when it is used.
_ALONE, _AHEAD = 256 << 10, 1 << 20
_BUFFERS = 3
# For fewer bytes a thread is not worth its start.
_MIN_BYTES_FOR_THREAD = 16 << 20

Read = Callable[[int, memoryview], None]


def parts(read_into: Read, nbytes: int) -> Generator[memoryview]:
    """Yield all bytes in order, part after part; each part is valid until the next one is asked for.

    Close the generator when stopping before the end; that ends the thread.

    Args:
        read_into: Fills a buffer from an offset; should release the interpreter lock.
        nbytes: The number of bytes.

    Raises:
        Exception: What `read_into` raises, when the part that failed is asked for.

    Example:
        >>> data = bytes(range(200)) * 2000
        >>> def read_into(offset: int, buffer: memoryview) -> None:
        ...     buffer[:] = data[offset : offset + len(buffer)]
        >>> [len(part) for part in parts(read_into, len(data))]
        [262144, 137856]
    """
    if nbytes >= _MIN_BYTES_FOR_THREAD and usable_cores() > 1:
        reader = _Reader(read_into, nbytes)
        try:
            if reader.start():
                yield from reader.parts()
                return
        finally:
            reader.stop()
    yield from parts_without_thread(read_into, nbytes)


def parts_without_thread(read_into: Read, nbytes: int) -> Generator[memoryview]:
    """Yield the same bytes without another thread."""
    buffer = memoryview(bytearray(min(_ALONE, nbytes)))
    for begin in range(0, nbytes, _ALONE):
        part = buffer[: min(_ALONE, nbytes - begin)]
        read_into(begin, part)
        yield part


class _Reader:
    """A thread that reads into a few buffers, in turn."""

    def __init__(self, read_into: Read, nbytes: int) -> None:
        self._read_into = read_into
        self._nbytes = nbytes
        self._buffers = [memoryview(bytearray(_AHEAD)) for _ in range(_BUFFERS)]
        self._is_wanted = True
        # An entry for each buffer that may be filled; False ends a thread that waits.
        self._free: SimpleQueue[bool] = SimpleQueue()
        self._full: SimpleQueue[memoryview | BaseException] = SimpleQueue()
        self._thread = threading.Thread(target=self._read, name="ckptstore-read", daemon=True)

    def start(self) -> bool:
        """Begin to read; returns False if no thread can be started."""
        for _ in self._buffers:
            self._free.put(True)
        try:
            self._thread.start()
        except RuntimeError:
            return False
        return True

    def stop(self) -> None:
        """End the thread, and wait for that, unless an interrupt cuts the wait short."""
        self._is_wanted = False
        self._free.put(False)
        # RuntimeError: it was not started, or an interrupt came before Python had recorded that it was.
        with suppress(RuntimeError):
            self._thread.join()

    def parts(self) -> Generator[memoryview]:
        """Yield the parts in order."""
        for _ in range(0, self._nbytes, _AHEAD):
            found = self._full.get()
            if isinstance(found, BaseException):
                raise found
            yield found
            self._free.put(True)

    def _read(self) -> None:
        try:
            for begin, buffer in zip(range(0, self._nbytes, _AHEAD), cycle(self._buffers), strict=False):
                if not self._free.get() or not self._is_wanted:
                    return
                part = buffer[: min(_AHEAD, self._nbytes - begin)]
                self._read_into(begin, part)
                self._full.put(part)
        except BaseException as error:
            self._full.put(error)  # raised in the other thread
