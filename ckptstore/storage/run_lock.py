"""The lock of one run: a kernel lock that a process can share with the process that finishes its saves.

The lock belongs to an open file, and is held until every process that has the file open has closed it or is dead. So a
worker that outlives its trainer still holds the run that it is saving. A forked child closes its copy.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Self
from weakref import WeakSet

from filelock import lock_descriptor, unlock_descriptor

from ckptstore.errors import RunLockedError, StorageError
from ckptstore.records import Claim
from ckptstore.storage.files import io_step
from ckptstore.storage.locks import NO_LOCKS, locks_disabled, make_lock_directory, unsafe_file_system
from ckptstore.system import messages

_MAX_TRIES = 100


class RunLock:
    """The exclusive right to write one run, held for the life of the writer.

    Args:
        directory: The store's ``locks`` directory.
        run: The run's name, validated before.

    Attributes:
        run: The run's name.
        claim: The claim under which the lock's holder writes the run, once it has one.
        shared: True while another process holds the lock too; `release` then only closes this process's copy.

    Raises:
        RunLockedError: Another writer holds it. Raised at once, without waiting.
        UnsafeFileSystemError: This file system has no locks.
        StorageError: The lock file cannot be opened.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     lock = RunLock(Path(folder), "digits")
        ...     lock.release()
    """

    def __init__(self, directory: Path, run: str) -> None:
        path = self._begin(directory, run)
        if locks_disabled():
            return
        try:
            with io_step("lock", path):
                self._descriptor = lock_in_place(path)
        except StorageError as error:
            if error.errno in NO_LOCKS:
                raise unsafe_file_system(path, "has no working locks", error) from error
            raise
        if self._descriptor < 0:
            raise RunLockedError(run=run, store=directory.parent)
        _held.add(self)

    def _begin(self, directory: Path, run: str) -> Path:
        self.run = run
        self.claim: Claim | None = None
        self.shared = False
        self._descriptor = -1
        self._path: Path = directory / f"{run}.lock"
        return self._path

    @classmethod
    def inherited(cls, directory: Path, descriptor: int | None, claim: Claim) -> Self:
        """Return the lock that another process holds and has passed to this one.

        Args:
            directory: The store's ``locks`` directory.
            descriptor: The open file that the lock belongs to; None if locks are disabled.
            claim: The other process's claim.
        """
        lock = cls.__new__(cls)
        lock._begin(directory, claim.run)
        lock.claim, lock.shared = claim, True
        lock._descriptor = -1 if descriptor is None else descriptor
        return lock

    def keep_in_place(self) -> None:
        """Lock the run again, with a warning, if the lock's file was removed: another writer would be admitted.

        It costs two system calls while the file is in its place. If another process holds the new file, nothing is
        done: it works for the same writer, or it is a new one, and the claim decides (`ckptstore.manifest.fences`).
        """
        if self._descriptor < 0:
            return
        with suppress(OSError):  # the save that follows meets it too
            if _is_at(self._path, self._descriptor):
                return
            make_lock_directory(self._path.parent)
            found = lock_in_place(self._path)
            if found < 0:
                return
            removed, self._descriptor = self._descriptor, found
            os.close(removed)
            messages.warn(
                f"{self._path} was removed while run {self.run!r} is being written; it is locked again. Never remove "
                "it: a second training of this run would be admitted"
            )

    @property
    def descriptor(self) -> int | None:
        """The open file that the lock belongs to, to be passed to another process; None if locks are disabled."""
        return None if self._descriptor < 0 else self._descriptor

    def release(self) -> None:
        """Release the lock. May be called again. A file that cannot be closed is a warning: the lock is released."""
        descriptor, self._descriptor = self._descriptor, -1
        _held.discard(self)
        if descriptor < 0:
            return
        try:
            try:
                if not self.shared:
                    unlock_descriptor(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            messages.warn(f"{self._path}: the lock file could not be closed ({error})")

    def __del__(self, _is_ending: Callable[[], bool] = sys.is_finalizing) -> None:
        """Release the lock of a store that was not closed and is no longer used."""
        # The interpreter's exit releases the lock too, and may have cleared this module's names already.
        if getattr(self, "_descriptor", -1) >= 0 and not _is_ending():
            self.release()

    def _close_in_child(self) -> None:
        """Close the file in a forked child, where the lock is the parent's."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            with suppress(OSError):
                os.close(descriptor)


_held: WeakSet[RunLock] = WeakSet()


def is_held_by_this_process(directory: Path, run: str) -> bool:
    """Return True if this process itself holds the lock of a run."""
    path = directory / f"{run}.lock"
    return any(lock._path == path for lock in list(_held))


def _close_all_in_child() -> None:
    for lock in list(_held):
        lock._close_in_child()
    _held.clear()


os.register_at_fork(after_in_child=_close_all_in_child)


def lock_in_place(path: Path) -> int:
    """Return a descriptor of the file that is now at `path`, locked; -1 if another writer holds the lock."""
    for _ in range(_MAX_TRIES):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise IsADirectoryError(21, "is no ordinary file", str(path))
            granted = lock_descriptor(descriptor, blocking=False)
            if granted and _is_at(path, descriptor):
                kept, descriptor = descriptor, -1
                return kept
            if not granted:
                return -1
        finally:
            if descriptor >= 0:
                os.close(descriptor)
        # The store was removed between the two calls: the locked file no longer has a name.
    return -1


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


@contextmanager
def all_run_locks(directory: Path) -> Iterator[None]:
    """Hold the lock of every run that was ever written, so that none is written within the block.

    Args:
        directory: The store's ``locks`` directory.

    Raises:
        RunLockedError: One of the runs is being written.
    """
    with ExitStack() as held:
        for path in sorted(directory.glob("*.lock")):
            if path.name != "store.lock" and path.is_file():
                held.callback(RunLock(directory, path.stem).release)
        yield
