"""Applies a policy's decision about a run inside a transaction of the manifest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import Connection

from ckptstore.manifest.checkpoints import change_state
from ckptstore.manifest.events import append_event
from ckptstore.manifest.retention.progress import forget_progress, record_progress
from ckptstore.manifest.runs.runs import run_id
from ckptstore.manifest.transactions import Repository
from ckptstore.records import Checkpoint, RetentionProgress

if TYPE_CHECKING:
    from ckptstore.manifest.retention.run_rows import IsIntact, RunRows


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """A policy's decision about a run.

    Attributes:
        expired: The checkpoints to remove.
        progress: How far retention has come with that; None to record nothing, and forget what was recorded.
    """

    expired: Sequence[Checkpoint]
    progress: RetentionProgress | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RetentionCheck:
    """A policy's check of one run, to be made inside a transaction.

    Attributes:
        decide: Returns what a policy decides; None where nothing is to be changed or recorded.
        is_intact: Returns True if a payload of this name is there with this size.
        is_shown: Returns True if a published path, which may be pending, still shows a checkpoint.
    """

    decide: Callable[[RunRows], Decision | None]
    is_intact: IsIntact
    is_shown: Callable[[str, bool], bool]


def apply_retention(
    connection: Connection, store: Path, run: str, check: RetentionCheck, known: Checkpoint | None = None
) -> list[Checkpoint]:
    """Check a run inside the caller's transaction, mark what expires, and return it.

    Args:
        connection: In the transaction.
        store: The store's directory.
        run: The run.
        check: The check.
        known: One of its checkpoints that was read in the same transaction, to save reading it again.
    """
    from ckptstore.manifest.retention.run_rows import RunRows  # queries do without

    rows = RunRows(connection, store, run, is_intact=check.is_intact, is_shown=check.is_shown, known=known)
    decision = check.decide(rows)
    if decision is None:
        return []
    id_ = run_id(connection, run) if rows.run_id is None else rows.run_id
    versions = [checkpoint.version for checkpoint in decision.expired]
    _expire(connection, id_, versions, decision.progress)
    return list(decision.expired)


def _expire(
    connection: Connection, run_id: int, versions: Sequence[int], progress: RetentionProgress | None
) -> None:
    if versions:
        change_state(connection, versions, "deleting")
        append_event(connection, "pruned", run_id=run_id, detail={"versions": list(versions)})
    if progress is not None:
        record_progress(connection, run_id, progress)
    elif versions:
        forget_progress(connection, run_id)


class RunRetention(Repository):
    """Retention of a manifest's runs."""

    def apply(self, run: str, check: RetentionCheck) -> list[Checkpoint]:
        """Check a run, mark what expires for deletion and record that, all at once; returns what expires."""
        with self._transactions.writing("retention", run=run) as connection:
            return apply_retention(connection, self._store, run, check)

    def expire(self, run: str, versions: Sequence[int]) -> None:
        """Mark checkpoints of a run for deletion, and forget how far retention had come, all at once."""
        with self._transactions.writing("retention", run=run) as connection:
            _expire(connection, run_id(connection, run), versions, None)
