"""Locks between processes: the store's commit lock. A run's lock is in `run_lock`, a live writer's in `leases`.

All are kernel locks (flock, through filelock), so that a dead process holds none. Lock files are never removed. A
forked child does not inherit a lock.
"""

from __future__ import annotations

import errno
import fcntl
import os
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from ckptstore.errors import StorageError, StoreLockedError, UnsafeFileSystemError
from ckptstore.storage.files import io_step, make_directory
from ckptstore.storage.layout import Layout

STORE_LOCK_TIMEOUT_S = 60.0
# An environment variable: a user sets it to 1 where the file system has no locks, and only one process uses the store.
WITHOUT_LOCKS = "CKPTSTORE_WITHOUT_LOCKS"
# The errors of a file system without locks.
NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP})
_POLL_S = 0.005


class _NoLock:
    """A stand-in for a lock where the user has disabled locks."""

    def acquire(self) -> None:
        """Do nothing."""

    def release(self) -> None:
        """Do nothing."""


def locks_disabled() -> bool:
    """Return True if the user has disabled locks, and ensures that only one process uses the store."""
    return os.environ.get(WITHOUT_LOCKS, "") not in ("", "0")


def file_lock(path: Path, *, timeout_s: float, per_thread: bool) -> FileLock | _NoLock:
    """Return a kernel lock on a file, not yet held; a stand-in if the user has disabled locks."""
    if locks_disabled():
        return _NoLock()
    # fallback_to_soft=False: a marker file instead of a kernel lock would outlive its owner.
    return FileLock(
        path, timeout=timeout_s, poll_interval=_POLL_S, thread_local=per_thread, fallback_to_soft=False
    )


# Without kernel locks, this one at least excludes the threads of this process from each other.
_threads = threading.RLock()


def in_process_lock() -> AbstractContextManager[object]:
    """Return a lock between the threads of this process if the user has disabled kernel locks, else no lock."""
    return _threads if locks_disabled() else nullcontext()


def unsafe_file_system(path: Path, lacks: str, error: OSError | None = None) -> UnsafeFileSystemError:
    """Return the error for a file system whose locks do not work; names the override."""
    return UnsafeFileSystemError(
        path=path,
        lacks=f"this file system {lacks}, so that two writers would not notice each other",
        error=error,
        hint=f"keep the store on another disk; or, if one process alone uses it: {WITHOUT_LOCKS}=1",
    )


@contextmanager
def store_lock(directory: Path, *, timeout_s: float = STORE_LOCK_TIMEOUT_S) -> Iterator[None]:
    """Hold the store's lock for the block, which should be short.

    Args:
        directory: The store's ``locks`` directory.
        timeout_s: Seconds to wait for it.

    Raises:
        StoreLockedError: It was not free in time.
        StoreRemovedError: The directory is gone, and so is the store.
        UnsafeFileSystemError: This file system has no locks.
        StorageError: The lock file cannot be opened.
    """
    path = directory / "store.lock"
    make_lock_directory(directory)
    lock = file_lock(path, timeout_s=timeout_s, per_thread=False)
    try:
        try:
            try:
                acquire(lock, "lock", path)
            except StorageError as error:
                if isinstance(error.__cause__, Timeout):
                    raise StoreLockedError(path=path, waited_s=timeout_s) from error.__cause__
                raise
            with in_process_lock():
                yield
        finally:
            release(lock, path)
    finally:
        # Twice, since an interrupt may come before the first has begun; releasing a free lock does nothing.
        release(lock, path)


def make_lock_directory(directory: Path) -> None:
    """Make the directory of a store's locks again if it was removed, but no store where there is none.

    Raises:
        StoreRemovedError: There is no store any more.
        StorageError: The directory cannot be made.
    """
    if not directory.is_dir():  # filelock would make it, whatever is above it
        Layout(directory.parent).require_manifest()
        make_directory(directory)


def release(lock: FileLock | _NoLock, path: Path) -> None:
    """Release a lock of `file_lock`; does nothing if it is not held.

    Raises:
        StorageError: The lock file could not be unlocked or closed.
    """
    try:
        lock.release()
    except OSError as error:
        raise StorageError(operation="unlock", path=path, error=error) from error


def acquire(lock: FileLock | _NoLock, operation: str, path: Path) -> None:
    """Acquire a lock of `file_lock`; when this raises, it is not held.

    Args:
        lock: The lock.
        operation: The name of the I/O step, for errors and tests.
        path: The lock file.

    Raises:
        UnsafeFileSystemError: This file system has no locks.
        StorageError: It is held, with `filelock.Timeout` as the cause; or the file cannot be opened.
    """
    try:
        with io_step(operation, path):
            lock.acquire()
    except BaseException as error:
        # It may have been granted in the instant before an interrupt.
        lock.release()
        if isinstance(error, StorageError) and error.errno in NO_LOCKS:
            raise unsafe_file_system(path, "has no working locks", error) from error
        raise


def probe_locks(directory: Path) -> None:
    """Check that the store's lock, which the caller holds, is not granted twice, and that SQLite's locks work.

    Raises:
        UnsafeFileSystemError: It is granted twice, or the file system has no record locks.
        StorageError: The lock file cannot be opened.
    """
    if locks_disabled():
        return
    path = directory / "store.lock"
    with io_step("probe", path):
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _try_record_lock(descriptor, path)
            return
        finally:
            os.close(descriptor)
    raise unsafe_file_system(path, "grants one lock twice")


def _try_record_lock(descriptor: int, path: Path) -> None:
    """Try the kind of lock that SQLite uses, which would wait for ever on a file system that has none."""
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in NO_LOCKS:
            raise unsafe_file_system(
                path, "has no working record locks, which SQLite needs", error
            ) from error


# The errors of a file system that cannot lock a directory; NFS requires a descriptor that may write.
_NO_DIRECTORY_LOCKS = NO_LOCKS | {errno.EBADF, errno.EINVAL, errno.EACCES, errno.EPERM}


def is_locked(path: Path) -> bool:
    """Return True if a process holds the lock of a file. Takes it for an instant, and only if the file is there."""
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
    return False


@contextmanager
def directory_lock(path: Path) -> Iterator[bool | None]:
    """Hold a lock on a directory for the block, or until this process dies; yields whether it is held.

    False if another process holds it, or the directory is gone; None if directories cannot be locked here.
    """
    if locks_disabled():
        yield None
        return
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        yield False
        return
    held: bool | None = True
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            held = False
        except OSError as error:
            if error.errno not in _NO_DIRECTORY_LOCKS:
                raise StorageError(operation="lock", path=path, error=error) from error
            held = None
        # The process that held it before may have removed the directory.
        yield held if os.path.lexists(path) else False
    finally:
        os.close(descriptor)
