"""Checkpoints: their rows with metrics and states, which are inserted, changed, dropped and looked up by version."""

from __future__ import annotations

import math
from array import array
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import datetime
from itertools import islice
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    ScalarSelect,
    Select,
    delete,
    func,
    insert,
    select,
    update,
)

from ckptstore.manifest.checkpoint_rows import (
    CheckpointRow,
    fetch,
    fetch_all,
    fetch_page,
    fetch_versions,
    require,
)
from ckptstore.manifest.conditions import Condition, Term
from ckptstore.manifest.epochs import record_epochs
from ckptstore.manifest.events import add_event
from ckptstore.manifest.metrics import best_version, metric_ids, ranked_versions
from ckptstore.manifest.retention.progress import forget_progress_of
from ckptstore.manifest.runs.runs import RUN_ID, new_run
from ckptstore.manifest.search import search_statement
from ckptstore.manifest.statements import WHICH, execute_for_each, first_version_of_beginning, id_of_run
from ckptstore.manifest.store_row import NEXT_VERSION, raise_next_version
from ckptstore.manifest.tables import CHECKPOINTS, COMPLETE, METRIC_NAMES, METRICS, PUBLISHED, RUNS, TAGS
from ckptstore.manifest.tags import put_tag
from ckptstore.manifest.transactions import Repository
from ckptstore.records import Checkpoint, Mode, NewCheckpoint, State

COMPLETE_ONLY: tuple[State, ...] = ("complete",)

# Found checkpoints that are fetched in one transaction, and versions that are read in one block.
_FOUND_PER_TRANSACTION = 500
_VERSIONS_PER_BLOCK = 10_000

# --- writing -----------------------------------------------------------------------------------------

_RUN_AND_NEXT_VERSION = select(RUN_ID.scalar_subquery(), NEXT_VERSION.scalar_subquery())
_ADD, _ADD_METRICS = insert(CHECKPOINTS.table), insert(METRICS.table)
_CHANGE = update(CHECKPOINTS.table).where(CHECKPOINTS.version == WHICH)
_CHANGE_METRICS = update(METRICS.table).where(METRICS.version == WHICH)
_METRICS_OF = select(METRIC_NAMES.name, METRICS.value).where(
    METRICS.version == WHICH, METRICS.metric_id == METRIC_NAMES.id
)
# In an order in which no row refers to one that is gone.
_DROP = tuple(
    delete(table).where(table.c["version"] == WHICH)
    for table in (TAGS.table, PUBLISHED.table, METRICS.table, CHECKPOINTS.table)
)


def insert_checkpoint(connection: Connection, new: NewCheckpoint) -> int:
    """Insert a checkpoint with its metrics and tags, raise the next version above it, and return its run's id."""
    found, next_version = connection.execute(_RUN_AND_NEXT_VERSION, {"run": new.run}).one()
    run = new_run(connection, new.run) if found is None else found
    connection.execute(_ADD, _row(new, run))
    earlier = (name for epoch in new.earlier_epochs for name in epoch.metrics)
    ids = metric_ids(connection, dict.fromkeys([*new.metrics, *earlier]))
    values = [
        {
            "version": new.version,
            "metric_id": ids[name],
            "run_id": run,
            "state": "complete",
            "value": None if math.isnan(value) else float(value),
        }
        for name, value in new.metrics.items()
    ]
    if values:
        connection.execute(_ADD_METRICS, values)
    record_epochs(connection, run, new, ids)
    for name in new.tags:
        put_tag(connection, new.version, name)
    if next_version is not None and next_version <= new.version:
        raise_next_version(connection, new.version + 1)
    return run


def _row(new: NewCheckpoint, run: int) -> dict[str, object]:
    return {
        "version": new.version,
        "run_id": run,
        "epoch": new.epoch,
        "batch": new.batch,
        "step": new.step,
        "created_at": new.created_at,
        "file": new.file,
        "nbytes": new.nbytes,
        "digest": new.digest,
        "format": new.format,
        "state": "complete",
        "resumable": new.resumable,
        "pinned": new.pinned,
        "extra": new.extra,
        "blocked_s": new.blocked_s,
        "total_s": new.total_s,
    }


def change_state(connection: Connection, versions: Sequence[int], state: State) -> None:
    """Set the state of checkpoints and of their metrics; versions that are not there are ignored."""
    execute_for_each(connection, _CHANGE, versions, state=state)
    execute_for_each(connection, _CHANGE_METRICS, versions, state=state)


def drop_checkpoints(connection: Connection, versions: Sequence[int]) -> None:
    """Drop checkpoints and what refers to them, except events; versions that are not there are ignored."""
    for statement in _DROP:
        execute_for_each(connection, statement, versions)


# --- looking up --------------------------------------------------------------------------------------

_POINT = CHECKPOINTS.table.alias("point")


def latest_version(run: str | None, before: int | None = None) -> Select[Any]:
    """Return the statement for the version of the newest complete checkpoint, or of the newest below `before`."""
    newest = select(func.max(CHECKPOINTS.version)).where(CHECKPOINTS.state == COMPLETE)
    if before is not None:
        newest = newest.where(CHECKPOINTS.version < before)
    return newest if run is None else newest.where(CHECKPOINTS.run_id == id_of_run(run))


def resume_version(run: str | None, before: int | None) -> Select[Any]:
    """Return the statement for the version of the newest resume point, or of the newest below version `before`.

    Checkpoints of a run's earlier beginnings are left out. Of all runs, it is nearly always the newest with training
    state; if its run has begun from scratch since, each run is asked for its own.
    """
    if run is not None:
        return select(newest_resumable(before, of_run=id_of_run(run)))
    newest = select(_POINT.c.version).where(
        _POINT.c.version == newest_resumable(before),
        _POINT.c.version >= first_version_of_beginning(_POINT.c.run_id),
    )
    of_each = select(newest_resumable(before, of_run=RUNS.id).label("version")).select_from(RUNS.table)
    of_any = select(func.max(of_each.subquery("of_each").c.version))
    return select(func.coalesce(newest.scalar_subquery(), of_any.scalar_subquery()))


def newest_resumable(
    before: int | None = None, *, of_run: ColumnElement[int] | ScalarSelect[int] | None = None
) -> ScalarSelect[int]:
    """Return the newest version with training state: of any beginning, or of a run's newest."""
    newest = select(func.max(CHECKPOINTS.version)).where(CHECKPOINTS.state == COMPLETE, CHECKPOINTS.resumable)
    if of_run is not None:
        newest = newest.where(
            CHECKPOINTS.run_id == of_run, CHECKPOINTS.version >= first_version_of_beginning(of_run)
        )
    if before is not None:
        newest = newest.where(CHECKPOINTS.version < before)
    return newest.correlate_except(CHECKPOINTS.table).scalar_subquery()


# -----------------------------------------------------------------------------------------------------


class Checkpoints(Repository):
    """The checkpoints of a manifest."""

    def get(self, version: int) -> Checkpoint | None:
        """Return a checkpoint, in whatever state, or None where there is none."""
        with self._transactions.reading() as connection:
            return fetch(connection, self._store, version)

    def latest(self, run: str | None = None, *, before: int | None = None) -> Checkpoint | None:
        """Return the newest complete checkpoint of a run, or of all; None where there is none.

        Args:
            run: The run; None for all.
            before: Only below this version.
        """
        with self._transactions.reading() as connection:
            return fetch(connection, self._store, latest_version(run, before))

    def best(self, metric: str, mode: Mode, run: str | None = None) -> Checkpoint | None:
        """Return the best complete checkpoint of a run, or of all; None where none has the metric.

        NaN is never best, infinities may be; of equals it is the one with the lower version, in both modes.
        """
        with self._transactions.reading() as connection:
            return fetch(connection, self._store, best_version(metric, mode, run))

    def ranked(self, metric: str, mode: Mode, run: str | None = None, *, limit: int) -> list[Checkpoint]:
        """Return the best complete checkpoints by a metric, best first, of equals the earlier; NaN is none."""
        with self._transactions.reading() as connection:
            versions = list(islice(ranked_versions(connection, metric, mode, run), limit))
            return self._in_order(connection, versions)

    def resume_points(self, run: str | None = None) -> Iterator[Checkpoint]:
        """Yield the complete checkpoints with training state of a run, or of all, newest first.

        Those that were saved before the newest beginning of their run are left out.

        Each is looked up when it is asked for, in a transaction of its own: a slow caller keeps no writer waiting.
        """
        before = None
        while True:
            with self._transactions.reading() as connection:
                point = fetch(connection, self._store, resume_version(run, before))
            if point is None:
                return
            yield point
            before = point.version

    def all(
        self, run: str | None = None, *, states: Collection[State] | None = COMPLETE_ONLY
    ) -> list[Checkpoint]:
        """Return the checkpoints of a run, or all, oldest first, in a constant number of queries.

        Args:
            run: The run; None for all.
            states: Which states; None for all.
        """
        with self._transactions.reading() as connection:
            return fetch_all(connection, self._store, run, states)

    def in_state(self, state: State) -> list[Checkpoint]:
        """Return the checkpoints in one state, oldest first."""
        return self.all(states=(state,))

    def iterate(
        self, run: str | None = None, *, states: Collection[State] | None = COMPLETE_ONLY
    ) -> Iterator[Checkpoint]:
        """Yield what `all` returns, a page at a time, each in a transaction of its own."""
        return (row.to_checkpoint(self._store) for page in self.row_pages(run, states=states) for row in page)

    def row_pages(
        self, run: str | None = None, *, states: Collection[State] | None = COMPLETE_ONLY
    ) -> Iterator[list[CheckpointRow]]:
        """Yield the pages of `iterate` as rows."""
        after = 0
        while True:
            with self._transactions.reading() as connection:
                page = fetch_page(connection, run, states, after)
            if not page:
                return
            yield page
            after = page[-1].version

    def search(
        self,
        run: str | None = None,
        *,
        states: Collection[State] | None = COMPLETE_ONLY,
        where: Condition | None = None,
        order: tuple[Term, bool] | None = None,
        limit: int | None = None,
    ) -> Iterator[Checkpoint]:
        """Yield the checkpoints that `ckptstore.manifest.search.search_statement` selects, a page at a time.

        Only the versions are read at once, 8 bytes for each; checkpoints that are removed meanwhile are left out.
        """
        chosen = search_statement(run=run, states=states, where=where, order=order, limit=limit)
        versions = self._versions(chosen)
        for begin in range(0, len(versions), _FOUND_PER_TRANSACTION):
            with self._transactions.reading() as connection:
                page = self._in_order(connection, versions[begin : begin + _FOUND_PER_TRANSACTION])
            yield from page

    def versions(self, run: str) -> array[int]:
        """Return the versions of a run's checkpoints, in whatever state."""
        return self._versions(select(CHECKPOINTS.version).where(CHECKPOINTS.run_id == id_of_run(run)))

    def count(self, run: str) -> int:
        """Return how many complete checkpoints a run has."""
        counted = select(func.count()).where(
            CHECKPOINTS.run_id == id_of_run(run), CHECKPOINTS.state == COMPLETE
        )
        with self._transactions.reading() as connection:
            return int(connection.execute(counted).scalar_one())

    def saved_at(self, run: str, moment: datetime) -> Checkpoint | None:
        """Return the newest complete checkpoint of a run whose save began at a moment, or None."""
        chosen = select(CHECKPOINTS.version).where(
            CHECKPOINTS.run_id == id_of_run(run),
            CHECKPOINTS.state == COMPLETE,
            CHECKPOINTS.created_at == moment,
        )
        with self._transactions.reading() as connection:
            newest = chosen.order_by(CHECKPOINTS.version.desc()).limit(1)
            return fetch(connection, self._store, newest)

    def files(self, state: State) -> list[str]:
        """Return the files of the checkpoints in one state, relative to the store."""
        with self._transactions.reading() as connection:
            return list(connection.scalars(select(CHECKPOINTS.file).where(CHECKPOINTS.state == state)))

    def files_by_version(self) -> dict[int, str]:
        """Return each checkpoint's file, in whatever state, relative to the store, by version."""
        with self._transactions.reading() as connection:
            chosen = select(CHECKPOINTS.version, CHECKPOINTS.file).order_by(CHECKPOINTS.version)
            return dict(connection.execute(chosen).all())

    def set_state(
        self,
        versions: Sequence[int],
        state: State,
        *,
        event: str | None = None,
        detail: Mapping[str, Any] | None = None,
    ) -> None:
        """Set the state of checkpoints, all at once; versions that are not there are ignored.

        Args:
            versions: The checkpoints.
            state: Their new state.
            event: Kind of an event to append for each, in the same transaction.
            detail: What the event says beyond that.
        """
        with self._transactions.writing("set_state") as connection:
            if state == "deleting":
                # What retention recorded of a run is invalid once others remove something of it.
                forget_progress_of(connection, versions)
            change_state(connection, versions, state)
            for version in versions if event else ():
                add_event(connection, str(event), version=version, detail=detail)

    def mark_unsound(
        self,
        versions: Sequence[int],
        *,
        run: str,
        event: str | None,
        version: int | None = None,
        detail: Mapping[str, Any] | None = None,
    ) -> None:
        """Record that the losses of a run went bad: some of its checkpoints are no resume points, and never the best.

        They and their payloads stay. Their metrics become NaN; an event ``unsound`` of each has the values.

        Args:
            versions: The checkpoints.
            run: Their run.
            event: Kind of an event to append for the run, in the same transaction; None for none.
            version: The checkpoint that this event is about, or None.
            detail: What this event says beyond that.
        """
        with self._transactions.writing("mark_unsound", run=run) as connection:
            for one in versions:
                values = connection.execute(_METRICS_OF, {"which": one})
                known = {name: value for name, value in values if value is not None and math.isfinite(value)}
                add_event(connection, "unsound", version=one, detail={"metrics": known})
            forget_progress_of(connection, versions)
            execute_for_each(connection, _CHANGE, versions, resumable=False)
            execute_for_each(connection, _CHANGE_METRICS, versions, value=None)
            if event is not None:
                add_event(connection, event, run=run, version=version, detail=detail)

    def pin(self, version: int, pinned: bool = True) -> None:
        """Keep a checkpoint from retention, or no longer with ``pinned=False``; a change is recorded in the events.

        Raises:
            CheckpointNotFoundError: There is no such version.
        """
        with self._transactions.writing("pin") as connection:
            require(connection, self._store, version)
            chosen = select(CHECKPOINTS.pinned).where(CHECKPOINTS.version == version)
            if connection.execute(chosen).scalar() != pinned:
                add_event(connection, "pinned" if pinned else "unpinned", version=version)
                connection.execute(_CHANGE, {"which": version, "pinned": pinned})

    def remove(self, versions: Sequence[int]) -> None:
        """Drop checkpoints with their metrics, tags and published paths, all at once; events stay.

        Versions that are not there are ignored, so that it may be repeated.
        """
        with self._transactions.writing("remove") as connection:
            drop_checkpoints(connection, versions)

    def _versions(self, chosen: Select[Any]) -> array[int]:
        """Return the versions that a statement selects, 8 bytes for each."""
        with self._transactions.reading() as connection:
            rows = connection.scalars(chosen.execution_options(yield_per=_VERSIONS_PER_BLOCK))
            return array("q", rows)

    def _in_order(self, connection: Connection, versions: Sequence[int]) -> list[Checkpoint]:
        """Return the checkpoints of some versions in their order, without those that are gone."""
        rows = fetch_versions(connection, self._store, versions)
        found = {checkpoint.version: checkpoint for checkpoint in rows}
        return [found[version] for version in versions if version in found]
