"""`Manifest`: what the store knows, asked and changed in whole transactions; returns records, never rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

from sqlalchemy import func, select

from ckptstore.errors import CorruptManifestError
from ckptstore.manifest import checkpoint_writes as changes
from ckptstore.manifest import checkpoints, schema
from ckptstore.manifest import statements as queries
from ckptstore.manifest.attempts import ManifestAttempts, note
from ckptstore.manifest.retention import Judging, ManifestKeeping, carry_out
from ckptstore.manifest.search import ManifestAsking
from ckptstore.manifest.tables import CHECKPOINTS, RUNS, STORE
from ckptstore.manifest.tags import ManifestNames
from ckptstore.manifest.transactions import Transactions
from ckptstore.records import Checkpoint, Event, Holder, Mode, NewCheckpoint, Published, State


class Manifest(ManifestAttempts, ManifestNames, ManifestKeeping, ManifestAsking):
    """A store's manifest, for many threads at once; a child may use it after a fork.

    Each method is one transaction. Those that change something return when it is durable; a crash before
    leaves everything as it was. Callers hold the store's lock for them. Where a COMMIT fails
    (`StorageError`), the change may have become durable all the same: the next call sees what is on disk.

    Every method may raise `StorageError`, `CorruptManifestError`, `StoreLockedError` (another process was in
    a transaction for over half a minute) and `SchemaTooNewError` (another process upgraded the manifest);
    those that change something also `ReadOnlyError` and `DiskFullError`.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     manifest = Manifest.open(Path(folder, "manifest.sqlite"))
        ...     print(manifest.reserve_version(), manifest.reserve_version(), manifest.latest())
        ...     manifest.close()
        1 2 None
    """

    def __init__(self, path: Path, *, read_only: bool) -> None:
        self.path = path.absolute()
        self._store = self.path.parent
        self._transactions = Transactions(self.path, read_only=read_only)

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
            return connection.execute(select(STORE.uuid)).scalar_one()

    # --- changes -------------------------------------------------------------------------------------

    def reserve_version(self, *, dropping: Sequence[int] = ()) -> int:
        """Take the next version. It is never given out again, whatever happens to the save that took it.

        Args:
            dropping: Checkpoints that are dropped by the way, as `remove` does.
        """
        with self._transactions.writing("reserve_version") as connection:
            changes.remove(connection, dropping)
            return changes.reserve_version(connection)

    def add_checkpoint(
        self,
        new: NewCheckpoint,
        *,
        published_path: str | None = None,
        monitor: tuple[str, Mode] | None = None,
        event: str = "saved",
        notes: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
        judging: Judging | None = None,
    ) -> Checkpoint:
        """Insert a checkpoint, with all that belongs to it, and return it.

        Args:
            new: The checkpoint; its run is made if there is none, and its tags move to it.
            published_path: A path that is to show it: noted as pending until `confirm_published`.
            monitor: A metric that its run watches, and the better direction.
            event: How it came here.
            notes: More events of it, by their kinds.
            judging: What is to be let go of its run then; see `judge`.

        Raises:
            InvalidArgumentError: The version or the file is there already, or a value cannot be stored.
        """
        with self._transactions.writing("add_checkpoint") as connection:
            run_id = changes.insert_checkpoint(connection, new)
            if published_path is not None:
                changes.put_published(connection, published_path, new.run, new.version)
            if monitor is not None:
                changes.put_monitor(connection, new.run, *monitor)
            for kind, detail in ({event: None} | dict(notes)).items():
                changes.append_event(connection, kind, run_id=run_id, version=new.version, detail=detail)
            added = checkpoints.one(connection, self._store, new.version)
            if judging is not None:
                carry_out(connection, self._store, new.run, judging, added)
        assert added is not None
        return added

    def confirm_published(self, path: str, *, run: str = "", judging: Judging | None = None) -> None:
        """Note that a path shows its checkpoint.

        Args:
            path: The path.
            run: The run that is judged.
            judging: What is to be let go of that run then; see `judge`.
        """
        with self._transactions.writing("confirm_published") as connection:
            changes.confirm_published(connection, path)
            if judging is not None:
                carry_out(connection, self._store, run, judging)

    def forget_published(self, path: str) -> None:
        """Forget that a path shows, or was to show, a checkpoint."""
        with self._transactions.writing("forget_published") as connection:
            changes.forget_published(connection, path)

    def set_state(
        self,
        versions: Sequence[int],
        state: State,
        *,
        event: str | None = None,
        detail: Mapping[str, Any] | None = None,
    ) -> None:
        """Set the state of checkpoints, all at once; versions that are not there are passed over.

        Args:
            versions: The checkpoints.
            state: Their new state.
            event: Kind of an event to append for each, in the same transaction.
            detail: What the event says beyond that.
        """
        with self._transactions.writing("set_state") as connection:
            changes.set_state(connection, versions, state)
            for version in versions if event else ():
                changes.add_event(connection, str(event), version=version, detail=detail)

    def remove(self, versions: Sequence[int]) -> None:
        """Drop checkpoints with their metrics, tags and published paths, all at once; events stay.

        Versions that are not there are passed over, so that it may be repeated.
        """
        with self._transactions.writing("remove") as connection:
            changes.remove(connection, versions)

    def set_holder(self, run: str, holder: Holder | None) -> None:
        """Note who writes a run, or that nobody does; makes the run if there is none."""
        with self._transactions.writing("set_holder") as connection:
            changes.set_holder(connection, run, holder)

    def add_event(
        self,
        kind: str,
        *,
        run: str | None = None,
        version: int | None = None,
        detail: Mapping[str, Any] | None = None,
    ) -> None:
        """Append an event; makes the run if there is none.

        Raises:
            InvalidArgumentError: `detail` is not JSON.
        """
        with self._transactions.writing("add_event") as connection:
            changes.add_event(connection, kind, run=run, version=version, detail=detail)

    def count_on(self, next_version: int) -> None:
        """Let the next version be at least `next_version`."""
        with self._transactions.writing("count_on") as connection:
            changes.count_on(connection, next_version)

    def refill(
        self,
        rows: Iterable[tuple[NewCheckpoint, str | None]],
        *,
        uuid: str,
        next_version: int,
        tags: Mapping[str, int],
        monitors: Iterable[tuple[str, str, Mode]] = (),
        attempts: Iterable[tuple[str, int, int]] = (),
    ) -> None:
        """Take the place of a manifest that was lost, all at once.

        Args:
            rows: The checkpoints, each with the path that shows it, or None.
            uuid: The store's id.
            next_version: The least number that the next version may have.
            tags: Versions by tag; of versions that are not among `rows` nothing is kept.
            monitors: Run, metric and better direction.
            attempts: Run, number and least version of those that began anew, each run's in order.
        """
        with self._transactions.writing("refill") as connection:
            changes.identify(connection, uuid)
            changes.count_on(connection, next_version)
            changes.refill(connection, rows, tags, monitors)
            for run, number, first in attempts:
                note(connection, run, number, first)
        self.__dict__.pop("uuid", None)

    @property
    def next_version(self) -> int:
        """The version that the next save will get."""
        with self._transactions.reading() as connection:
            return connection.execute(select(STORE.next_version)).scalar_one()

    # --- checkpoints ---------------------------------------------------------------------------------

    def get(self, version: int) -> Checkpoint | None:
        """Return a checkpoint, in whatever state, or None where there is none."""
        with self._transactions.reading() as connection:
            return checkpoints.one(connection, self._store, version)

    def by_tag(self, name: str) -> Checkpoint | None:
        """Return the checkpoint that has a tag, in whatever state, or None where none has."""
        with self._transactions.reading() as connection:
            return checkpoints.one(connection, self._store, queries.tagged_version(name))

    def latest(self, run: str | None = None) -> Checkpoint | None:
        """Return the newest complete checkpoint of a run, or of all; None where there is none."""
        with self._transactions.reading() as connection:
            return checkpoints.one(connection, self._store, queries.latest_version(run))

    def best(self, metric: str, mode: Mode, run: str | None = None) -> Checkpoint | None:
        """Return the best complete checkpoint of a run, or of all; None where none has the metric.

        NaN is never best, infinities may be; of equals it is the one with the lower version, in both modes.
        """
        with self._transactions.reading() as connection:
            return checkpoints.one(connection, self._store, queries.best_version(metric, mode, run))

    def resume_points(self, run: str | None = None) -> Iterator[Checkpoint]:
        """Yield the complete checkpoints with training state of a run, or of all, newest first.

        Those that were saved before their run was begun anew are none.

        Each is asked for when it is wanted, in a transaction of its own: walking back keeps no writer
        waiting.
        """
        before = None
        while True:
            with self._transactions.reading() as connection:
                point = checkpoints.one(connection, self._store, queries.resume_version(run, before))
            if point is None:
                return
            yield point
            before = point.version

    def in_state(self, state: State) -> list[Checkpoint]:
        """Return the checkpoints in one state, oldest first."""
        return self.checkpoints(states=(state,))

    def files(self, state: State) -> list[str]:
        """Return the files of the checkpoints in one state, relative to the store, as the rows have them."""
        with self._transactions.reading() as connection:
            return queries.files(connection, state)

    def acknowledged(self) -> set[int]:
        """Return the checkpoints whose loss a repair has noted, and of which nothing was heard since."""
        with self._transactions.reading() as connection:
            return queries.acknowledged(connection)

    def starts(self, run: str | None = None) -> dict[int, int]:
        """Return how often each checkpoint was resumed from since a run, or any, saved something or ended well.

        Those of earlier attempts at a run are left out.
        """
        with self._transactions.reading() as connection:
            return queries.starts(connection, run)

    def versions_and_files(self) -> dict[int, str]:
        """Return each checkpoint's file, in whatever state, relative to the store, by version."""
        with self._transactions.reading() as connection:
            chosen = select(CHECKPOINTS.version, CHECKPOINTS.file).order_by(CHECKPOINTS.version)
            return dict(connection.execute(chosen).all())

    # --- the rest ------------------------------------------------------------------------------------

    def runs(self) -> tuple[str, ...]:
        """Return the names of all runs, sorted."""
        with self._transactions.reading() as connection:
            return tuple(sorted(connection.scalars(select(RUNS.name))))

    def metric_names(self, run: str | None = None) -> tuple[str, ...]:
        """Return the metrics that a run's complete checkpoints, or any, recorded, sorted."""
        with self._transactions.reading() as connection:
            return queries.metric_names(connection, run)

    def monitors(self, run: str) -> dict[str, Mode]:
        """Return the metrics that a run watches, each with its better direction."""
        with self._transactions.reading() as connection:
            return dict(queries.monitors(connection, run))

    def monitored_mode(self, metric: str, run: str | None = None) -> Mode | None:
        """Return the better direction of a metric that a run, or any, watches; None where that is not one."""
        with self._transactions.reading() as connection:
            modes = {mode for name, mode in queries.monitors(connection, run) if name == metric}
        return modes.pop() if len(modes) == 1 else None

    def holder(self, run: str) -> Holder | None:
        """Return who writes, or last wrote, a run; None where that is not known."""
        with self._transactions.reading() as connection:
            return queries.holder(connection, run)

    def published(self) -> list[Published]:
        """Return what each of the user's paths shows, sorted by path."""
        with self._transactions.reading() as connection:
            return queries.published(connection)

    def pending(self) -> list[Published]:
        """Return the paths that are still to be switched to their checkpoint, sorted."""
        with self._transactions.reading() as connection:
            return queries.published(connection, pending=True)

    def published_at(self, path: str) -> Published | None:
        """Return what a path shows, or None where it was never made to show anything."""
        with self._transactions.reading() as connection:
            return next(iter(queries.published(connection, path)), None)

    def events(
        self,
        *,
        kind: str | None = None,
        run: str | None = None,
        version: int | None = None,
        limit: int | None = None,
    ) -> list[Event]:
        """Return events, newest first: those of a kind, of a run, of a version, and at most `limit`."""
        with self._transactions.reading() as connection:
            return queries.events(connection, kind=kind, run=run, version=version, limit=limit)

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
