"""Removes large files without waiting for the file system to free their blocks.

unlink(2) removes a name in microseconds. Freeing the blocks, when the last reference ends, takes long: 9 ms for each
40 MB where free blocks are reported to the device at once (ext4's ``discard``), and no processor time. A descriptor
that is held open over the unlink delays that to its close, and a thread does the close.

The descriptors belong to the whole process: a store that needs room waits for what another store has removed. A crash
leaves no more than after an unlink alone: the system closes the descriptors of a dead process, and a file system frees
blocks without a name at its next mount.

Example:
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "large")
    ...     _ = path.write_bytes(bytes(8 << 20))
    ...     unlink(path)
    ...     begin()  # once the removal of the name is durable
    ...     path.exists()
    False
    >>> wait()
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from ckptstore.storage import files
from ckptstore.system.fork_safety import no_fork

# The smallest file, in bytes on the disk, that is worth a thread, and the most files that wait at once.
_MIN_BYTES = 4 << 20
_MAX_WAITING = 4
_NAP_S = 1e-4


@dataclass(frozen=True, slots=True)
class _Held:
    """The descriptor of a file that is being removed, and what identifies that file."""

    descriptor: int
    device: int
    inode: int
    nbytes: int
    changed_ns: int

    @classmethod
    def of(cls, descriptor: int, status: os.stat_result) -> Self:
        return cls(descriptor, status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)

    def close(self) -> None:
        with suppress(OSError):  # the descriptor is closed anyway, and nothing was written through it
            os.close(self.descriptor)
        _held.discard(self)


# All that this process holds, and those of them that may be closed.
_held: set[_Held] = set()
_waiting: deque[_Held] = deque()
# The threads that close a descriptor, or are about to take one.
_working: list[int] = []
# Devices of file systems that keep a name for an open file: NFS renames it until it is closed.
_renaming: set[int] = set()


def unlink(path: Path) -> None:
    """Remove a file's name; does nothing if there is none. Durable after `fsync_directory`.

    Its blocks are freed after `begin` or `wait`.

    Raises:
        StorageError: It could not be removed.
    """
    held = _hold(path)
    if held is None:
        files.unlink(path)
        return
    try:
        files.unlink(path)
    except BaseException:
        held.close()
        raise
    if _has_a_name(held):
        _renaming.add(held.device)
        held.close()
    else:
        _waiting.append(held)


def begin() -> None:
    """Begin to free the blocks of the removed files in a thread.

    Sync the directories of these files before: a device may do nothing else meanwhile.
    """
    if _waiting:
        try:
            threading.Thread(target=_close_waiting, name="ckptstore-free", daemon=True).start()
        except RuntimeError:  # no thread can be started
            _close_waiting()


def wait() -> None:
    """Wait until the blocks of all files that this process has removed are free."""
    _close_waiting()
    # Not for this thread: a signal handler runs inside its work, and would wait for itself.
    while any(thread != threading.get_ident() for thread in list(_working)):
        time.sleep(_NAP_S)


def _hold(path: Path) -> _Held | None:
    """Open a file to delay the freeing of its blocks; None if it has another name, is small, or must not stay open."""
    if len(_waiting) >= _MAX_WAITING:
        return None
    with no_fork():
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:
            return None  # the unlink reports what is wrong, if anything is
        with suppress(OSError):  # some file systems cannot stat an open file
            status = os.fstat(descriptor)
            if _is_worth_it(status):
                held = _Held.of(descriptor, status)
                _held.add(held)
                return held
        os.close(descriptor)
        return None


def _is_worth_it(status: os.stat_result) -> bool:
    return status.st_nlink == 1 and status.st_blocks * 512 >= _MIN_BYTES and status.st_dev not in _renaming


def _has_a_name(held: _Held) -> bool:
    try:
        return os.fstat(held.descriptor).st_nlink > 0
    except OSError:
        return True  # unknown: then the file is not kept open


def _close_waiting() -> None:
    """Close the waiting descriptors; several threads may do so at once."""
    me = threading.get_ident()
    while True:
        _working.append(me)
        try:
            held = _waiting.popleft()
            held.close()
        except IndexError:
            return
        finally:
            with suppress(ValueError):  # a child that was forked meanwhile has an empty list
                _working.remove(me)


def _close_inherited() -> None:
    """Close the descriptors in a forked child, which would keep the blocks for as long as it lives."""
    while _held:
        held = _held.pop()
        with suppress(OSError):  # it was closed, but not yet removed from the set
            # Meanwhile the number may belong to another file.
            if _Held.of(held.descriptor, os.fstat(held.descriptor)) == held:
                os.close(held.descriptor)
    _waiting.clear()
    _working.clear()


os.register_at_fork(after_in_child=_close_inherited)
