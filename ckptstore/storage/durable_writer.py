"""Writes one new file durably: this is where the bytes of a checkpoint become durable.

The order of calls, and what a crash at each leaves:

1. `DurableWriter(...)` creates a file under a temporary name (O_EXCL) and reserves its blocks (posix_fallocate), so
   that a full disk is an error here. A crash leaves at most an unwritten file under the temporary name.
2. `DurableWriter.write` copies into a buffer, digests, and writes in a thread. A crash leaves a part of the file.
3. `DurableWriter.finish` cuts the file to its length, syncs it (fsync) and closes it, with every error checked. A crash
   before fsync has returned leaves a file of any content, and after it the complete file, still under its temporary
   name.
4. The caller renames it to its final, unused name (`files.rename_to_new`) and syncs both directories
   (`files.fsync_directory`). A crash leaves the complete file under one name or the other; once the directories are
   synced, under the final one.

For a checkpoint, `ckptstore.commit.committer` then inserts the row; until that is committed, the payload is an orphan,
which the next opening adopts. Files that a crash leaves under a temporary name are removed by
`leases.remove_stale_files` at the next opening. A failed fsync is never retried on the same file: `DurableWriter.abort`
removes it, and a new one is written.

Where the file system can, bytes bypass the page cache (O_DIRECT), from buffers of a megabyte. A copy into fresh pages
of the cache takes several times the processor time, and would evict the training's data for a file that is hardly ever
read again.
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
# Addresses, offsets and lengths of direct writes are multiples of it, as all known file systems require.
_BLOCK = 4096
# Through the page cache, the kernel begins to write after so many bytes, so that the final fsync finds little to do.
_WRITEBACK = 16 << 20
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT})
_NO_RESERVATION = frozenset({errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL, errno.ENOSYS})


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """The size in bytes and the digest of a file that is complete and synced."""

    nbytes: int
    digest: str


class DurableWriter:
    """A write-only stream to a new file, to be used by one thread.

    Bytes are copied and digested in the caller's thread, and written by another thread while the caller prepares the
    next ones. Nothing is durable until `finish` has returned; a crash leaves a part of the file under its name.

    Args:
        path: The name; must not exist.
        reserve: Bytes to reserve on the disk beforehand, so that a full disk is an error here.
        mode: The file's mode, less the umask; read-only by default, as a store's payloads are.

    Raises:
        DiskFullError: The disk has no room for the bytes; nothing is left behind.
        StorageError: The file cannot be created.

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
            # The kernel applies the umask to the mode; this descriptor may write even where the mode is read-only.
            flags = os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
            self._descriptor = os.open(path, flags, mode)
        self._is_direct = _set_direct(self._descriptor)
        self._position = 0
        self._failure: BaseException | None = None
        self._digest = xxhash.xxh3_128()
        # An interrupt could leave the lock of a `queue.Queue` held for ever; a `SimpleQueue` is C code.
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
        # The blocks reserved for this file are free again once it is removed.
        free = free_bytes(self.path.parent)
        taken = os.fstat(self._descriptor).st_blocks * 512
        return DiskFullError(
            path=self.path,
            needed=max(self._reserve, self._position),
            free=None if free is None else free + taken,
            disk=mount_point(self.path),
            code=error.errno or errno.ENOSPC,
        )

    def write(self, data: Any) -> int:
        """Write the bytes of any C-contiguous buffer, which may change afterwards; returns their number.

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
                self._queue_buffer()
        self._position += len(view)
        return len(view)

    def _queue_buffer(self) -> None:
        """Digest the current buffer, and queue it for the thread to write."""
        buffer, filled = self._buffer, self._filled
        self._buffer, self._filled = None, 0
        if buffer is not None and filled:
            self._digest.update(buffer[:filled])
            self._queue.put((buffer, filled))

    def tell(self) -> int:
        """Return the number of bytes written to the stream so far."""
        return self._position

    def finish(self) -> Written:
        """Write what is left, cut the file to its length, sync and close it; its bytes are durable when this returns.

        Raises:
            StorageError: A step failed. Call `abort` and write a new file; this one must not be synced again.
        """
        self._queue_buffer()
        self._join()
        self._raise_failure()
        with io_step("truncate", self.path):
            os.ftruncate(self._descriptor, self._position)
        sync_file(self._descriptor, self.path)
        descriptor, self._descriptor = self._descriptor, -1
        with io_step("close", self.path):
            os.close(descriptor)
        return Written(nbytes=self._position, digest=f"{DIGEST}:{self._digest.hexdigest()}")

    def abort(self) -> None:
        """Close and remove the file. Raises nothing, since it runs while another error is being handled.

        A file that cannot be removed now is removed when the store is next opened.
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
            # RuntimeError: an interrupt came while it was started; it has nothing to write yet.
            with suppress(RuntimeError):
                self._thread.join()
            self._thread = None

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _write_behind(self) -> None:
        """Write the queued buffers; after a failure, discard them, so that nobody waits for ever."""
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
        # Only the last buffer is not full. The padding after the end is cut off by `finish`.
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
            # The file system requires other multiples, or the write before was partial.
            self._is_direct = False
            _set_direct(self._descriptor, False)
            return os.write(self._descriptor, data)


def _set_direct(descriptor: int, on: bool = True) -> bool:
    """Let writes bypass the page cache, or not; returns True if they do."""
    flag = getattr(os, "O_DIRECT", 0)
    if not flag:
        return False
    flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETFL, flags | flag if on else flags & ~flag)
    except OSError:
        return False  # the file system does not support it
    return on


def _aligned_memory(nbytes: int) -> memoryview:
    """Return a page-aligned buffer for so many bytes, but no more than are written at a time.

    The mapping is shared, so that a fork in another thread does not copy pages away that are being written (`open(2)`,
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
    """Ask Linux to begin to write a range back. Only a hint: durability comes from fsync, which reports the errors."""
    if _SYNC_FILE_RANGE is not None:
        _SYNC_FILE_RANGE(descriptor, offset, nbytes, _SYNC_FILE_RANGE_WRITE)
