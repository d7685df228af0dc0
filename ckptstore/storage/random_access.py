"""Reads a part of a file, or bytes in memory, by offset; never past its end.

`view` looks at the bytes where the system keeps them once they have been read, in place of a copy. A mapping tells of a
disk that fails by a signal that ends the process: so its pages are asked for first, in a way that raises an error, and
where the system has none such (Linux has since 5.14), bytes are read into memory instead.
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
# MADV_POPULATE_READ, which Python has no name for.
_POPULATE_READ = 22
_NO_POPULATING = frozenset({errno.EINVAL, errno.ENOSYS, errno.EPERM})


class RandomAccessFile:
    """Bytes of a file that is open for reading, from `start` on.

    Args:
        path: The file, for messages.
        descriptor: The open file; it belongs to the caller.
        start: Where the part begins.
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
        """Return the error that says what is wrong with the file."""
        return CorruptPayloadError(path=self.path, reason=reason)

    def read(self, offset: int, count: int) -> bytes:
        """Return `count` bytes; small neighbouring reads cost one read of the disk.

        Raises:
            CorruptPayloadError: The part ends before.
            StorageError: The disk cannot be read, which does not say that the file is damaged.
        """
        self._check(offset, count)
        first, last = offset // _BLOCK, (offset + count - 1) // _BLOCK
        if count == 0 or last - first > 1:
            return self._read_from_disk(offset, count)
        data = b"".join([self._block(index) for index in range(first, last + 1)])
        return data[offset - first * _BLOCK :][:count]

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill a buffer with the bytes at an offset; raises what `read` raises."""
        self._check(offset, len(buffer))
        done = 0
        while done < len(buffer):
            with _reading(self.path):
                count = os.preadv(self._descriptor, [buffer[done:]], self._start + offset + done)
            if not count:
                raise self.corrupt("the file became shorter while it was read")
            done += count

    def view(self, offset: int, count: int) -> memoryview:
        """Return bytes to look at, read-only; raises what `read` raises.

        They are right as long as nobody writes into the file, and belong to whoever asked: keep them for no longer than
        it takes to copy them.
        """
        self._check(offset, count)
        if self._mapping is None and sys.platform == "linux" and self._descriptor >= 0 and count:
            with _reading(self.path):
                self._mapping = memoryview(
                    mmap.mmap(self._descriptor, self._start + self.nbytes, access=mmap.ACCESS_READ)
                )
        if self._mapping is not None and count and self._is_there(self._start + offset, count):
            return self._mapping[self._start + offset :][:count]
        buffer = memoryview(bytearray(count))
        self.read_into(offset, buffer)
        return buffer.toreadonly()

    def _is_there(self, offset: int, count: int) -> bool:
        """Have the system read a part of the mapping; returns False where it cannot be asked to."""
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
        """Return ``"xxh3_128:<32 hex digits>"`` of all bytes; raises what `read` raises.

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
        """Have the system read ahead, for somebody who is going to read from the beginning to the end."""
        if self._descriptor >= 0 and hasattr(os, "posix_fadvise"):
            with suppress(OSError):  # only a hint
                os.posix_fadvise(self._descriptor, self._start, self.nbytes, os.POSIX_FADV_SEQUENTIAL)

    def release_views(self) -> None:
        """Let go of the mapping, once nobody looks at a view: mapped pages count as memory of this process."""
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
    """The same over bytes in memory, not yet a file; `path` only stands for it in messages."""

    def __init__(self, image: memoryview, path: Path = Path("<memory>")) -> None:
        super().__init__(path, -1, 0, len(image))
        self._image = image

    def read(self, offset: int, count: int) -> bytes:
        """Return `count` bytes."""
        self._check(offset, count)
        return bytes(self._image[offset : offset + count])

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill a buffer with the bytes at an offset."""
        self._check(offset, len(buffer))
        buffer[:] = self._image[offset : offset + len(buffer)]


@contextmanager
def open_random_access(path: Path) -> Iterator[RandomAccessFile]:
    """Open a whole file for reading.

    Raises:
        CorruptPayloadError: There is no such file.
        StorageError: It cannot be opened.
    """
    with _reading(path):
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        with _reading(path):
            found = os.fstat(descriptor)
            if stat.S_ISDIR(found.st_mode):  # its size is what the file system likes
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        source = RandomAccessFile(path, descriptor, 0, found.st_size)
        try:
            yield source
        finally:
            source.release_views()
    finally:
        os.close(descriptor)


@contextmanager
def section_of(source: RandomAccessFile, start: int, nbytes: int) -> Iterator[RandomAccessFile]:
    """Give a part of a source as a source of its own, valid as long as the whole is."""
    source._check(start, nbytes)
    part = RandomAccessFile(source.path, source._descriptor, source._start + start, nbytes)
    try:
        yield part
    finally:
        part.release_views()


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise CorruptPayloadError(path=path, reason="the file is missing") from error
    except OSError as error:
        raise StorageError(operation="read", path=path, error=error) from error
