"""What is read from a manifest: statements whose cost does not grow with it, and what else it knows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, cast

from sqlalchemy import (
    BindParameter,
    ColumnElement,
    Connection,
    Executable,
    ScalarSelect,
    Select,
    bindparam,
    exists,
    func,
    select,
)

from ckptstore.manifest.tables import (
    CHECKPOINTS,
    COMPLETE,
    EVENTS,
    METRIC_NAMES,
    METRICS,
    MONITORS,
    PUBLISHED,
    RUNS,
    TAGS,
)
from ckptstore.records import Event, Holder, Mode, Published, State

# A run, in statements that are built once: building one takes longer than executing it.
RUN: BindParameter[str] = bindparam("run")


def plain(
    connection: Connection, statement: Executable, parameters: Mapping[str, Any] | None = None
) -> Iterator[tuple[Any, ...]]:
    """Yield rows as the driver gives them: times and JSON are text, truth is 0 or 1.

    That takes half the time of SQLAlchemy's rows. Whoever stops halfway leaves the cursor to the connection, which may
    be closed by the time that this generator is collected.
    """
    result = connection.execute(statement, parameters)
    cursor: Any = result.cursor
    # Not "yield from", which would close the cursor then.
    for row in cursor:  # noqa: UP028
        yield row
    result.close()


def id_of_run(name: str | BindParameter[str]) -> ScalarSelect[int]:
    """Return the id of a run, as part of a statement; NULL, which equals nothing, for an unknown name."""
    return select(RUNS.id).where(RUNS.name == name).scalar_subquery()


def id_of_metric(name: str | BindParameter[str]) -> ScalarSelect[int]:
    """Return the id of a metric, as part of a statement; NULL, which equals nothing, for an unknown name."""
    return select(METRIC_NAMES.id).where(METRIC_NAMES.name == name).scalar_subquery()


# Ranks that are looked up in one statement.
_RANKED_AT_ONCE = 32
_POINT = CHECKPOINTS.table.alias("point")


# --- which checkpoint --------------------------------------------------------------------------------


def latest_version(run: str | None) -> Select[Any]:
    """Return the statement for the newest complete checkpoint's version."""
    newest = select(func.max(CHECKPOINTS.version)).where(CHECKPOINTS.state == COMPLETE)
    return newest if run is None else newest.where(CHECKPOINTS.run_id == id_of_run(run))


def resume_version(run: str | None, before: int | None) -> Select[Any]:
    """Return the statement for the newest resume point's version, or the newest below version `before`.

    What was saved before its run was begun anew is none. Of all runs, it is nearly always the newest with training
    state; where that one's run was begun anew since, each run is asked for its own.
    """
    if run is not None:
        return select(_newest_resumable(before, of_run=id_of_run(run)))
    newest = select(_POINT.c.version).where(
        _POINT.c.version == _newest_resumable(before), _POINT.c.version >= first_version(_POINT.c.run_id)
    )
    of_each = select(_newest_resumable(before, of_run=RUNS.id).label("version")).select_from(RUNS.table)
    of_any = select(func.max(of_each.subquery("of_each").c.version))
    return select(func.coalesce(newest.scalar_subquery(), of_any.scalar_subquery()))


def _newest_resumable(
    before: int | None, *, of_run: ColumnElement[int] | ScalarSelect[int] | None = None
) -> ScalarSelect[int]:
    """Return the newest version with training state, of whatever attempt, or of a run's newest attempt."""
    newest = select(func.max(CHECKPOINTS.version)).where(CHECKPOINTS.state == COMPLETE, CHECKPOINTS.resumable)
    if of_run is not None:
        newest = newest.where(CHECKPOINTS.run_id == of_run, CHECKPOINTS.version >= first_version(of_run))
    if before is not None:
        newest = newest.where(CHECKPOINTS.version < before)
    return newest.correlate_except(CHECKPOINTS.table).scalar_subquery()


def best_version(metric: str, mode: Mode, run: str | None) -> Select[Any]:
    """Return the statement for the best complete checkpoint's version: the lowest that has the extreme value.

    Both steps are one look at the end of an index. NaN is NULL there, and so neither least nor greatest.
    """
    ranked: list[ColumnElement[bool]] = [METRICS.metric_id == id_of_metric(metric), METRICS.state == COMPLETE]
    if run is not None:
        ranked.append(METRICS.run_id == id_of_run(run))
    extreme = func.min(METRICS.value) if mode == "min" else func.max(METRICS.value)
    value = select(extreme).where(*ranked).correlate(None).scalar_subquery()
    return select(func.min(METRICS.version)).where(*ranked, METRICS.value == value)


class _Ranking(NamedTuple):
    """Statements for the best by a metric: where each payload lies comes with it."""

    upwards: Executable
    downwards: Executable
    equals: Executable
    below: Executable


def _ranking(*, of_run: bool) -> _Ranking:
    ranked: list[ColumnElement[bool]] = [
        METRICS.metric_id == id_of_metric(bindparam("metric")),
        METRICS.state == COMPLETE,
    ]
    if of_run:
        ranked.append(METRICS.run_id == id_of_run(RUN))
    # Outer, so that the index by value stays what is walked along.
    valued = (
        select(METRICS.value, METRICS.version, CHECKPOINTS.file, CHECKPOINTS.nbytes)
        .join_from(METRICS.table, CHECKPOINTS.table, CHECKPOINTS.version == METRICS.version, isouter=True)
        .where(*ranked)
    )
    last: BindParameter[float] = bindparam("last")
    downwards = valued.where(METRICS.value.is_not(None)).order_by(METRICS.value.desc()).limit(_RANKED_AT_ONCE)
    return _Ranking(
        upwards=valued.where(METRICS.value.is_not(None)).order_by(METRICS.value, METRICS.version),
        downwards=downwards,
        equals=valued.where(METRICS.value == last).order_by(METRICS.version),
        below=downwards.where(METRICS.value < last),
    )


_OF_ALL, _OF_RUN = _ranking(of_run=False), _ranking(of_run=True)


def ranked_versions(connection: Connection, metric: str, mode: Mode, run: str | None) -> Iterator[int]:
    """Yield the versions of complete checkpoints, best first, of equals the lowest first; NaN is none.

    Each costs a step along an index, however many there are.
    """
    return (version for version, _, _ in ranked_places(connection, metric, mode, run))


def ranked_places(
    connection: Connection, metric: str, mode: Mode, run: str | None
) -> Iterator[tuple[int, str, int]]:
    """Yield versions likewise, each with the payload's file and size."""
    ranking = _OF_ALL if run is None else _OF_RUN
    which = {"metric": metric, "run": run}
    if mode == "min":
        for _, version, file, nbytes in plain(connection, ranking.upwards, which):
            yield version, file, nbytes
        return
    some = list(plain(connection, ranking.downwards, which))
    while some:
        # An index that is read backwards gives equals the wrong way round; of the last of these there may be many.
        last = some[-1][0]
        better = sorted((-value, *place) for value, *place in some if value > last)
        yield from ((version, file, nbytes) for _, version, file, nbytes in better)
        for _, version, file, nbytes in plain(connection, ranking.equals, {**which, "last": last}):
            yield version, file, nbytes
        some = list(plain(connection, ranking.below, {**which, "last": last}))


def tagged_version(name: str) -> Select[Any]:
    """Return the statement for the version that has a tag."""
    return select(TAGS.version).where(TAGS.name == name)


def files(connection: Connection, state: State) -> list[str]:
    """Return the files of all checkpoints in a state, relative to the store."""
    return list(connection.scalars(select(CHECKPOINTS.file).where(CHECKPOINTS.state == state)))


def acknowledged(connection: Connection) -> set[int]:
    """Return the checkpoints whose loss a repair has noted, and of which nothing was heard since."""
    kinds = ("repaired", "found", "missing", "damaged")
    newest = select(func.max(EVENTS.id)).where(EVENTS.kind.in_(kinds)).group_by(EVENTS.version)
    noted = select(EVENTS.version).where(EVENTS.kind == "repaired", EVENTS.id.in_(newest))
    return {version for version in connection.scalars(noted) if version is not None}


def starts(connection: Connection, run: str | None) -> dict[int, int]:
    """Return how often each checkpoint was resumed from since a run, or any, last saved something or ended well.

    Those of earlier attempts are left out.
    """
    saved = select(func.max(EVENTS.id)).where(EVENTS.kind.in_(("saved", "adopted", "ended")))
    resumed = select(EVENTS.version, func.count()).where(EVENTS.kind == "resuming")
    if run is not None:
        saved = saved.where(EVENTS.run_id == id_of_run(run))
        resumed = resumed.where(EVENTS.run_id == id_of_run(run))
    since = func.coalesce(saved.correlate(None).scalar_subquery(), 0)
    resumed = resumed.where(EVENTS.id > since, EVENTS.version >= first_version(EVENTS.run_id))
    rows = connection.execute(resumed.group_by(EVENTS.version))
    return {version: count for version, count in rows if version is not None}


# --- the rest ----------------------------------------------------------------------------------------


_RECORDED = exists().where(METRICS.metric_id == METRIC_NAMES.id, METRICS.state == COMPLETE)
_NAMES = select(METRIC_NAMES.name).where(_RECORDED)
_NAMES_OF_RUN = select(METRIC_NAMES.name).where(_RECORDED.where(METRICS.run_id == id_of_run(RUN)))
_MONITORS = select(METRIC_NAMES.name, MONITORS.mode).join_from(
    MONITORS.table, METRIC_NAMES.table, METRIC_NAMES.id == MONITORS.metric_id
)
_MONITORS_OF_RUN = _MONITORS.where(MONITORS.run_id == id_of_run(RUN))


def metric_names(connection: Connection, run: str | None) -> tuple[str, ...]:
    """Return the metrics that complete checkpoints recorded, sorted; one look at an index for each."""
    return tuple(sorted(connection.scalars(_NAMES if run is None else _NAMES_OF_RUN, {"run": run})))


def monitors(connection: Connection, run: str | None) -> list[tuple[str, Mode]]:
    """Return the monitored metrics, each with its better direction, of a run or of all."""
    found = connection.execute(_MONITORS if run is None else _MONITORS_OF_RUN, {"run": run})
    return [(name, cast(Mode, mode)) for name, mode in found]


def holder(connection: Connection, run: str) -> Holder | None:
    """Return who writes, or last wrote, a run."""
    row = connection.execute(
        select(RUNS.holder_host, RUNS.holder_pid, RUNS.holder_started_at).where(RUNS.name == run)
    ).one_or_none()
    if row is None or row.holder_host is None:
        return None
    return Holder(host=row.holder_host, pid=row.holder_pid, started_at=row.holder_started_at)


_PUBLISHED = (
    select(PUBLISHED.path, RUNS.name.label("run"), PUBLISHED.version, PUBLISHED.pending)
    .join_from(PUBLISHED.table, RUNS.table, RUNS.id == PUBLISHED.run_id)
    .order_by(PUBLISHED.path)
)
_PUBLISHED_AT = _PUBLISHED.where(PUBLISHED.path == bindparam("path"))


def published(connection: Connection, path: str | None = None, *, pending: bool = False) -> list[Published]:
    """Return what the user's paths show, or what one of them does, or those still to be switched."""
    chosen = _PUBLISHED if path is None else _PUBLISHED_AT
    if pending:
        chosen = chosen.where(PUBLISHED.pending)
    rows = connection.execute(chosen, {"path": path})
    return [Published(**row._asdict()) for row in rows]


def events(
    connection: Connection, *, kind: str | None, run: str | None, version: int | None, limit: int | None
) -> list[Event]:
    """Return events, newest first."""
    chosen = select(EVENTS.at, EVENTS.kind, RUNS.name.label("run"), EVENTS.version, EVENTS.detail).join_from(
        EVENTS.table, RUNS.table, RUNS.id == EVENTS.run_id, isouter=True
    )
    if kind is not None:
        chosen = chosen.where(EVENTS.kind == kind)
    if run is not None:
        chosen = chosen.where(EVENTS.run_id == id_of_run(run))
    if version is not None:
        chosen = chosen.where(EVENTS.version == version)
    rows = connection.execute(chosen.order_by(EVENTS.id.desc()).limit(limit))
    return [Event(**row._asdict()) for row in rows]


# The kind of the event that marks where an attempt begins.
BEGAN = "began"
_BEGINNING, _OTHER = EVENTS.table.alias("beginning"), EVENTS.table.alias("other")


def first_version(
    run_id: ColumnElement[int] | ColumnElement[int | None] | ScalarSelect[int],
) -> ColumnElement[int]:
    """Return the least version of a run's newest attempt, as part of a statement; 1 where it never began anew.

    One look at the end of an index, and one at a row, however often the run began.
    """
    newest = (
        select(func.max(_OTHER.c.id))
        .where(_OTHER.c.kind == BEGAN, _OTHER.c.run_id == run_id)
        .correlate_except(_OTHER)
        .scalar_subquery()
    )
    found = select(_BEGINNING.c.version).where(_BEGINNING.c.id == newest).correlate_except(_BEGINNING)
    return func.coalesce(found.scalar_subquery(), 1)
