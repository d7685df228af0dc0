"""A small file that is given up when the disk is full, so that a deletion can still be recorded, and so free space."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from ckptstore.errors import DiskFullError
from ckptstore.storage.files import create_filled, unlink
from ckptstore.storage.layout import MANIFEST

# SQLite's journal for marking and removing some thousand rows, and the growth of the manifest itself.
NBYTES = 512 << 10
_Result = TypeVar("_Result")


def ensure(path: Path) -> bool:
    """Make the file if it is not there, whole; returns False where there is no room for it now.

    The caller holds the store's lock. It needs no sync: what a power cut leaves of it is made anew.

    Raises:
        StorageError: The disk failed in another way than being full.
    """
    if path.is_dir() and not path.is_symlink():
        return False  # not ours
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
    """Do work that changes the manifest; if it has no room for that, the file goes, and the work is done once more.

    Only then: what failed at a payload or a directory may have been a sync, and no sync is ever tried again.

    Raises:
        DiskFullError: There is no room even so.
    """
    try:
        return work()
    except DiskFullError as error:
        if error.path.name != MANIFEST or not os.path.lexists(path):
            raise
        unlink(path)
        return work()
