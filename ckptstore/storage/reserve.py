"""A small file that is removed when the disk is full, so that a deletion can be recorded and then frees space."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from ckptstore.errors import DiskFullError
from ckptstore.storage.files import create_filled, unlink
from ckptstore.storage.layout import MANIFEST

# Bytes: enough for SQLite's journal when some thousand rows are marked and removed, and for the manifest's growth.
NBYTES = 512 << 10
_Result = TypeVar("_Result")


def ensure(path: Path) -> bool:
    """Create the file if it is missing or incomplete; returns False if there is no room for it now.

    The caller holds the store's lock. The file needs no sync: if a power cut damages it, it is created again.

    Raises:
        StorageError: The disk failed, and not because it is full.
    """
    if path.is_dir() and not path.is_symlink():
        return False  # a user's directory
    if os.path.lexists(path):
        if not path.is_symlink() and path.stat().st_size == NBYTES:
            return True
        unlink(path)
    try:
        create_filled(path, NBYTES)
    except DiskFullError:
        return False
    return True


def release_and_retry(path: Path, work: Callable[[], _Result]) -> _Result:
    """Do work that changes the manifest; if the manifest has no room, remove the file and do the work once more.

    In no other case: an error at a payload or a directory may be a failed sync, and no sync is ever retried.

    Args:
        path: The reserve file.
        work: The work; it must be safe to repeat.

    Raises:
        DiskFullError: There is still no room.
    """
    try:
        return work()
    except DiskFullError as error:
        if error.path.name != MANIFEST or not os.path.lexists(path):
            raise
        unlink(path)
        return work()
