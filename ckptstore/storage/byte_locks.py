"""Kernel locks on single bytes of a file, held by an open file and asked for without being taken.

These are open file description locks (``F_OFD_SETLK``): they end when the last descriptor of that open file is closed,
so that a dead process holds none. macOS and some network file systems have none.
"""

from __future__ import annotations

import fcntl
import os
import struct
from contextlib import suppress
from pathlib import Path

_FLOCK = struct.Struct("hhqqi4x")
# None on macOS.
_SET: int | None = getattr(fcntl, "F_OFD_SETLK", None)
_GET: int | None = getattr(fcntl, "F_OFD_GETLK", None)


def lock_byte(descriptor: int, byte: int, *, shared: bool = False) -> bool:
    """Lock a byte of an open file, without waiting; returns False if it cannot be had now, or there are no such locks.

    Args:
        descriptor: The file; to be written to, unless the lock is shared.
        byte: Its offset.
        shared: True for a lock that several open files may have at once.
    """
    return _set(descriptor, fcntl.F_RDLCK if shared else fcntl.F_WRLCK, byte)


def unlock_byte(descriptor: int, byte: int) -> None:
    """Release a lock of `lock_byte`; does nothing if it is not held."""
    _set(descriptor, fcntl.F_UNLCK, byte)


def is_byte_locked(path: Path, byte: int) -> bool | None:
    """Return True if an open file has a lock on a byte. Takes no lock, and waits for none.

    Returns:
        False if the file cannot be opened; None if the system or the file system has no such locks.
    """
    try:
        descriptor = open_to_read(path)
    except OSError:
        return False
    try:
        if _GET is None:
            return None
        found = fcntl.fcntl(descriptor, _GET, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0))
    except OSError:
        return None
    finally:
        os.close(descriptor)
    kind: int = _FLOCK.unpack(found)[0]
    return kind != fcntl.F_UNLCK


def open_to_read(path: Path) -> int:
    """Open a file to read or to ask for its locks; returns at once, also if somebody has put a pipe there.

    Raises:
        OSError: It cannot be opened.
    """
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)


def _set(descriptor: int, kind: int, byte: int) -> bool:
    if _SET is None:
        return False
    with suppress(OSError):
        fcntl.fcntl(descriptor, _SET, _FLOCK.pack(kind, os.SEEK_SET, byte, 1, 0))
        return True
    return False
