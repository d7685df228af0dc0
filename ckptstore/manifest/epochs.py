"""Epochs: the metrics of a run's epochs, which stay when its checkpoints are removed.

A checkpoint records its own epoch, and the epochs that ended before it without being saved. An epoch is represented by
its end, or, before that, by the newest checkpoint within it; if a resumed run trains an epoch again, by the newer
record; of a run that was begun several times, by the newest beginning's.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import Connection, bindparam, delete, func, insert, select

from ckptstore.manifest.metrics import metric_ids
from ckptstore.manifest.statements import first_version_of_beginning, id_of_metric, id_of_run, raw_rows
from ckptstore.manifest.tables import CHECKPOINTS, EPOCH_METRICS, EPOCHS, METRIC_NAMES
from ckptstore.manifest.transactions import Repository
from ckptstore.records import Checkpoint, Epoch, FinishedEpoch, Mode, NewCheckpoint

# Smaller than checkpoints, so that more of them make a page.
_PAGE_SIZE = 2000

# The epochs from `first` to `last` of a run: those that one checkpoint brings metrics of.
_SPAN = EPOCHS.epoch.between(bindparam("first"), bindparam("last"))
_RECORDED = select(
    EPOCHS.epoch,
    EPOCHS.version,
    EPOCHS.batch,
    EPOCHS.step,
    first_version_of_beginning(EPOCHS.run_id).label("beginning"),
).where(EPOCHS.run_id == bindparam("run_id"), _SPAN)
_RECORDED_METRICS = select(EPOCH_METRICS.epoch, EPOCH_METRICS.metric_id, EPOCH_METRICS.value).where(
    EPOCH_METRICS.run_id == bindparam("run_id"),
    EPOCH_METRICS.epoch.between(bindparam("first"), bindparam("last")),
)
_DELETE_METRICS = delete(EPOCH_METRICS.table).where(
    EPOCH_METRICS.run_id == bindparam("run_id"), EPOCH_METRICS.epoch == bindparam("which")
)
_DELETE = delete(EPOCHS.table).where(EPOCHS.run_id == bindparam("run_id"), EPOCHS.epoch == bindparam("which"))
_ADD, _ADD_METRICS = insert(EPOCHS.table), insert(EPOCH_METRICS.table)


class _Recorded(NamedTuple):
    """The record of an epoch in the database; `beginning` is the first version of the run's newest beginning."""

    epoch: int
    version: int
    batch: int | None
    step: int | None
    beginning: int


class _Record(NamedTuple):
    """One epoch as a checkpoint records it; the values are those of the database, by the metrics' ids."""

    epoch: int
    batch: int | None
    step: int | None
    created_at: datetime
    values: Mapping[int, float | None]


def record_epochs(connection: Connection, run_id: int, new: NewCheckpoint, ids: Mapping[str, int]) -> None:
    """Record the epochs that a new checkpoint brings: its own, and those that ended before and were not recorded.

    Its own epoch is left as it is recorded if an older checkpoint represents it better. An earlier epoch that is
    recorded with the same step and metrics stays as it is too: several saves in a row may bring the same epochs, until
    the first of them is known to have succeeded.

    Args:
        connection: In the transaction that inserts the checkpoint.
        run_id: Its run.
        new: The checkpoint.
        ids: Ids by the names of all metrics.
    """
    own = _Record(new.epoch, new.batch, new.step, new.created_at, _values(new.metrics, ids))
    earlier = [_finished(epoch, ids) for epoch in new.earlier_epochs if epoch.epoch != own.epoch]
    _record(connection, run_id, new.version, [*earlier, own], own=own)


def record_finished(
    connection: Connection, run: str, version: int, epochs: Collection[FinishedEpoch]
) -> None:
    """Record finished epochs with a checkpoint of a run, which may have been removed; ignores an unknown run."""
    run_id = connection.scalar(select(id_of_run(run)))
    if run_id is not None and epochs:
        ids = metric_ids(connection, dict.fromkeys(name for epoch in epochs for name in epoch.metrics))
        _record(connection, run_id, version, [_finished(epoch, ids) for epoch in epochs], own=None)


def _record(
    connection: Connection, run_id: int, version: int, records: Sequence[_Record], *, own: _Record | None
) -> None:
    """Record those of some epochs that are not recorded, or represented better by these records.

    Args:
        connection: In a transaction.
        run_id: The run.
        version: The checkpoint that records them.
        records: One for each epoch.
        own: The one of them that is the checkpoint itself.
    """
    numbers = [record.epoch for record in records]
    span = {"run_id": run_id, "first": min(numbers), "last": max(numbers)}
    recorded = {row.epoch: _Recorded(*row) for row in connection.execute(_RECORDED, span)}
    if recorded:
        known = {} if len(records) == 1 and records[0] is own else _recorded_values(connection, span)
        records = [
            record
            for record in records
            if (row := recorded.get(record.epoch)) is None
            or (
                _is_better(version, record.batch, row)
                and (record is own or not _is_same(record, row, known.get(record.epoch, {})))
            )
        ]
        which = [{"run_id": run_id, "which": record.epoch} for record in records if record.epoch in recorded]
        if which:
            connection.execute(_DELETE_METRICS, which)
            connection.execute(_DELETE, which)
    _insert(connection, run_id, version, records)


def _insert(connection: Connection, run_id: int, version: int, records: Sequence[_Record]) -> None:
    rows = [
        {
            "run_id": run_id,
            "epoch": record.epoch,
            "version": version,
            "batch": record.batch,
            "step": record.step,
            "created_at": record.created_at,
        }
        for record in records
    ]
    if rows:
        connection.execute(_ADD, rows)
    values = [
        {"run_id": run_id, "epoch": record.epoch, "metric_id": metric, "value": value}
        for record in records
        for metric, value in record.values.items()
    ]
    if values:
        connection.execute(_ADD_METRICS, values)


def _finished(epoch: FinishedEpoch, ids: Mapping[str, int]) -> _Record:
    return _Record(epoch.epoch, None, epoch.step, epoch.ended_at, _values(epoch.metrics, ids))


def _values(metrics: Mapping[str, float], ids: Mapping[str, int]) -> dict[int, float | None]:
    return {ids[name]: None if math.isnan(value) else float(value) for name, value in metrics.items()}


def _recorded_values(connection: Connection, span: Mapping[str, int]) -> dict[int, dict[int, float | None]]:
    found: dict[int, dict[int, float | None]] = {}
    for epoch, metric, value in connection.execute(_RECORDED_METRICS, span):
        found.setdefault(epoch, {})[metric] = value
    return found


def _is_same(record: _Record, recorded: _Recorded, values: Mapping[int, float | None]) -> bool:
    """Return True if an ended epoch is recorded already, as it is, in the newest beginning."""
    return (
        recorded.batch is None
        and recorded.version >= recorded.beginning
        and recorded.step == record.step
        and values == record.values
    )


def _is_better(version: int, batch: int | None, recorded: _Recorded) -> bool:
    """Return True if a checkpoint's record of an epoch represents it better than the recorded one."""
    if (version >= recorded.beginning) != (recorded.version >= recorded.beginning):
        return version >= recorded.beginning
    if (batch is None) != (recorded.batch is None):
        return batch is None
    return version > recorded.version


def _page(connection: Connection, run: str, after: int, limit: int) -> list[Epoch]:
    """Return the recorded epochs of a run's newest beginning, after an epoch, in order."""
    of_run = (EPOCHS.run_id == id_of_run(run), EPOCHS.version >= first_version_of_beginning(id_of_run(run)))
    chosen = select(EPOCHS.epoch, EPOCHS.batch, EPOCHS.step, EPOCHS.version, EPOCHS.created_at)
    rows = list(
        raw_rows(connection, chosen.where(*of_run, EPOCHS.epoch > after).order_by(EPOCHS.epoch).limit(limit))
    )
    if not rows:
        return []
    metrics = _metrics(connection, run, rows[0][0], rows[-1][0])
    return [
        Epoch(
            epoch=epoch,
            batch=batch,
            step=step,
            version=version,
            created_at=datetime.fromisoformat(created_at),
            metrics=metrics.get(epoch, {}),
        )
        for epoch, batch, step, version, created_at in rows
    ]


def _metrics(connection: Connection, run: str, first: int, last: int) -> dict[int, dict[str, float]]:
    names = dict(connection.execute(select(METRIC_NAMES.id, METRIC_NAMES.name)).all())
    chosen = select(EPOCH_METRICS.epoch, EPOCH_METRICS.metric_id, EPOCH_METRICS.value).where(
        EPOCH_METRICS.run_id == id_of_run(run), EPOCH_METRICS.epoch.between(first, last)
    )
    found: dict[int, dict[str, float]] = {}
    of: dict[str, float] = {}
    previous = -1
    for epoch, metric, value in raw_rows(
        connection, chosen.order_by(EPOCH_METRICS.epoch, EPOCH_METRICS.metric_id)
    ):
        if epoch != previous:
            of = found[epoch] = {}
            previous = epoch
        of[names[metric]] = math.nan if value is None else value
    return found


class Epochs(Repository):
    """The epochs of a manifest's runs."""

    def iterate(self, run: str) -> Iterator[Epoch]:
        """Yield the recorded epochs of a run's newest beginning, in order, a page at a time."""
        after = -1
        while True:
            with self._transactions.reading() as connection:
                page = _page(connection, run, after, _PAGE_SIZE)
            if not page:
                return
            yield from page
            after = page[-1].epoch

    def newest(self, run: str, limit: int) -> list[Epoch]:
        """Return the last recorded epochs of a run's newest beginning, at most `limit`, in order."""
        of_run = (
            EPOCHS.run_id == id_of_run(run),
            EPOCHS.version >= first_version_of_beginning(id_of_run(run)),
        )
        before = select(EPOCHS.epoch).where(*of_run).order_by(EPOCHS.epoch.desc()).offset(limit).limit(1)
        with self._transactions.reading() as connection:
            after = connection.scalar(before)
            return _page(connection, run, -1 if after is None else after, limit)

    def add(self, run: str, epochs: Collection[FinishedEpoch]) -> None:
        """Record epochs with the newest checkpoint of a run; of a run without checkpoints, nothing."""
        newest = select(func.max(CHECKPOINTS.version)).where(CHECKPOINTS.run_id == id_of_run(run))
        with self._transactions.writing("add_epochs") as connection:
            version = connection.scalar(newest)
            if version is not None:
                record_finished(connection, run, version, epochs)

    def not_saved_between(self, run: str, after: int, checkpoint: Checkpoint) -> list[FinishedEpoch]:
        """Return the finished epochs that versions above `after` recorded, up to a checkpoint and without its own."""
        chosen = select(EPOCHS.epoch, EPOCHS.step, EPOCHS.created_at).where(
            EPOCHS.run_id == id_of_run(run),
            EPOCHS.version > after,
            EPOCHS.version <= checkpoint.version,
            EPOCHS.batch.is_(None),
            EPOCHS.epoch != checkpoint.epoch,
        )
        with self._transactions.reading() as connection:
            rows = list(raw_rows(connection, chosen.order_by(EPOCHS.epoch)))
            metrics = _metrics(connection, run, rows[0][0], rows[-1][0]) if rows else {}
        return [
            FinishedEpoch(
                epoch=epoch,
                step=step,
                ended_at=datetime.fromisoformat(ended_at),
                metrics=metrics.get(epoch, {}),
            )
            for epoch, step, ended_at in rows
        ]

    def best(self, metric: str, mode: Mode, run: str | None) -> tuple[int, float] | None:
        """Return the ended epoch with the best value of a metric, and the value; None where no epoch has it.

        Of equals it is the first; NaN is never best. Epochs of a run's earlier beginnings are left out.
        """
        value = EPOCH_METRICS.value
        chosen = (
            select(EPOCHS.epoch, value)
            .join_from(
                EPOCHS.table,
                EPOCH_METRICS.table,
                (EPOCH_METRICS.run_id == EPOCHS.run_id) & (EPOCH_METRICS.epoch == EPOCHS.epoch),
            )
            .where(
                EPOCH_METRICS.metric_id == id_of_metric(metric),
                value.is_not(None),
                EPOCHS.batch.is_(None),
                EPOCHS.version >= first_version_of_beginning(EPOCHS.run_id),
            )
            .order_by(value if mode == "min" else value.desc(), EPOCHS.epoch)
            .limit(1)
        )
        if run is not None:
            chosen = chosen.where(EPOCHS.run_id == id_of_run(run))
        with self._transactions.reading() as connection:
            found = connection.execute(chosen).one_or_none()
        return None if found is None or found[1] is None else (found[0], found[1])

    def count_and_start(self, run: str) -> tuple[int, datetime | None]:
        """Return how many epochs of a run's newest beginning are known, and when the first was saved or ended."""
        of_run = (
            EPOCHS.run_id == id_of_run(run),
            EPOCHS.version >= first_version_of_beginning(id_of_run(run)),
        )
        with self._transactions.reading() as connection:
            count = connection.execute(select(func.count()).where(*of_run)).scalar_one()
            first: datetime | None = connection.scalar(
                select(EPOCHS.created_at).where(*of_run).order_by(EPOCHS.epoch).limit(1)
            )
            return count, first
