"""The right to write one run: a kernel lock that a process can hand on to the one that ends its work.

The lock belongs to an open file, and is held until every process that has it open has closed it or is dead. So a
writer that outlives its trainer goes on holding the run that it is still saving. A forked child closes its copy.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from weakref import WeakSet

from filelock import lock_descriptor, unlock_descriptor

from ckptstore.errors import RunLockedError, StorageError
from ckptstore.storage.files import io_step
from ckptstore.storage.locks import NO_LOCKS, locks_disabled, unsafe_file_system

_TRIES = 100


class RunLock:
    """The right to write one run, for the life of the writer.

    Args:
        directory: The store's ``locks`` directory.
        run: The run's name, checked before.

    Attributes:
        shared: True while another process has the lock too; it is then not undone here, only let go of.

    Raises:
        RunLockedError: Another writer has it; at once, without waiting.
        UnsafeFileSystemError: This file system has no locks.
        StorageError: The lock file cannot be opened.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     lock = RunLock(Path(folder), "digits")
        ...     lock.release()
    """

    def __init__(self, directory: Path, run: str) -> None:
        self.run = run
        self.shared = False
        self._descriptor = -1
        if locks_disabled():
            return
        self._path = path = directory / f"{run}.lock"
        try:
            with io_step("lock", path):
                self._descriptor = _locked(path)
        except StorageError as error:
            if error.errno in NO_LOCKS:
                raise unsafe_file_system(path, "has no working locks", error) from error
            raise
        if self._descriptor < 0:
            raise RunLockedError(run=run, store=directory.parent)
        _held.add(self)

    @property
    def descriptor(self) -> int | None:
        """The open file that the lock belongs to, to be handed to another process; None where there are no locks."""
        return None if self._descriptor < 0 else self._descriptor

    def release(self) -> None:
        """Give it up; may be repeated."""
        descriptor, self._descriptor = self._descriptor, -1
        _held.discard(self)
        if descriptor < 0:
            return
        try:
            if not self.shared:
                unlock_descriptor(descriptor)
        finally:
            os.close(descriptor)

    def __del__(self, _is_ending: Callable[[], bool] = sys.is_finalizing) -> None:
        """A store that nobody closed, and nobody has any more, writes no run."""
        # The interpreter's end takes the lock with it, and may have taken this module's names already.
        if getattr(self, "_descriptor", -1) >= 0 and not _is_ending():
            self.release()

    def _leave(self) -> None:
        """Close it in a forked child, where it is the parent's."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            with suppress(OSError):
                os.close(descriptor)


_held: WeakSet[RunLock] = WeakSet()


def is_held_by_this_process(directory: Path, run: str) -> bool:
    """Return whether this process has the lock of a run itself."""
    path = directory / f"{run}.lock"
    return any(lock._path == path for lock in list(_held))


def _leave_all() -> None:
    for lock in list(_held):
        lock._leave()
    _held.clear()


os.register_at_fork(after_in_child=_leave_all)


def _locked(path: Path) -> int:
    """Return a descriptor of the file that is at `path` now, locked; -1 where somebody else has the lock."""
    for _ in range(_TRIES):
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
        # Its store was removed between the two calls: what was locked has no name any more.
    return -1


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


@contextmanager
def all_run_locks(directory: Path) -> Iterator[None]:
    """Hold the lock of every run that was ever written, so that nobody writes one meanwhile.

    Args:
        directory: The store's ``locks`` directory.

    Raises:
        RunLockedError: Somebody writes one now.
    """
    with ExitStack() as held:
        for path in sorted(directory.glob("*.lock")):
            if path.name != "store.lock" and path.is_file():
                held.callback(RunLock(directory, path.stem).release)
        yield
