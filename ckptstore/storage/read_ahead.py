"""Goes through many bytes while another thread reads those that come next: digesting takes little time then.

A read copies what the system has in memory, at some 10 GB/s, and a digest takes a quarter of that time again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from contextlib import suppress
from itertools import cycle
from queue import SimpleQueue

from ckptstore.system.cpu import usable_cores

# Small enough to be in the processor's cache still when somebody looks at it.
_ALONE, _AHEAD = 256 << 10, 1 << 20
_BUFFERS = 3
# Bytes that are worth a thread.
_WORTH_A_THREAD = 16 << 20

Read = Callable[[int, memoryview], None]


def parts(read_into: Read, nbytes: int) -> Generator[memoryview]:
    """Yield all bytes in order, part after part; each is right until the next one is asked for.

    Whoever may stop before the end closes it, and so has the thread end.

    Args:
        read_into: Fills a buffer from an offset on; lets go of the interpreter lock.
        nbytes: How many there are.

    Raises:
        Exception: What `read_into` raises, when the part that it was to read is asked for.

    Example:
        >>> data = bytes(range(200)) * 2000
        >>> def read_into(offset: int, buffer: memoryview) -> None:
        ...     buffer[:] = data[offset : offset + len(buffer)]
        >>> [len(part) for part in parts(read_into, len(data))]
        [262144, 137856]
    """
    if nbytes >= _WORTH_A_THREAD and usable_cores() > 1:
        reader = _Reader(read_into, nbytes)
        try:
            if reader.start():
                yield from reader.parts()
                return
        finally:
            reader.stop()
    yield from parts_alone(read_into, nbytes)


def parts_alone(read_into: Read, nbytes: int) -> Generator[memoryview]:
    """Yield the same without another thread."""
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
        # An entry for each buffer that may be filled; the last one has a thread that waits look whether it is wanted.
        self._free: SimpleQueue[bool] = SimpleQueue()
        self._full: SimpleQueue[memoryview | BaseException] = SimpleQueue()
        self._thread = threading.Thread(target=self._read, name="ckptstore-read", daemon=True)

    def start(self) -> bool:
        """Begin to read; returns False where no thread can be started."""
        for _ in self._buffers:
            self._free.put(True)
        try:
            self._thread.start()
        except RuntimeError:
            return False
        return True

    def stop(self) -> None:
        """Have the thread end; it has when this returns, unless an interrupt cuts that short."""
        self._is_wanted = False
        self._free.put(False)
        # RuntimeError: it was not started, or an interrupt came before anybody knew that it was.
        with suppress(RuntimeError):
            self._thread.join()

    def parts(self) -> Generator[memoryview]:
        """Yield what is read."""
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
            self._full.put(error)  # the other thread raises it
