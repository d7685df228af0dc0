"""How often a save is tried again when the disk, or another process's lock, refused it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from ckptstore.errors import (
    LockedError,
    RunLockedError,
    SaveInProgressError,
    StorageError,
    UnfinishedSaveError,
)

# Seconds to wait before each further try of one save.
DELAYS_S = (0.1, 1.0)
_Result = TypeVar("_Result")


def tried_again(save: Callable[[], _Result]) -> _Result:
    """Save, trying again after each of `DELAYS_S`; what another try would meet again is raised as it is.

    Raises:
        StorageError: The last try failed too.
        LockedError: Likewise.
    """
    for delay in DELAYS_S:
        try:
            return save()
        except (UnfinishedSaveError, RunLockedError, SaveInProgressError):
            raise
        except (StorageError, LockedError):
            time.sleep(delay)
    return save()
