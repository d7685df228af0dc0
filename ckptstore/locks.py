"""Locks between processes: the store's commit lock, and leases of live writers; a run's lock is in `run_lock`.

All are kernel locks (flock, through filelock), so that a dead process holds none; lock files are never removed.
A lock is not inherited by a forked child.
"""

from __future__ import annotations

import errno
import fcntl
import os
import threading
import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

from filelock import FileLock, Timeout

from ckptstore.errors import StorageError, StoreLockedError, UnsafeFileSystemError
from ckptstore.files import step, unlink

STORE_LOCK_TIMEOUT_S = 60.0
# Set to 1 by a user whose file system has no locks, and who sees to it that one process alone uses the store.
WITHOUT_LOCKS = "CKPTSTORE_WITHOUT_LOCKS"
# What a file system without locks answers.
NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP})
_POLL_S = 0.005
_LEASE = ".lease"


class _NoLock:
    """Stands in for a lock where the user has said that nobody else is there."""

    def acquire(self) -> None:
        """Do nothing."""

    def release(self) -> None:
        """Do nothing."""


def without_locks() -> bool:
    """Return True when the user has taken it on themselves that one process alone uses a store."""
    return os.environ.get(WITHOUT_LOCKS, "") not in ("", "0")


def _file_lock(path: Path, *, timeout_s: float, per_thread: bool) -> FileLock | _NoLock:
    if without_locks():
        return _NoLock()
    # fallback_to_soft=False: a marker file instead of a kernel lock would outlive its owner.
    return FileLock(
        path, timeout=timeout_s, poll_interval=_POLL_S, thread_local=per_thread, fallback_to_soft=False
    )


# Where the kernel keeps nobody out, at least the threads of this process are kept out of each other's way.
_threads = threading.RLock()


def instead_of_locks() -> AbstractContextManager[object]:
    """Return what stands in for locks inside this process, where the user has said that there are no others."""
    return _threads if without_locks() else nullcontext()


def unsafe(path: Path, lacks: str, error: OSError | None = None) -> UnsafeFileSystemError:
    """Return the error for a file system whose locks do not work; names the override."""
    return UnsafeFileSystemError(
        path=path,
        lacks=f"this file system {lacks}, so that two writers would not notice each other",
        error=error,
        hint=f"keep the store on another disk; or, if one process alone uses it: {WITHOUT_LOCKS}=1",
    )


@contextmanager
def store_lock(directory: Path, *, timeout_s: float = STORE_LOCK_TIMEOUT_S) -> Iterator[None]:
    """Hold the store's lock; for the short part of a commit only.

    Args:
        directory: The store's ``locks`` directory.
        timeout_s: Seconds to wait for it.

    Raises:
        StoreLockedError: It was not free in time.
        UnsafeFileSystemError: This file system has no locks.
        StorageError: The lock file cannot be opened.
    """
    path = directory / "store.lock"
    lock = _file_lock(path, timeout_s=timeout_s, per_thread=False)
    try:
        try:
            try:
                _acquire(lock, "lock", path)
            except StorageError as error:
                if isinstance(error.__cause__, Timeout):
                    raise StoreLockedError(path=path, waited_s=timeout_s) from error.__cause__
                raise
            with instead_of_locks():
                yield
        finally:
            lock.release()
    finally:
        # Twice, since an interrupt may come before the first has begun; a lock that is free stays so.
        lock.release()


def _acquire(lock: FileLock | _NoLock, operation: str, path: Path) -> None:
    try:
        with step(operation, path):
            lock.acquire()
    except BaseException as error:
        # It may have been granted in the instant before an interrupt.
        lock.release()
        if isinstance(error, StorageError) and error.errno in NO_LOCKS:
            raise unsafe(path, "has no working locks", error) from error
        raise


def check_exclusion(directory: Path) -> None:
    """Try whether the store's lock, which the caller holds, is refused to somebody else, and SQLite's kind granted.

    Raises:
        UnsafeFileSystemError: It is granted twice.
        StorageError: The lock file cannot be opened.
    """
    if without_locks():
        return
    path = directory / "store.lock"
    with step("probe", path):
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _try_record_lock(descriptor, path)
            return
        finally:
            os.close(descriptor)
    raise unsafe(path, "grants one lock twice")


def _try_record_lock(descriptor: int, path: Path) -> None:
    """Try the kind of lock that SQLite takes; it would take a refusal for somebody else's lock, and wait."""
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in NO_LOCKS:
            raise unsafe(path, "has no working record locks, which SQLite needs", error) from error


# What a file system answers that can lock no directory; NFS asks for a descriptor that may write.
_NO_DIRECTORY_LOCKS = NO_LOCKS | {errno.EBADF, errno.EINVAL, errno.EACCES, errno.EPERM}


@contextmanager
def held_directory(path: Path) -> Iterator[bool | None]:
    """Hold a directory, as long as the block or this process lasts; gives whether it is held.

    False where somebody else holds it, or it is gone; None where directories cannot be held.
    """
    if without_locks():
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
        # Whoever held it before may have removed it.
        yield held if os.path.lexists(path) else False
    finally:
        os.close(descriptor)


class Lease:
    """Proof that a writer is alive: ``tmp/<id>.lease``, locked for the writer's life.

    Make, release and sweep leases under the store's lock. A crash leaves the file unlocked, and so marks what
    lies beside it (``tmp/<id>.*``) as nobody's.

    Args:
        directory: The store's ``tmp`` directory.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.id = uuid.uuid4().hex
        self._path = directory / f"{self.id}{_LEASE}"
        self._lock = _file_lock(self._path, timeout_s=0, per_thread=False)
        _acquire(self._lock, "lease", self._path)
        self._count = 0

    def new_path(self, suffix: str) -> Path:
        """Return an unused name for a temporary file of this writer."""
        self._count += 1
        return self.directory / f"{self.id}.{self._count}{suffix}"

    def release(self) -> None:
        """End the lease and remove its file."""
        unlink(self._path)
        self._lock.release()


def sweep(directory: Path) -> list[Path]:
    """Remove the temporary files of dead writers, never those of living ones; call under the store's lock.

    Returns:
        What was removed. Files that no writer of ours would make are left alone.
    """
    removed: list[Path] = []
    names: dict[str, list[Path]] = {}
    try:
        found = sorted(directory.iterdir())
    except OSError as error:
        raise StorageError(operation="list", path=directory, error=error) from error
    for path in found:
        owner = path.name.partition(".")[0]
        ours = len(owner) == 32 and set(owner) <= set("0123456789abcdef")
        if ours and path.is_file() and not path.is_symlink():
            names.setdefault(owner, []).append(path)
    for owner, paths in names.items():
        lease = directory / f"{owner}{_LEASE}"
        if os.path.lexists(lease) and lease not in paths:
            continue
        lock = _file_lock(lease, timeout_s=0, per_thread=False)
        try:
            _acquire(lock, "lease", lease)
        except StorageError as error:
            if isinstance(error.__cause__, Timeout):
                continue
            raise
        # The lease goes last: until then a crash here leaves the rest to be swept again.
        for path in sorted({*paths, lease}, key=lambda path: path.suffix == _LEASE):
            unlink(path)
            removed.append(path)
        lock.release()
    return removed
