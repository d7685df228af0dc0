"""Overviews of all runs: the newest facts of each, in one transaction and a few queries, however long they have run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, cast, get_args

from sqlalchemy import Connection, ScalarSelect, bindparam, func, select

from ckptstore.manifest.checkpoint_rows import fetch_versions
from ckptstore.manifest.checkpoints import newest_resumable
from ckptstore.manifest.metrics import best_version
from ckptstore.manifest.runs.attempts import counts_in, last_of_each
from ckptstore.manifest.statements import RUN, first_version_of_beginning
from ckptstore.manifest.tables import CHECKPOINTS, COMPLETE, EVENTS, METRIC_NAMES, MONITORS, RUNS
from ckptstore.manifest.transactions import Repository
from ckptstore.records import FINISHED, Mode, RunOverview

# The kind of the event that a supervisor records when it gives a run up.
STOPPED = "stopped"
# Kinds of events that tell that somebody has trained a run again.
_TRAINED = ("saved", "resuming", "began")

_IS_COMPLETE = (CHECKPOINTS.run_id == RUNS.id) & (CHECKPOINTS.state == COMPLETE)


def _newest_event(kind: str) -> ScalarSelect[int]:
    """Return the id of the newest event of a kind, of the run of the enclosing statement: the end of an index."""
    newest = select(func.max(EVENTS.id)).where(EVENTS.kind == kind, EVENTS.run_id == RUNS.id)
    return newest.correlate(RUNS.table).scalar_subquery()


def _of_checkpoints(value: Any) -> ScalarSelect[int]:
    return select(value).where(_IS_COMPLETE).correlate(RUNS.table).scalar_subquery()


_FINISHED_VERSION = (
    select(func.max(EVENTS.version))
    .where(EVENTS.kind == FINISHED, EVENTS.run_id == RUNS.id)
    .correlate(RUNS.table)
    .scalar_subquery()
)
_RUNS = select(
    RUNS.name,
    _of_checkpoints(func.count()).label("checkpoints"),
    _of_checkpoints(func.max(CHECKPOINTS.version)).label("latest"),
    newest_resumable(of_run=RUNS.id).label("resume_point"),
    _FINISHED_VERSION.label("finished"),
    first_version_of_beginning(RUNS.id).label("first"),
    _newest_event(STOPPED).label("stopped"),
    *(_newest_event(kind).label(kind) for kind in _TRAINED),
).order_by(RUNS.name)
_MONITORS = (
    select(RUNS.name, METRIC_NAMES.name, MONITORS.mode)
    .join_from(MONITORS.table, RUNS.table, RUNS.id == MONITORS.run_id)
    .join_from(MONITORS.table, METRIC_NAMES.table, METRIC_NAMES.id == MONITORS.metric_id)
)
_MODES: tuple[Mode, ...] = get_args(Mode)
_BEST = {mode: best_version(bindparam("metric"), mode, RUN) for mode in _MODES}
_STOPS = select(EVENTS.id, EVENTS.at, EVENTS.detail).where(EVENTS.id.in_(bindparam("events", expanding=True)))


class Overviews(Repository):
    """The overviews of a manifest's runs."""

    def all(self) -> list[RunOverview]:
        """Return the overviews of all runs, sorted by name."""
        with self._transactions.reading() as connection:
            rows = connection.execute(_RUNS).all()
            best = _best_versions(connection)
            attempts, last = counts_in(connection), last_of_each(connection, self._store)
            wanted = {row.latest for row in rows} | {row.resume_point for row in rows} | set(best.values())
            fetched = fetch_versions(connection, self._store, wanted - {None})
            stops = _stops(connection, (row.stopped for row in rows if _is_stopped(row)))
        checkpoints = {checkpoint.version: checkpoint for checkpoint in fetched}
        found = []
        for row in rows:
            stop = stops.get(row.stopped)
            found.append(
                RunOverview(
                    name=row.name,
                    checkpoints=row.checkpoints,
                    latest=checkpoints.get(row.latest),
                    best=checkpoints.get(best.get(row.name, 0)),
                    resume_point=checkpoints.get(row.resume_point),
                    attempts=attempts.get(row.name, 0),
                    last_attempt=last.get(row.name),
                    is_finished=row.finished is not None and row.finished >= max(row.latest or 0, row.first),
                    stopped_at=None if stop is None else stop.at,
                    stop={} if stop is None or stop.detail is None else stop.detail,
                )
            )
        return found


def _is_stopped(row: Any) -> bool:
    return row.stopped is not None and all(row.stopped > (getattr(row, kind) or 0) for kind in _TRAINED)


def _best_versions(connection: Connection) -> dict[str, int]:
    """Return the version of the best checkpoint of each run by the first metric that it watches."""
    watched: dict[str, tuple[str, Mode]] = {}
    for run, metric, mode in connection.execute(_MONITORS):
        watched.setdefault(run, (metric, cast(Mode, mode)))
    found = {
        run: connection.execute(_BEST[mode], {"run": run, "metric": metric}).scalar()
        for run, (metric, mode) in watched.items()
    }
    return {run: version for run, version in found.items() if version is not None}


def _stops(connection: Connection, events: Iterable[int]) -> Mapping[int, Any]:
    which = list(events)
    return {row.id: row for row in connection.execute(_STOPS, {"events": which})} if which else {}
