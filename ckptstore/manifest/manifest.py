"""`Manifest`: what the store knows, read and changed in whole transactions; returns records, never rows."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

from sqlalchemy import func, select

from ckptstore.errors import CorruptManifestError
from ckptstore.manifest import schema, store_row
from ckptstore.manifest.checkpoint_rows import fetch
from ckptstore.manifest.checkpoints import Checkpoints, drop_checkpoints, insert_checkpoint
from ckptstore.manifest.epochs import Epochs, record_finished
from ckptstore.manifest.events import Events, add_event, append_event
from ckptstore.manifest.metrics import Metrics
from ckptstore.manifest.published import PublishedPaths, confirm_published, put_published
from ckptstore.manifest.retention.checks import RetentionCheck, RunRetention, apply_retention
from ckptstore.manifest.runs.attempts import Attempts, Fact, insert_attempts
from ckptstore.manifest.runs.beginnings import Beginnings, record_beginning
from ckptstore.manifest.runs.overviews import Overviews
from ckptstore.manifest.runs.runs import Runs, set_monitor
from ckptstore.manifest.tables import CHECKPOINTS, STORE
from ckptstore.manifest.tags import Tags, put_tag
from ckptstore.manifest.transactions import Transactions
from ckptstore.records import Attempt, Checkpoint, FinishedEpoch, Mode, NewCheckpoint


class Manifest:
    """A store's manifest, for many threads at once; a child may use it after a fork.

    It has an object for each noun, and itself the methods that span several. Each method, here and there, is one
    transaction. Those that change something return when it is durable; a crash before leaves everything as it was.
    Callers hold the store's lock for them. Where a COMMIT fails (`StorageError`), the change may be durable all the
    same: the next call sees what is on disk.

    Every method may raise `StorageError`, `CorruptManifestError`, `StoreLockedError` (another process was in
    a transaction for over half a minute) and `SchemaTooNewError` (another process upgraded the manifest);
    those that change something also `ReadOnlyError` and `DiskFullError`.

    Attributes:
        path: The manifest file.
        checkpoints: Its checkpoints, with their states.
        runs: Its runs: names, writers, monitored metrics.
        attempts: The processes that trained its runs.
        overviews: The newest facts of its runs, all at once.
        beginnings: Where its runs were begun from scratch.
        epochs: The epochs of its runs, which outlive their checkpoints.
        events: Its events.
        metrics: The names of metrics.
        tags: Its tags.
        published: Its published paths.
        retention: Checks by a policy, and marks for deletion.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     manifest = Manifest.open(Path(folder, "manifest.sqlite"))
        ...     print(manifest.reserve_version(), manifest.reserve_version(), manifest.checkpoints.latest())
        ...     manifest.close()
        1 2 None
    """

    def __init__(self, path: Path, *, read_only: bool) -> None:
        self.path = path.absolute()
        self._transactions = Transactions(self.path, read_only=read_only)
        self.checkpoints = Checkpoints(self._transactions)
        self.runs = Runs(self._transactions)
        self.attempts = Attempts(self._transactions)
        self.overviews = Overviews(self._transactions)
        self.beginnings = Beginnings(self._transactions)
        self.epochs = Epochs(self._transactions)
        self.events = Events(self._transactions)
        self.metrics = Metrics(self._transactions)
        self.tags = Tags(self._transactions)
        self.published = PublishedPaths(self._transactions)
        self.retention = RunRetention(self._transactions)

    @classmethod
    def open(cls, path: Path, *, read_only: bool = False) -> Self:
        """Open the manifest at `path`; for writing, make it if there is none, and upgrade an older one.

        Args:
            path: Of ``manifest.sqlite``; its directory must exist.
            read_only: True to change nothing, ever.

        Raises:
            CheckpointStoreError: As `ckptstore.manifest.schema.open_manifest` says.
        """
        return cls(path, read_only=read_only)

    @staticmethod
    def check(path: Path) -> None:
        """Raise what `open` for writing would raise of the file as it is; changes nothing."""
        schema.check_manifest(path)

    def close(self) -> None:
        """Close all connections; later calls raise `InvalidArgumentError`."""
        self._transactions.close()

    @property
    def schema_version(self) -> str:
        """The revision of the manifest's schema."""
        return schema.HEAD

    @cached_property
    def uuid(self) -> str:
        """The store's own id, made with it."""
        with self._transactions.reading() as connection:
            return store_row.uuid(connection)

    @property
    def next_version(self) -> int:
        """The version that the next save gets."""
        with self._transactions.reading() as connection:
            return store_row.next_version(connection)

    def reserve_version(self, *, run: str | None = None, dropping: Sequence[int] = ()) -> int:
        """Take the next version. It is never given out again, whatever happens to the save that took it.

        Args:
            run: The run that is going to be saved; if it was claimed here, the claim is checked.
            dropping: Checkpoints to drop in the same transaction, as `Checkpoints.remove` does.
        """
        with self._transactions.writing("reserve_version", run=run) as connection:
            drop_checkpoints(connection, dropping)
            return store_row.reserve_version(connection)

    def raise_next_version(self, at_least: int) -> None:
        """Raise the next version to `at_least`, if it is lower."""
        with self._transactions.writing("raise_next_version") as connection:
            store_row.raise_next_version(connection, at_least)

    def add_checkpoint(
        self,
        new: NewCheckpoint,
        *,
        published_path: str | None = None,
        monitor: tuple[str, Mode] | None = None,
        event: str = "saved",
        more_events: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
        retention: RetentionCheck | None = None,
    ) -> Checkpoint:
        """Insert a checkpoint, with all that belongs to it, and return it.

        Args:
            new: The checkpoint; its run is made if there is none, and its tags move to it.
            published_path: A path that is to show it: recorded as pending until `PublishedPaths.confirm`.
            monitor: A metric that its run monitors, and the better direction.
            event: How it came here.
            more_events: Details of more events of it, by their kinds.
            retention: Applied to its run in the same transaction; what expires is marked for deletion.

        Raises:
            InvalidArgumentError: The version or the file is there already, or a value cannot be stored.
            RunTakenOverError: The run was claimed here, and another process has claimed it since; nothing changed.
        """
        with self._transactions.writing("add_checkpoint", run=new.run) as connection:
            run_id = insert_checkpoint(connection, new)
            if published_path is not None:
                put_published(connection, published_path, new.run, new.version)
            if monitor is not None:
                set_monitor(connection, new.run, *monitor)
            for kind, detail in ({event: None} | dict(more_events)).items():
                append_event(connection, kind, run_id=run_id, version=new.version, detail=detail)
            added = fetch(connection, self._transactions.store, new.version)
            if retention is not None:
                apply_retention(connection, self._transactions.store, new.run, retention, added)
        assert added is not None
        return added

    def record_resumed(
        self,
        run: str,
        version: int,
        detail: Mapping[str, Any],
        *,
        attempt: tuple[int, Mapping[Fact, Any]] | None = None,
    ) -> None:
        """Append the event that a run was resumed, with what the attempt that did so is to record of it.

        Args:
            run: The run.
            version: The checkpoint that it was resumed from.
            detail: What else the event says.
            attempt: Number and facts of the attempt; None for none.
        """
        with self._transactions.writing("record_resumed", run=run) as connection:
            add_event(connection, "resumed", run=run, version=version, detail=detail)
            if attempt is not None:
                number, facts = attempt
                self.attempts.add_facts_in(connection, run, number, facts)

    def rebuild_from(
        self,
        rows: Iterable[tuple[NewCheckpoint, str | None]],
        *,
        uuid: str,
        next_version: int,
        tags: Mapping[str, int],
        monitors: Iterable[tuple[str, str, Mode]] = (),
        beginnings: Iterable[tuple[str, int, int]] = (),
        epochs: Mapping[tuple[str, int], Collection[FinishedEpoch]] = MappingProxyType({}),
        attempts: Collection[Attempt] = (),
    ) -> None:
        """Fill a new manifest that replaces a lost one, all at once.

        Args:
            rows: The checkpoints, each with the path that shows it, or None.
            uuid: The store's id.
            next_version: The lowest number that the next version may have.
            tags: Versions by tag; those whose version is not among `rows` are left out.
            monitors: Run, metric and better direction.
            beginnings: Run, number and first version of beginnings, each run's in order.
            epochs: Finished epochs by run and the version that recorded them, which may have been removed.
            attempts: Attempts at runs.
        """
        with self._transactions.writing("rebuild_from") as connection:
            store_row.set_uuid(connection, uuid)
            store_row.raise_next_version(connection, next_version)
            versions = set()
            for new, path in rows:
                insert_checkpoint(connection, new)
                add_event(connection, "adopted", run=new.run, version=new.version)
                versions.add(new.version)
                if path is not None:
                    put_published(connection, path, new.run, new.version)
                    confirm_published(connection, path)
            for name, version in tags.items():
                if version in versions:
                    put_tag(connection, version, name)
            for run, metric, mode in monitors:
                set_monitor(connection, run, metric, mode)
            for run, number, first in beginnings:
                record_beginning(connection, run, number, first)
            for (run, version), finished in sorted(epochs.items()):
                record_finished(connection, run, version, finished)
            insert_attempts(connection, attempts, self._transactions.store)
        self.__dict__.pop("uuid", None)

    def integrity_problems(self) -> list[str]:
        """Return what SQLite and the manifest's own rules find wrong, one line each; reads all of it."""
        try:
            with self._transactions.reading() as connection:
                found = connection.exec_driver_sql("PRAGMA integrity_check").scalars().all()
                problems = [str(line) for line in found if line != "ok"]
                for table, row, parent, _ in connection.exec_driver_sql("PRAGMA foreign_key_check"):
                    problems.append(f"row {row} of {table} refers to a row of {parent} that is not there")
                counter = connection.execute(select(STORE.next_version)).scalar()
                highest = connection.execute(select(func.max(CHECKPOINTS.version))).scalar() or 0
        except CorruptManifestError as error:
            return [error.reason]
        if counter is None or counter <= highest:
            problems.append(f"the next version is {counter}, though there is a checkpoint {highest}")
        return problems
