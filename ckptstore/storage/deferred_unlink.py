"""Large files are removed without waiting until the file system has given their blocks back.

unlink(2) takes a name away in microseconds. What takes long is the end of the last reference, which frees the blocks:
9 ms for each 40 MB where a device is told of free blocks at once (ext4's ``discard``), and none of it is work for the
processor. A descriptor that is held over the unlink makes that an affair of its close, and a thread can wait for that.

What is held is the whole process' affair: a store that needs room waits for what another one has removed. A crash
leaves nothing more than after an unlink alone: the system closes what a process held, and a file system frees at its
next mount what no name leads to.

Example:
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "large")
    ...     _ = path.write_bytes(bytes(8 << 20))
    ...     unlink(path)
    ...     begin()  # once the name's end is durable
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

# Bytes on the disk from which on it is worth a thread, and files that wait at once.
_WORTH = 4 << 20
_AT_ONCE = 4
_NAP_S = 1e-4


@dataclass(frozen=True, slots=True)
class _Held:
    """A descriptor of a file that is being removed, and what tells that it is still that file's."""

    descriptor: int
    device: int
    inode: int
    nbytes: int
    changed_ns: int

    @classmethod
    def of(cls, descriptor: int, status: os.stat_result) -> Self:
        return cls(descriptor, status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)

    def close(self) -> None:
        with suppress(OSError):  # it is closed all the same, and nothing was written through it
            os.close(self.descriptor)
        _held.discard(self)


# All of this process, and of these what may be closed.
_held: set[_Held] = set()
_waiting: deque[_Held] = deque()
# The threads that close something, or are about to look for it.
_at_work: list[int] = []
# Devices of file systems on which a file that is open keeps a name: NFS renames it until it is closed.
_renaming: set[int] = set()


def unlink(path: Path) -> None:
    """Remove a file's name; nothing happens where there is none. Durable after `fsync_directory`.

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
    """Have the blocks of what was removed given back, beside the caller.

    The directories that it was removed from had better be synced before: a device may do nothing else meanwhile.
    """
    if _waiting:
        try:
            threading.Thread(target=_close_waiting, name="ckptstore-free", daemon=True).start()
        except RuntimeError:  # no thread can be started
            _close_waiting()


def wait() -> None:
    """Return when the blocks of all that this process has removed are free."""
    _close_waiting()
    # A signal's handler runs inside what its own thread does, and would wait for itself.
    while any(thread != threading.get_ident() for thread in list(_at_work)):
        time.sleep(_NAP_S)


def _hold(path: Path) -> _Held | None:
    """Return a descriptor of a file whose last name that is; None where removing it is quick, or must be plain."""
    if len(_waiting) >= _AT_ONCE:
        return None
    with no_fork():
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:
            return None  # removing it says what is wrong, if anything is
        with suppress(OSError):  # some file systems know nothing of what is open
            status = os.fstat(descriptor)
            if _is_worth_it(status):
                held = _Held.of(descriptor, status)
                _held.add(held)
                return held
        os.close(descriptor)
        return None


def _is_worth_it(status: os.stat_result) -> bool:
    return status.st_nlink == 1 and status.st_blocks * 512 >= _WORTH and status.st_dev not in _renaming


def _has_a_name(held: _Held) -> bool:
    try:
        return os.fstat(held.descriptor).st_nlink > 0
    except OSError:
        return True  # where nobody can tell, nothing is held


def _close_waiting() -> None:
    """Close what waits, whoever else does the same."""
    me = threading.get_ident()
    while True:
        _at_work.append(me)
        try:
            held = _waiting.popleft()
            held.close()
        except IndexError:
            return
        finally:
            with suppress(ValueError):  # a child that was forked meanwhile has none at work
                _at_work.remove(me)


def _close_inherited() -> None:
    """Close in a forked child what would keep blocks as long as it lives."""
    while _held:
        held = _held.pop()
        with suppress(OSError):  # it was closed, and not yet taken out
            # Since then the number may have become another file's.
            if _Held.of(held.descriptor, os.fstat(held.descriptor)) == held:
                os.close(held.descriptor)
    _waiting.clear()
    _at_work.clear()


os.register_at_fork(after_in_child=_close_inherited)
