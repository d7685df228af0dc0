"""Detection of a store that was removed before a fit begins: no new store replaces it without a word."""

from __future__ import annotations

import os
from pathlib import Path

from ckptstore.errors import StoreNotFoundError
from ckptstore.storage.layout import Layout, find_store
from ckptstore.store import opened_stores
from ckptstore.system import messages
from ckptstore.training.saving.arguments import Resume

# Set by Slurm in a job that it started again.
_RESTARTS = "SLURM_RESTART_COUNT"


def check_store(path: Path, resume: Resume) -> None:
    """Check that a store is there where one must be; changes nothing on disk.

    Args:
        path: The store's directory, absolute.
        resume: ``"must"`` to refuse to begin without a store. Otherwise signs that there was one are a warning.

    Raises:
        StoreNotFoundError: There is no store, and the run must be resumed.
    """
    try:
        find_store(path)
    except StoreNotFoundError:
        if resume == "must":
            raise
        reason = _reason(path)
        if reason:
            messages.warn(
                f"{path}: the store is gone ({reason}): a new one is begun, and training starts from the beginning. "
                'With resume="must" that is an error',
                UserWarning,
            )


def _reason(path: Path) -> str:
    """Return the reason to believe that there was a store; empty if there is none."""
    if opened_stores.was_opened(path):
        return "this process has used it before"
    locked = [lock.stem for lock in Layout(path).locks.glob("*.lock") if lock.name != "store.lock"]
    if locked:
        return f"its locks directory is left, with run {', '.join(sorted(locked))}"
    if os.environ.get(_RESTARTS, "0") not in ("", "0"):
        return f"{_RESTARTS}={os.environ[_RESTARTS]}, so that this job has run before"
    return ""
