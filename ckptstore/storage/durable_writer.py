"""Writes one new file: blocks reserved first, digested on the way, synced and closed with every error checked.

Where the file system can, bytes go to the disk past the page cache, from buffers of a megabyte: a copy into fresh pages
of the cache takes several times the processor time, and what a training reads its data from would be evicted for a
file that is hardly ever read again.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import queue
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from ckptstore.errors import DiskFullError, StorageError
from ckptstore.storage.files import DIGEST, free_bytes, io_step, mount_point, sync_file, unlink

_BUFFER = 1 << 20
_BUFFERS = 4
# Addresses, offsets and lengths past the page cache are multiples of it, as all known file systems want.
_BLOCK = 4096
# With the page cache, dirty pages are handed to the disk while the next ones are produced, so that the final fsync
# finds little to do.
_WRITEBACK = 16 << 20
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT})
_NO_RESERVATION = frozenset({errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL, errno.ENOSYS})


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """A file that is complete and synced: its size in bytes and its digest."""

    nbytes: int
    digest: str


class DurableWriter:
    """A write-only stream onto a new file, for one thread.

    Bytes are copied and digested here, and written by a thread of its own while the caller prepares the next ones.
    Until `finish` has returned nothing is promised; a crash leaves a part of the file under its temporary name.

    Args:
        path: The name; must not exist.
        reserve: Bytes to reserve on the disk beforehand, so that a full disk is met here.
        mode: The file's mode, less the umask; read-only, as a store's payloads are, unless said.

    Raises:
        DiskFullError: The bytes are not to be had; nothing is left behind.
        StorageError: The file cannot be made.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     writer = DurableWriter(Path(folder) / "new", reserve=5)
        ...     _ = writer.write(b"hello")
        ...     writer.finish()
        Written(nbytes=5, digest='xxh3_128:b5e9c1ad071b3e7fc779cfaa5e523818')
    """

    def __init__(self, path: Path, *, reserve: int, mode: int = 0o444) -> None:
        self.path = path
        self._reserve = reserve
        with io_step("create", path):
            # A mode at creation lets the kernel apply the umask; the descriptor may write all the same.
            flags = os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
            self._descriptor = os.open(path, flags, mode)
        self._is_direct = _pass_by_cache(self._descriptor)
        self._tell = 0
        self._failure: BaseException | None = None
        self._digest = xxhash.xxh3_128()
        # An interrupt may leave the lock inside a `queue.Queue` taken for ever; these have none that Python code holds.
        self._queue: queue.SimpleQueue[tuple[memoryview, int] | None] = queue.SimpleQueue()
        self._free: queue.SimpleQueue[memoryview | None] = queue.SimpleQueue()
        for _ in range(_BUFFERS):
            self._free.put(None)
        self._buffer: memoryview | None = None
        self._filled = 0
        self._thread: threading.Thread | None = None
        try:
            self._reserve_blocks(reserve)
        except BaseException:
            self.abort()
            raise

    def _reserve_blocks(self, nbytes: int) -> None:
        if nbytes <= 0 or not hasattr(os, "posix_fallocate"):
            return
        try:
            with io_step("reserve", self.path):
                os.posix_fallocate(self._descriptor, 0, nbytes)
        except StorageError as error:
            if error.errno in _NO_RESERVATION:
                return
            if error.errno in _NO_ROOM:
                raise self._disk_full(error) from error
            raise

    def _disk_full(self, error: OSError) -> DiskFullError:
        # What was reserved for this very file is free again once it is gone.
        free = free_bytes(self.path.parent)
        taken = os.fstat(self._descriptor).st_blocks * 512
        return DiskFullError(
            path=self.path,
            needed=max(self._reserve, self._tell),
            free=None if free is None else free + taken,
            disk=mount_point(self.path),
            code=error.errno or errno.ENOSPC,
        )

    def write(self, data: Any) -> int:
        """Take the bytes of any C-contiguous buffer, which may change afterwards; returns their number.

        Raises:
            StorageError: An earlier write failed (`DiskFullError` where the disk was full).
        """
        view = memoryview(data).cast("B") if memoryview(data).nbytes else memoryview(b"")
        if self._thread is None:
            self._thread = threading.Thread(target=self._write_behind, name="ckptstore-writer", daemon=True)
            self._thread.start()
        done = 0
        while done < len(view):
            if self._buffer is None:
                self._buffer = self._free.get() or _aligned_memory(self._reserve or _BUFFER)
                self._raise_failure()
            end = min(len(self._buffer), self._filled + len(view) - done)
            taken = end - self._filled
            self._buffer[self._filled : end] = view[done : done + taken]
            self._filled, done = end, done + taken
            if self._filled == len(self._buffer):
                self._hand_over()
        self._tell += len(view)
        return len(view)

    def _hand_over(self) -> None:
        """Let the thread write what the buffer holds."""
        buffer, filled = self._buffer, self._filled
        self._buffer, self._filled = None, 0
        if buffer is not None and filled:
            self._digest.update(buffer[:filled])
            self._queue.put((buffer, filled))

    def tell(self) -> int:
        """Return the number of bytes handed over so far."""
        return self._tell

    def finish(self) -> Written:
        """Write what is left, cut the file to its length, sync and close it.

        Raises:
            StorageError: Something failed; call `abort`, and write a new file instead of trying this one again.
        """
        self._hand_over()
        self._join()
        self._raise_failure()
        with io_step("truncate", self.path):
            os.ftruncate(self._descriptor, self._tell)
        sync_file(self._descriptor, self.path)
        descriptor, self._descriptor = self._descriptor, -1
        with io_step("close", self.path):
            os.close(descriptor)
        return Written(nbytes=self._tell, digest=f"{DIGEST}:{self._digest.hexdigest()}")

    def abort(self) -> None:
        """Close and remove the file. Raises nothing: it runs while another error is on its way.

        What cannot be removed now is swept with the writer's other leftovers when the store is next opened.
        """
        self._failure = self._failure or StorageError(
            operation="write", path=self.path, error=OSError(errno.ECANCELED, "aborted")
        )
        self._join()
        if self._descriptor >= 0:
            descriptor, self._descriptor = self._descriptor, -1
            with suppress(OSError):
                os.close(descriptor)
        with suppress(OSError):
            unlink(self.path)

    def _join(self) -> None:
        if self._thread is not None:
            self._queue.put(None)
            # RuntimeError: an interrupt came while it was started; nothing was handed to it yet.
            with suppress(RuntimeError):
                self._thread.join()
            self._thread = None

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _write_behind(self) -> None:
        """Write what is queued; after a failure, take it and drop it so that nobody waits for ever."""
        written = synced = 0
        while (queued := self._queue.get()) is not None:
            buffer, filled = queued
            try:
                if self._failure is None:
                    self._write_all(buffer, filled)
                    written += filled
                    if not self._is_direct and written - synced >= _WRITEBACK:
                        _start_writeback(self._descriptor, synced, written - synced)
                        synced = written
            except BaseException as error:
                self._failure = error
            finally:
                self._free.put(buffer)

    def _write_all(self, buffer: memoryview, filled: int) -> None:
        # Only the last one is not full: what is written behind the end is cut off by `finish`.
        end = -(-filled // _BLOCK) * _BLOCK if self._is_direct else filled
        buffer[filled:end] = bytes(end - filled)
        done = 0
        try:
            with io_step("write", self.path):
                while done < end:
                    done += self._write_some(buffer[done:end])
        except DiskFullError as error:
            raise self._disk_full(error) from error

    def _write_some(self, data: memoryview) -> int:
        try:
            return os.write(self._descriptor, data)
        except OSError as error:
            if not self._is_direct or error.errno != errno.EINVAL:
                raise
            # It wants other multiples, or a write before was cut short.
            self._is_direct = False
            _pass_by_cache(self._descriptor, False)
            return os.write(self._descriptor, data)


def _pass_by_cache(descriptor: int, on: bool = True) -> bool:
    """Have writes pass by the page cache, or no more; returns whether they do."""
    flag = getattr(os, "O_DIRECT", 0)
    if not flag:
        return False
    flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETFL, flags | flag if on else flags & ~flag)
    except OSError:
        return False  # the file system has no such way
    return on


def _aligned_memory(nbytes: int) -> memoryview:
    """Return a buffer that begins at a page, for so many bytes, or as many as are written at a time.

    Shared, so that a process that another thread forks meanwhile takes no page away that is being written (`open(2)`,
    notes on O_DIRECT).
    """
    size = min(_BUFFER, -(-nbytes // _BLOCK) * _BLOCK)
    return memoryview(mmap.mmap(-1, size))


def _find_sync_file_range() -> Any:
    if not sys.platform.startswith("linux"):
        return None
    function = getattr(ctypes.CDLL(None), "sync_file_range", None)
    if function is not None:
        function.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]
    return function


_SYNC_FILE_RANGE = _find_sync_file_range()
_SYNC_FILE_RANGE_WRITE = 2


def _start_writeback(descriptor: int, offset: int, nbytes: int) -> None:
    """Ask Linux to begin writing a range out. Only a hint: durability comes from fsync, which reports the errors."""
    if _SYNC_FILE_RANGE is not None:
        _SYNC_FILE_RANGE(descriptor, offset, nbytes, _SYNC_FILE_RANGE_WRITE)
