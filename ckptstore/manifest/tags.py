"""Tags: names that people gave to checkpoints; each names one checkpoint, and each change is recorded as an event."""

from __future__ import annotations

from datetime import UTC, datetime

from sqlalchemy import Connection, bindparam, delete, select

from ckptstore.errors import CheckpointNotFoundError
from ckptstore.manifest.checkpoint_rows import fetch, require
from ckptstore.manifest.events import add_event
from ckptstore.manifest.statements import upsert, upsert_by
from ckptstore.manifest.tables import TAGS
from ckptstore.manifest.transactions import Repository
from ckptstore.records import Checkpoint

_VERSION_TAGGED = select(TAGS.version).where(TAGS.name == bindparam("name"))
_PUT = upsert_by(TAGS.table, "name")


def put_tag(connection: Connection, version: int, name: str) -> None:
    """Give a checkpoint a tag; a tag of another checkpoint moves. Both are recorded as events."""
    before = connection.execute(_VERSION_TAGGED, {"name": name}).scalar()
    if before == version:
        return
    if before is not None:
        add_event(connection, "untagged", version=before, detail={"tag": name, "to": version})
    add_event(connection, "tagged", version=version, detail={"tag": name, "from": before})
    upsert(connection, _PUT, {"name": name}, {"version": version, "created_at": datetime.now(UTC)})


class Tags(Repository):
    """The tags of a manifest."""

    def all(self) -> dict[str, int]:
        """Return the version of each tag, sorted by tag."""
        with self._transactions.reading() as connection:
            return dict(connection.execute(select(TAGS.name, TAGS.version).order_by(TAGS.name)).all())

    def checkpoint(self, name: str) -> Checkpoint | None:
        """Return the checkpoint that has a tag, in whatever state, or None where none has."""
        with self._transactions.reading() as connection:
            return fetch(connection, self._store, select(TAGS.version).where(TAGS.name == name))

    def put(self, version: int, name: str) -> None:
        """Give a checkpoint a tag; a tag of another checkpoint moves, atomically.

        Raises:
            CheckpointNotFoundError: There is no such version.
        """
        with self._transactions.writing("tag") as connection:
            require(connection, self._store, version)
            put_tag(connection, version, name)

    def remove(self, name: str) -> int:
        """Remove a tag; returns the version that had it.

        Raises:
            CheckpointNotFoundError: None had it.
        """
        with self._transactions.writing("untag") as connection:
            version: int | None = connection.execute(_VERSION_TAGGED, {"name": name}).scalar()
            if version is not None:
                connection.execute(delete(TAGS.table).where(TAGS.name == name))
                add_event(connection, "untagged", version=version, detail={"tag": name, "to": None})
        if version is None:
            raise CheckpointNotFoundError(ref=name, store=self._store)
        return version
