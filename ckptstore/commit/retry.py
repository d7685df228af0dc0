"""Retries a save that failed because of a disk, also of another process of the job, or of another process's lock."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from ckptstore.errors import (
    LockedError,
    RunLockedError,
    SaveAbandonedError,
    SaveInProgressError,
    StorageError,
    StoreRemovedError,
    UnfinishedSaveError,
)

# Seconds to wait before each further try of one save.
DELAYS_S = (0.1, 1.0)
_Result = TypeVar("_Result")


def with_retries(save: Callable[[], _Result]) -> _Result:
    """Save, and retry after each of `DELAYS_S`; an error that a retry would meet again is raised at once.

    Raises:
        StorageError: The last try failed too.
        LockedError: As `StorageError`.
    """
    for delay in DELAYS_S:
        try:
            return save()
        except (UnfinishedSaveError, RunLockedError, SaveInProgressError, StoreRemovedError):
            raise
        except (StorageError, LockedError) as error:
            if isinstance(error, SaveAbandonedError) and error.cause == "other":
                raise
            time.sleep(delay)
    return save()
