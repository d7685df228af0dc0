"""What is read of the metrics of a run's epochs, and of its restarts."""

from __future__ import annotations

import math
from collections.abc import Iterator
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, func, select

from ckptstore.manifest_floor import first_version
from ckptstore.manifest_queries import id_of_run
from ckptstore.models import EPOCH_METRICS, EPOCHS, EVENTS, METRIC_NAMES
from ckptstore.records import Epoch, Resumed


def epochs(connection: Connection, run: str, after: int, limit: int) -> list[Epoch]:
    """Return what is known of a run's epochs in its newest attempt, behind an epoch, in order."""
    of_run = (EPOCHS.run_id == id_of_run(run), EPOCHS.version >= first_version(id_of_run(run)))
    chosen = select(EPOCHS.epoch, EPOCHS.batch, EPOCHS.step, EPOCHS.version, EPOCHS.created_at)
    rows = connection.execute(
        chosen.where(*of_run, EPOCHS.epoch > after).order_by(EPOCHS.epoch).limit(limit)
    ).all()
    if not rows:
        return []
    metrics: dict[int, dict[str, float]] = {row.epoch: {} for row in rows}
    for epoch, metric, value in _values(connection, run, rows[0].epoch, rows[-1].epoch):
        if epoch in metrics:
            metrics[epoch][metric] = math.nan if value is None else value
    return [Epoch(**row._asdict(), metrics=metrics[row.epoch]) for row in rows]


def epochs_of(connection: Connection, run: str) -> tuple[int, datetime | None]:
    """Return how many epochs of a run's newest attempt are known, and when the first was saved."""
    of_run = (EPOCHS.run_id == id_of_run(run), EPOCHS.version >= first_version(id_of_run(run)))
    count = connection.execute(select(func.count()).where(*of_run)).scalar_one()
    first: datetime | None = connection.scalar(
        select(EPOCHS.created_at).where(*of_run).order_by(EPOCHS.epoch).limit(1)
    )
    return count, first


def _values(connection: Connection, run: str, first: int, last: int) -> Iterator[Any]:
    names = dict(connection.execute(select(METRIC_NAMES.id, METRIC_NAMES.name)).all())
    chosen = select(EPOCH_METRICS.epoch, EPOCH_METRICS.metric_id, EPOCH_METRICS.value).where(
        EPOCH_METRICS.run_id == id_of_run(run), EPOCH_METRICS.epoch.between(first, last)
    )
    for epoch, metric, value in connection.execute(
        chosen.order_by(EPOCH_METRICS.epoch, EPOCH_METRICS.metric_id)
    ):
        yield epoch, names[metric], value


def resumes(connection: Connection, run: str) -> list[Resumed]:
    """Return from where a run's newest attempt was gone on with, oldest first."""
    chosen = select(EVENTS.at, EVENTS.version, EVENTS.detail).where(
        EVENTS.kind == "resumed",
        EVENTS.run_id == id_of_run(run),
        EVENTS.version >= first_version(id_of_run(run)),
    )
    found = []
    for at, version, detail in connection.execute(chosen.order_by(EVENTS.id)):
        where = detail or {}
        if version is not None and isinstance(where.get("epoch"), int):
            found.append(Resumed(at=at, version=version, epoch=where["epoch"], batch=where.get("batch")))
    return found
