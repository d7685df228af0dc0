"""Published paths: which checkpoint each of the user's paths shows.

A path is pending from the COMMIT of its checkpoint until the path itself was switched to it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import Connection, bindparam, delete, select, update

from ckptstore.manifest.events import add_event
from ckptstore.manifest.retention.checks import apply_retention
from ckptstore.manifest.runs.runs import run_id
from ckptstore.manifest.statements import upsert, upsert_by
from ckptstore.manifest.tables import PUBLISHED, RUNS
from ckptstore.manifest.transactions import Repository
from ckptstore.records import Published

if TYPE_CHECKING:
    from ckptstore.manifest.retention.checks import RetentionCheck

_VERSION_SHOWN = select(PUBLISHED.version).where(PUBLISHED.path == bindparam("path"))
_PUT = upsert_by(PUBLISHED.table, "path")
_CHANGE = update(PUBLISHED.table).where(PUBLISHED.path == bindparam("at_path"))
_ALL = (
    select(PUBLISHED.path, RUNS.name.label("run"), PUBLISHED.version, PUBLISHED.pending)
    .join_from(PUBLISHED.table, RUNS.table, RUNS.id == PUBLISHED.run_id)
    .order_by(PUBLISHED.path)
)
_PENDING = _ALL.where(PUBLISHED.pending)
_AT_PATH = _ALL.where(PUBLISHED.path == bindparam("path"))


def put_published(connection: Connection, path: str, run: str, version: int) -> None:
    """Record that a path is to show a checkpoint, and that the switch is still to come."""
    _record_replaced(connection, path, version)
    values = {"run_id": run_id(connection, run), "version": version, "pending": True}
    upsert(connection, _PUT, {"path": path}, values)


def confirm_published(connection: Connection, path: str) -> None:
    """Record that a path shows its checkpoint."""
    connection.execute(_CHANGE, {"at_path": path, "pending": False})


def _record_replaced(connection: Connection, path: str, version: int | None) -> None:
    """Record the checkpoint that a path shows no longer, so that retention considers it again."""
    before = connection.execute(_VERSION_SHOWN, {"path": path}).scalar()
    if before is not None and before != version:
        add_event(connection, "unshown", version=before)


class PublishedPaths(Repository):
    """The published paths of a manifest."""

    def all(self) -> list[Published]:
        """Return all paths with the checkpoints that they show, sorted by path."""
        with self._transactions.reading() as connection:
            return [Published(**row._asdict()) for row in connection.execute(_ALL)]

    def pending(self) -> list[Published]:
        """Return the paths that are still to be switched to their checkpoint, sorted."""
        with self._transactions.reading() as connection:
            return [Published(**row._asdict()) for row in connection.execute(_PENDING)]

    def at(self, path: str) -> Published | None:
        """Return what a path shows, or None where nothing was ever published there."""
        with self._transactions.reading() as connection:
            row = connection.execute(_AT_PATH, {"path": path}).one_or_none()
            return None if row is None else Published(**row._asdict())

    def confirm(self, path: str, *, run: str | None = None, retention: RetentionCheck | None = None) -> None:
        """Record that a path shows its checkpoint.

        Args:
            path: The path.
            run: The run of the checkpoint, which retention is applied to.
            retention: Applied to that run in the same transaction.
        """
        with self._transactions.writing("confirm_published", run=run) as connection:
            confirm_published(connection, path)
            if retention is not None and run is not None:
                apply_retention(connection, self._store, run, retention)

    def forget(self, path: str) -> None:
        """Forget that a path shows, or was to show, a checkpoint."""
        with self._transactions.writing("forget_published") as connection:
            _record_replaced(connection, path, None)
            connection.execute(delete(PUBLISHED.table).where(PUBLISHED.path == path))
