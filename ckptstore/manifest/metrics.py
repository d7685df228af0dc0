"""Metrics: their names, each with a small id by which values are stored, and the ranking of checkpoints by one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from sqlalchemy import (
    BindParameter,
    ColumnElement,
    Connection,
    Executable,
    Select,
    bindparam,
    exists,
    func,
    select,
)

from ckptstore.manifest.statements import RUN, id_of_metric, id_of_run, insert_with_new_id, raw_rows
from ckptstore.manifest.tables import CHECKPOINTS, COMPLETE, METRIC_NAMES, METRICS
from ckptstore.manifest.transactions import Repository
from ckptstore.records import Mode

# Ranks that one statement looks up.
_RANKS_PER_STATEMENT = 32

_IDS = select(METRIC_NAMES.name, METRIC_NAMES.id).where(
    METRIC_NAMES.name.in_(bindparam("names", expanding=True))
)
_RECORDED = exists().where(METRICS.metric_id == METRIC_NAMES.id, METRICS.state == COMPLETE)
_NAMES = select(METRIC_NAMES.name).where(_RECORDED)
_NAMES_OF_RUN = select(METRIC_NAMES.name).where(_RECORDED.where(METRICS.run_id == id_of_run(RUN)))


def metric_ids(connection: Connection, names: Iterable[str]) -> dict[str, int]:
    """Return metrics' ids by name; adds the names that are new, in the order given."""
    wanted = list(names)
    if not wanted:
        return {}
    ids: dict[str, int] = dict(connection.execute(_IDS, {"names": wanted}).all())
    for name in wanted:
        if name not in ids:
            ids[name] = insert_with_new_id(connection, METRIC_NAMES.table, name=name)
    return ids


def metric_names(connection: Connection, run: str | None) -> tuple[str, ...]:
    """Return the metrics that complete checkpoints recorded, sorted; one look at an index for each."""
    return tuple(sorted(connection.scalars(_NAMES if run is None else _NAMES_OF_RUN, {"run": run})))


def best_version(
    metric: str | BindParameter[str], mode: Mode, run: str | BindParameter[str] | None
) -> Select[Any]:
    """Return the statement for the version of the best complete checkpoint: the lowest that has the extreme value.

    Both steps are one look at the end of an index. NaN is NULL there, so it is neither least nor greatest.
    """
    ranked: list[ColumnElement[bool]] = [METRICS.metric_id == id_of_metric(metric), METRICS.state == COMPLETE]
    if run is not None:
        ranked.append(METRICS.run_id == id_of_run(run))
    extreme = func.min(METRICS.value) if mode == "min" else func.max(METRICS.value)
    value = select(extreme).where(*ranked).correlate(None).scalar_subquery()
    return select(func.min(METRICS.version)).where(*ranked, METRICS.value == value)


class _Ranking(NamedTuple):
    """Statements for the best by a metric, each with its payload's file and size."""

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
    # An outer join, so that SQLite still scans the index by value.
    valued = (
        select(METRICS.value, METRICS.version, CHECKPOINTS.file, CHECKPOINTS.nbytes)
        .join_from(METRICS.table, CHECKPOINTS.table, CHECKPOINTS.version == METRICS.version, isouter=True)
        .where(*ranked)
    )
    last: BindParameter[float] = bindparam("last")
    downwards = (
        valued.where(METRICS.value.is_not(None)).order_by(METRICS.value.desc()).limit(_RANKS_PER_STATEMENT)
    )
    return _Ranking(
        upwards=valued.where(METRICS.value.is_not(None)).order_by(METRICS.value, METRICS.version),
        downwards=downwards,
        equals=valued.where(METRICS.value == last).order_by(METRICS.version),
        below=downwards.where(METRICS.value < last),
    )


_OF_ALL, _OF_RUN = _ranking(of_run=False), _ranking(of_run=True)


def ranked_versions(connection: Connection, metric: str, mode: Mode, run: str | None) -> Iterator[int]:
    """Yield the versions of complete checkpoints, best first, of equals the lowest first; NaN is left out.

    Each costs a step along an index, however many there are.
    """
    return (version for version, _, _ in ranked_files(connection, metric, mode, run))


def ranked_files(
    connection: Connection, metric: str, mode: Mode, run: str | None
) -> Iterator[tuple[int, str, int]]:
    """Yield what `ranked_versions` does, each with the payload's file and size."""
    ranking = _OF_ALL if run is None else _OF_RUN
    which = {"metric": metric, "run": run}
    if mode == "min":
        for _, version, file, nbytes in raw_rows(connection, ranking.upwards, which):
            yield version, file, nbytes
        return
    some = list(raw_rows(connection, ranking.downwards, which))
    while some:
        # An index read backwards gives equals in the wrong order, and there may be many equals of the last value.
        last = some[-1][0]
        better = sorted((-value, *place) for value, *place in some if value > last)
        yield from ((version, file, nbytes) for _, version, file, nbytes in better)
        for _, version, file, nbytes in raw_rows(connection, ranking.equals, {**which, "last": last}):
            yield version, file, nbytes
        some = list(raw_rows(connection, ranking.below, {**which, "last": last}))


class Metrics(Repository):
    """The metrics of a manifest."""

    def names(self, run: str | None = None) -> tuple[str, ...]:
        """Return the metrics that the complete checkpoints of a run, or of all runs, recorded, sorted."""
        with self._transactions.reading() as connection:
            return metric_names(connection, run)
