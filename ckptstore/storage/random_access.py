"""Reads by offset: from a part of a file, from bytes in memory, or from anywhere else; never past the end.

`RandomAccess` is the interface: another place of bytes (an object store) implements its three abstract methods.

`RandomAccessFile.view` returns bytes in the page cache instead of a copy. With a mapping, a failing disk raises a
signal that ends the process. So its pages are asked for first, by a call that raises an error (since Linux 5.14); where
the system has no such call, the bytes are read into memory instead.
"""

from __future__ import annotations

import errno
import mmap
import os
import stat
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import xxhash

from ckptstore.errors import CorruptPayloadError, StorageError
from ckptstore.storage import read_ahead
from ckptstore.storage.files import DIGEST

_BLOCK = 4 << 10
_BLOCKS_KEPT = 1024
# MADV_POPULATE_READ, for which Python has no name.
_POPULATE_READ = 22
_NO_POPULATING = frozenset({errno.EINVAL, errno.ENOSYS, errno.EPERM})


class RandomAccess(ABC):
    """Bytes of known number that are read by offset.

    Args:
        path: Names the bytes in messages; only a local file has such a path.
        nbytes: Their number.
    """

    def __init__(self, path: Path, nbytes: int) -> None:
        self.path = path
        self.nbytes = nbytes
        self._blocks: dict[int, bytes] = {}

    def corrupt(self, reason: str) -> CorruptPayloadError:
        """Return the error for damaged bytes."""
        return CorruptPayloadError(path=self.path, reason=reason)

    def read(self, offset: int, count: int) -> bytes:
        """Return `count` bytes; small neighbouring reads share one read of the place itself.

        Raises:
            CorruptPayloadError: The bytes end before that.
            StorageError: They cannot be read, which does not mean that they are damaged.
        """
        self._check(offset, count)
        first, last = offset // _BLOCK, (offset + count - 1) // _BLOCK
        if count == 0 or last - first > 1:
            return self._read_from_place(offset, count)
        data = b"".join([self._block(index) for index in range(first, last + 1)])
        return data[offset - first * _BLOCK :][:count]

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill a buffer with the bytes at an offset; raises the errors of `read`."""
        self._check(offset, len(buffer))
        self._fill(offset, buffer)

    @abstractmethod
    def _fill(self, offset: int, buffer: memoryview) -> None:
        """Fill a buffer; offset and length are known to be inside."""

    @abstractmethod
    def section(self, start: int, nbytes: int) -> RandomAccess:
        """Return a part as bytes of its own, valid as long as the whole is; release its views after use.

        Raises:
            CorruptPayloadError: The bytes end before that.
        """

    def view(self, offset: int, count: int) -> memoryview:
        """Return a read-only view of the bytes at an offset; raises the errors of `read`.

        It is valid while nobody writes to the file; keep it no longer than it takes to copy it.
        """
        buffer = memoryview(bytearray(count))
        self.read_into(offset, buffer)
        return buffer.toreadonly()

    def parts(self) -> Generator[memoryview]:
        """Yield all bytes in order, part after part; each is valid until the next one is asked for.

        Close the generator when stopping before the end; raises the errors of `read`.
        """
        self.advise_sequential()
        yield from read_ahead.parts(self.read_into, self.nbytes)

    def digest(self, progress: Callable[[int], object] | None = None) -> str:
        """Return ``"xxh3_128:<32 hex digits>"`` of all bytes; raises the errors of `read`.

        `progress` is called with the number of bytes after each part.
        """
        digest = xxhash.xxh3_128()
        with closing(self.parts()) as parts:
            for part in parts:
                digest.update(part)
                if progress is not None:
                    progress(len(part))
        return f"{DIGEST}:{digest.hexdigest()}"

    def advise_sequential(self) -> None:
        """Tell the place that the bytes will be read from the beginning to the end; only a hint."""
        return

    def release_views(self) -> None:
        """Release what views keep, once none is in use."""
        return

    def _check(self, offset: int, count: int) -> None:
        if count < 0 or offset < 0 or offset + count > self.nbytes:
            raise self.corrupt(
                f"it is cut short: {count:,} bytes at {offset:,} of {self.nbytes:,} are missing"
            )

    def _block(self, index: int) -> bytes:
        block = self._blocks.get(index)
        if block is None:
            if len(self._blocks) >= _BLOCKS_KEPT:
                self._blocks.clear()
            start = index * _BLOCK
            block = self._blocks[index] = self._read_from_place(start, min(_BLOCK, self.nbytes - start))
        return block

    def _read_from_place(self, offset: int, count: int) -> bytes:
        buffer = bytearray(count)
        self.read_into(offset, memoryview(buffer))
        return bytes(buffer)


class RandomAccessFile(RandomAccess):
    """A part of a local file that is open for reading.

    Args:
        path: The file, for messages.
        descriptor: The open file; it belongs to the caller.
        start: The offset of the part in the file.
        nbytes: Its length in bytes.
    """

    def __init__(self, path: Path, descriptor: int, start: int, nbytes: int) -> None:
        super().__init__(path, nbytes)
        self._descriptor = descriptor
        self._start = start
        self._mapping: memoryview | None = None

    def _fill(self, offset: int, buffer: memoryview) -> None:
        done = 0
        while done < len(buffer):
            with _reading(self.path):
                count = os.preadv(self._descriptor, [buffer[done:]], self._start + offset + done)
            if not count:
                raise self.corrupt("the file became shorter while it was read")
            done += count

    def section(self, start: int, nbytes: int) -> RandomAccessFile:
        """Return a part of the file."""
        self._check(start, nbytes)
        return RandomAccessFile(self.path, self._descriptor, self._start + start, nbytes)

    def view(self, offset: int, count: int) -> memoryview:
        """Return a view of bytes in the page cache where the system can do that safely, else of a copy."""
        self._check(offset, count)
        if self._mapping is None and sys.platform == "linux" and count:
            with _reading(self.path):
                self._mapping = memoryview(
                    mmap.mmap(self._descriptor, self._start + self.nbytes, access=mmap.ACCESS_READ)
                )
        if self._mapping is not None and count and self._read_pages(self._start + offset, count):
            return self._mapping[self._start + offset :][:count]
        return super().view(offset, count)

    def _read_pages(self, offset: int, count: int) -> bool:
        """Have the system read a part of the mapping; returns False if it has no call for that."""
        assert self._mapping is not None
        mapping = self._mapping.obj
        assert isinstance(mapping, mmap.mmap)
        begin = offset - offset % mmap.PAGESIZE
        with _reading(self.path):
            try:
                mapping.madvise(_POPULATE_READ, begin, offset + count - begin)
            except OSError as error:
                if error.errno in _NO_POPULATING:
                    return False
                raise
        return True

    def advise_sequential(self) -> None:
        """Tell the system that the file will be read from the beginning to the end, so that it reads ahead."""
        if hasattr(os, "posix_fadvise"):
            with suppress(OSError):  # only a hint
                os.posix_fadvise(self._descriptor, self._start, self.nbytes, os.POSIX_FADV_SEQUENTIAL)

    def release_views(self) -> None:
        """Release the mapping, once no view is in use: mapped pages count as memory of this process."""
        self._mapping = None


class InMemoryFile(RandomAccess):
    """Bytes in memory that are read like a file; `path` only names them in messages."""

    def __init__(self, image: memoryview, path: Path = Path("<memory>")) -> None:
        super().__init__(path, len(image))
        self._image = image

    def _fill(self, offset: int, buffer: memoryview) -> None:
        buffer[:] = self._image[offset : offset + len(buffer)]

    def section(self, start: int, nbytes: int) -> InMemoryFile:
        """Return a part of the bytes."""
        self._check(start, nbytes)
        return InMemoryFile(self._image[start : start + nbytes], self.path)


@contextmanager
def open_random_access(path: Path) -> Iterator[RandomAccessFile]:
    """Open a file for reading, all of it.

    Raises:
        CorruptPayloadError: There is no such file.
        StorageError: It cannot be opened.
    """
    with _reading(path):
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        with _reading(path):
            status = os.fstat(descriptor)
            if stat.S_ISDIR(status.st_mode):  # the size of a directory means nothing
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        file = RandomAccessFile(path, descriptor, 0, status.st_size)
        try:
            yield file
        finally:
            file.release_views()
    finally:
        os.close(descriptor)


@contextmanager
def section_of(file: RandomAccess, start: int, nbytes: int) -> Iterator[RandomAccess]:
    """Yield a part of a file as a file of its own, valid while the whole file is open."""
    section = file.section(start, nbytes)
    try:
        yield section
    finally:
        section.release_views()


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise CorruptPayloadError(path=path, reason="the file is missing") from error
    except OSError as error:
        raise StorageError(operation="read", path=path, error=error) from error
