"""Locks between processes: the store's commit lock, one lock per run, and leases of live writers.

All are kernel locks (flock, through filelock), so that a dead process holds none; lock files are never removed.
A lock is not inherited by a forked child.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from ckptstore.errors import RunLockedError, StorageError, StoreLockedError
from ckptstore.files import step, unlink

STORE_LOCK_TIMEOUT_S = 60.0
_POLL_S = 0.005
_LEASE = ".lease"


def _file_lock(path: Path, *, timeout_s: float, per_thread: bool) -> FileLock:
    # fallback_to_soft=False: a marker file instead of a kernel lock would outlive its owner.
    return FileLock(
        path, timeout=timeout_s, poll_interval=_POLL_S, thread_local=per_thread, fallback_to_soft=False
    )


@contextmanager
def store_lock(directory: Path, *, timeout_s: float = STORE_LOCK_TIMEOUT_S) -> Iterator[None]:
    """Hold the store's lock; for the short part of a commit only.

    Args:
        directory: The store's ``locks`` directory.
        timeout_s: Seconds to wait for it.

    Raises:
        StoreLockedError: It was not free in time.
        StorageError: This file system has no locks.
    """
    path = directory / "store.lock"
    lock = _file_lock(path, timeout_s=timeout_s, per_thread=False)
    try:
        with step("lock", path):
            lock.acquire()
    except StorageError as error:
        if isinstance(error.__cause__, Timeout):
            raise StoreLockedError(path=path, waited_s=timeout_s) from error.__cause__
        raise
    try:
        yield
    finally:
        lock.release()


class RunLock:
    """The right to write one run, for the life of the writer.

    Args:
        directory: The store's ``locks`` directory.
        run: The run's name, checked before.

    Raises:
        RunLockedError: Another writer has it; at once, without waiting.
        StorageError: This file system has no locks.
    """

    def __init__(self, directory: Path, run: str) -> None:
        self.run = run
        path = directory / f"{run}.lock"
        self._lock = _file_lock(path, timeout_s=0, per_thread=False)
        try:
            with step("lock", path):
                self._lock.acquire()
        except StorageError as error:
            if isinstance(error.__cause__, Timeout):
                raise RunLockedError(run=run, store=directory.parent) from error.__cause__
            raise

    def release(self) -> None:
        """Give it up."""
        self._lock.release()


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
        with step("lease", self._path):
            self._lock.acquire()
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
    for path in sorted(directory.iterdir()):
        owner = path.name.partition(".")[0]
        if len(owner) == 32 and set(owner) <= set("0123456789abcdef"):
            names.setdefault(owner, []).append(path)
    for owner, paths in names.items():
        lock = _file_lock(directory / f"{owner}{_LEASE}", timeout_s=0, per_thread=False)
        try:
            lock.acquire()
        except Timeout:
            continue
        # The lease goes last: until then a crash here leaves the rest to be swept again.
        for path in sorted({*paths, directory / f"{owner}{_LEASE}"}, key=lambda path: path.suffix == _LEASE):
            unlink(path)
            removed.append(path)
        lock.release()
    return removed
