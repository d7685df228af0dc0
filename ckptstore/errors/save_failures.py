"""Failures of a save by several processes, in a form that a message can carry: a kind, and a line of text."""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

from ckptstore.errors.base import CheckpointStoreError
from ckptstore.errors.storage import DiskFullError, StorageError, StoreRemovedError

# "disk_full" and "storage": another try may succeed; "other": it would meet the same again.
SaveFailureCause = Literal["disk_full", "storage", "other"]


def cause_of_failure(error: BaseException) -> SaveFailureCause:
    """Return the kind of reason that an error is for a process not to write its part of a save.

    Example:
        >>> from pathlib import Path
        >>> cause_of_failure(StorageError(operation="fsync", path=Path("x"), error=OSError(5, "I/O error")))
        'storage'
    """
    if isinstance(error, DiskFullError):
        return "disk_full"
    found: SaveFailureCause | None = getattr(error, "cause", None)  # of a `SaveAbandonedError`
    if found is not None:
        return found
    is_final = isinstance(error, StoreRemovedError) or not isinstance(error, StorageError)
    return "other" if is_final else "storage"


def worst_cause(causes: Collection[SaveFailureCause]) -> SaveFailureCause:
    """Return the cause that decides if another try may succeed; "other" where there is none.

    Example:
        >>> worst_cause({"disk_full", "storage"}), worst_cause({"disk_full"}), worst_cause([])
        ('storage', 'disk_full', 'other')
    """
    order: tuple[SaveFailureCause, ...] = ("other", "storage", "disk_full")
    return next((cause for cause in order if cause in causes), "other")


def describe_failure(error: BaseException) -> str:
    """Return an error in one line, for other processes.

    Example:
        >>> describe_failure(ValueError("x"))
        'ValueError: x'
    """
    return error.message if isinstance(error, CheckpointStoreError) else f"{type(error).__name__}: {error}"
