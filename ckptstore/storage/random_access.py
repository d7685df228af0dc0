"""Reads by offset from a part of a file, or from bytes in memory; never past the end.

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
from collections.abc import Callable, Iterator
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


class RandomAccessFile:
    """A part of a file that is open for reading.

    Args:
        path: The file, for messages.
        descriptor: The open file; it belongs to the caller.
        start: The offset of the part in the file.
        nbytes: Its length in bytes.
    """

    def __init__(self, path: Path, descriptor: int, start: int, nbytes: int) -> None:
        self.path = path
        self.nbytes = nbytes
        self._descriptor = descriptor
        self._start = start
        self._blocks: dict[int, bytes] = {}
        self._mapping: memoryview | None = None

    def corrupt(self, reason: str) -> CorruptPayloadError:
        """Return the error for a damaged file."""
        return CorruptPayloadError(path=self.path, reason=reason)

    def read(self, offset: int, count: int) -> bytes:
        """Return `count` bytes; small neighbouring reads share one read of the disk.

        Raises:
            CorruptPayloadError: The part ends before that.
            StorageError: The disk cannot be read, which does not mean that the file is damaged.
        """
        self._check(offset, count)
        first, last = offset // _BLOCK, (offset + count - 1) // _BLOCK
        if count == 0 or last - first > 1:
            return self._read_from_disk(offset, count)
        data = b"".join([self._block(index) for index in range(first, last + 1)])
        return data[offset - first * _BLOCK :][:count]

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill a buffer with the bytes at an offset; raises the errors of `read`."""
        self._check(offset, len(buffer))
        done = 0
        while done < len(buffer):
            with _reading(self.path):
                count = os.preadv(self._descriptor, [buffer[done:]], self._start + offset + done)
            if not count:
                raise self.corrupt("the file became shorter while it was read")
            done += count

    def view(self, offset: int, count: int) -> memoryview:
        """Return a read-only view of the bytes at an offset; raises the errors of `read`.

        It is valid while nobody writes to the file; keep it no longer than it takes to copy it.
        """
        self._check(offset, count)
        if self._mapping is None and sys.platform == "linux" and self._descriptor >= 0 and count:
            with _reading(self.path):
                self._mapping = memoryview(
                    mmap.mmap(self._descriptor, self._start + self.nbytes, access=mmap.ACCESS_READ)
                )
        if self._mapping is not None and count and self._read_pages(self._start + offset, count):
            return self._mapping[self._start + offset :][:count]
        buffer = memoryview(bytearray(count))
        self.read_into(offset, buffer)
        return buffer.toreadonly()

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

    def digest(self, progress: Callable[[int], object] | None = None) -> str:
        """Return ``"xxh3_128:<32 hex digits>"`` of all bytes; raises the errors of `read`.

        `progress` is called with the number of bytes after each part.
        """
        self.advise_sequential()
        digest = xxhash.xxh3_128()
        with closing(read_ahead.parts(self.read_into, self.nbytes)) as parts:
            for part in parts:
                digest.update(part)
                if progress is not None:
                    progress(len(part))
        return f"{DIGEST}:{digest.hexdigest()}"

    def advise_sequential(self) -> None:
        """Tell the system that the file will be read from the beginning to the end, so that it reads ahead."""
        if self._descriptor >= 0 and hasattr(os, "posix_fadvise"):
            with suppress(OSError):  # only a hint
                os.posix_fadvise(self._descriptor, self._start, self.nbytes, os.POSIX_FADV_SEQUENTIAL)

    def release_views(self) -> None:
        """Release the mapping, once no view is in use: mapped pages count as memory of this process."""
        self._mapping = None

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
            block = self._blocks[index] = self._read_from_disk(start, min(_BLOCK, self.nbytes - start))
        return block

    def _read_from_disk(self, offset: int, count: int) -> bytes:
        buffer = bytearray(count)
        self.read_into(offset, memoryview(buffer))
        return bytes(buffer)


class InMemoryFile(RandomAccessFile):
    """Bytes in memory that are read like a file; `path` only names them in messages."""

    def __init__(self, image: memoryview, path: Path = Path("<memory>")) -> None:
        super().__init__(path, -1, 0, len(image))
        self._image = image

    def read(self, offset: int, count: int) -> bytes:
        """Return `count` bytes at an offset."""
        self._check(offset, count)
        return bytes(self._image[offset : offset + count])

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill a buffer with the bytes at an offset."""
        self._check(offset, len(buffer))
        buffer[:] = self._image[offset : offset + len(buffer)]


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
def section_of(file: RandomAccessFile, start: int, nbytes: int) -> Iterator[RandomAccessFile]:
    """Yield a part of a file as a file of its own, valid while the whole file is open."""
    file._check(start, nbytes)
    section = RandomAccessFile(file.path, file._descriptor, file._start + start, nbytes)
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
