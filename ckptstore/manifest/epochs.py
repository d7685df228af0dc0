"""Epochs: the metrics of a run's epochs, which stay when its checkpoints are removed.

An epoch is represented by the checkpoint of its end, or, while there is none, by the newest; if a resumed run trains an
epoch again, by the newer one; if there are several attempts at a run, by the newest attempt's.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from datetime import datetime

from sqlalchemy import Connection, bindparam, delete, func, insert, select

from ckptstore.manifest.statements import first_version_of_attempt, id_of_run, raw_rows
from ckptstore.manifest.tables import EPOCH_METRICS, EPOCHS, METRIC_NAMES
from ckptstore.manifest.transactions import Repository
from ckptstore.records import Epoch, NewCheckpoint

# Smaller than checkpoints, so that more of them make a page.
_PAGE_SIZE = 2000

_HERE = (EPOCHS.run_id == bindparam("run_id"), EPOCHS.epoch == bindparam("epoch"))
_RECORDED = select(
    EPOCHS.version, EPOCHS.batch, first_version_of_attempt(EPOCHS.run_id).label("attempt")
).where(*_HERE)
_DELETE_METRICS = delete(EPOCH_METRICS.table).where(
    EPOCH_METRICS.run_id == bindparam("run_id"), EPOCH_METRICS.epoch == bindparam("epoch")
)
_DELETE = delete(EPOCHS.table).where(*_HERE)
_ADD, _ADD_METRICS = insert(EPOCHS.table), insert(EPOCH_METRICS.table)


def record_epoch(
    connection: Connection, run_id: int, new: NewCheckpoint, values: Mapping[int, float]
) -> None:
    """Let a new checkpoint represent its epoch, unless an older one represents it better.

    Args:
        connection: In the transaction that inserts the checkpoint.
        run_id: Its run.
        new: The checkpoint.
        values: Its metrics, by their ids.
    """
    here = {"run_id": run_id, "epoch": new.epoch}
    recorded = connection.execute(_RECORDED, here).one_or_none()
    if recorded is not None:
        if not _is_better(new, recorded.version, recorded.batch, recorded.attempt):
            return
        connection.execute(_DELETE_METRICS, here)
        connection.execute(_DELETE, here)
    values_of_checkpoint = {
        "version": new.version,
        "batch": new.batch,
        "step": new.step,
        "created_at": new.created_at,
    }
    connection.execute(_ADD, {**here, **values_of_checkpoint})
    rows = [
        {**here, "metric_id": metric, "value": None if math.isnan(value) else float(value)}
        for metric, value in values.items()
    ]
    if rows:
        connection.execute(_ADD_METRICS, rows)


def _is_better(new: NewCheckpoint, version: int, batch: int | None, attempt: int) -> bool:
    """Return True if a checkpoint represents its epoch better than the recorded one."""
    if (new.version >= attempt) != (version >= attempt):
        return new.version >= attempt
    if (new.batch is None) != (batch is None):
        return new.batch is None
    return new.version > version


def _page(connection: Connection, run: str, after: int, limit: int) -> list[Epoch]:
    """Return the recorded epochs of a run's newest attempt, after an epoch, in order."""
    of_run = (EPOCHS.run_id == id_of_run(run), EPOCHS.version >= first_version_of_attempt(id_of_run(run)))
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
        """Yield the recorded epochs of a run's newest attempt, in order, a page at a time."""
        after = -1
        while True:
            with self._transactions.reading() as connection:
                page = _page(connection, run, after, _PAGE_SIZE)
            if not page:
                return
            yield from page
            after = page[-1].epoch

    def count_and_start(self, run: str) -> tuple[int, datetime | None]:
        """Return how many epochs of a run's newest attempt are known, and when the first was saved."""
        of_run = (EPOCHS.run_id == id_of_run(run), EPOCHS.version >= first_version_of_attempt(id_of_run(run)))
        with self._transactions.reading() as connection:
            count = connection.execute(select(func.count()).where(*of_run)).scalar_one()
            first: datetime | None = connection.scalar(
                select(EPOCHS.created_at).where(*of_run).order_by(EPOCHS.epoch).limit(1)
            )
            return count, first
