"""How far retention has come with each run: the policy and the newest event of its last check."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, bindparam, delete

from ckptstore.manifest.events import RUN_OF_CHECKPOINT
from ckptstore.manifest.statements import execute_for_each, upsert, upsert_by
from ckptstore.manifest.tables import RETENTION
from ckptstore.records import RetentionProgress

_PUT = upsert_by(RETENTION.table, "run_id")
_FORGET = delete(RETENTION.table).where(RETENTION.run_id == bindparam("of_run"))
_FORGET_OF_CHECKPOINT = delete(RETENTION.table).where(RETENTION.run_id == RUN_OF_CHECKPOINT.scalar_subquery())


def record_progress(connection: Connection, run_id: int, progress: RetentionProgress) -> None:
    """Record how far retention has come with a run."""
    upsert(connection, _PUT, {"run_id": run_id}, progress.to_row())


def forget_progress(connection: Connection, run_id: int) -> None:
    """Forget how far retention had come with a run."""
    connection.execute(_FORGET, {"of_run": run_id})


def forget_progress_of(connection: Connection, versions: Sequence[int]) -> None:
    """Forget how far retention had come with the runs of some checkpoints."""
    execute_for_each(connection, _FORGET_OF_CHECKPOINT, versions)
