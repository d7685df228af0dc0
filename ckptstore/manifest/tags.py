"""The part of a manifest that gives checkpoints names and pins, each change in the events; and what runs watch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from sqlalchemy import Connection, select

from ckptstore.errors import CheckpointNotFoundError
from ckptstore.manifest import checkpoint_writes as changes
from ckptstore.manifest import checkpoints
from ckptstore.manifest.tables import TAGS
from ckptstore.manifest.transactions import Transactions
from ckptstore.records import Mode


class ManifestNames:
    """The part of `ckptstore.manifest.manifest.Manifest` that knows tags and pins, and what runs watch."""

    _store: Path
    _transactions: Transactions

    def tag(self, version: int, name: str) -> None:
        """Give a checkpoint a tag; one that stands elsewhere moves, atomically.

        Raises:
            CheckpointNotFoundError: There is no such version.
        """
        with self._transactions.writing("tag") as connection:
            self._require(connection, version)
            changes.put_tag(connection, version, name)

    def untag(self, name: str) -> int:
        """Take a tag away; returns the version that had it.

        Raises:
            CheckpointNotFoundError: None had it.
        """
        with self._transactions.writing("untag") as connection:
            version = changes.remove_tag(connection, name)
        if version is None:
            raise CheckpointNotFoundError(ref=name, store=self._store)
        return version

    def tags(self) -> dict[str, int]:
        """Return the version of each tag, sorted by tag."""
        with self._transactions.reading() as connection:
            return dict(connection.execute(select(TAGS.name, TAGS.version).order_by(TAGS.name)).all())

    def pin(self, version: int, pinned: bool = True) -> None:
        """Keep a checkpoint from retention, or let it go with ``pinned=False``.

        Raises:
            CheckpointNotFoundError: There is no such version.
        """
        with self._transactions.writing("pin") as connection:
            self._require(connection, version)
            changes.set_pinned(connection, version, pinned)

    def watch(self, run: str, monitors: Mapping[str, Mode]) -> None:
        """Note which way a run takes metrics to be better, all at once; makes the run if there is none."""
        with self._transactions.writing("watch") as connection:
            for metric, mode in monitors.items():
                changes.put_monitor(connection, run, metric, mode)

    def _require(self, connection: Connection, version: int) -> None:
        found = checkpoints.one(connection, self._store, version)
        if found is None or found.state == "deleting":
            raise CheckpointNotFoundError(ref=version, store=self._store)
