"""What is read of the metrics of a run's epochs, and of its restarts."""

from __future__ import annotations

import math
from datetime import datetime

from sqlalchemy import Connection, func, select

from ckptstore.manifest_floor import first_version
from ckptstore.manifest_queries import id_of_run, plain
from ckptstore.models import EPOCH_METRICS, EPOCHS, EVENTS, METRIC_NAMES
from ckptstore.records import Epoch, Resumed


def epochs(connection: Connection, run: str, after: int, limit: int) -> list[Epoch]:
    """Return what is known of a run's epochs in its newest attempt, behind an epoch, in order."""
    of_run = (EPOCHS.run_id == id_of_run(run), EPOCHS.version >= first_version(id_of_run(run)))
    chosen = select(EPOCHS.epoch, EPOCHS.batch, EPOCHS.step, EPOCHS.version, EPOCHS.created_at)
    rows = list(
        plain(connection, chosen.where(*of_run, EPOCHS.epoch > after).order_by(EPOCHS.epoch).limit(limit))
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


def epochs_of(connection: Connection, run: str) -> tuple[int, datetime | None]:
    """Return how many epochs of a run's newest attempt are known, and when the first was saved."""
    of_run = (EPOCHS.run_id == id_of_run(run), EPOCHS.version >= first_version(id_of_run(run)))
    count = connection.execute(select(func.count()).where(*of_run)).scalar_one()
    first: datetime | None = connection.scalar(
        select(EPOCHS.created_at).where(*of_run).order_by(EPOCHS.epoch).limit(1)
    )
    return count, first


def _metrics(connection: Connection, run: str, first: int, last: int) -> dict[int, dict[str, float]]:
    names = dict(connection.execute(select(METRIC_NAMES.id, METRIC_NAMES.name)).all())
    chosen = select(EPOCH_METRICS.epoch, EPOCH_METRICS.metric_id, EPOCH_METRICS.value).where(
        EPOCH_METRICS.run_id == id_of_run(run), EPOCH_METRICS.epoch.between(first, last)
    )
    found: dict[int, dict[str, float]] = {}
    of: dict[str, float] = {}
    previous = -1
    for epoch, metric, value in plain(
        connection, chosen.order_by(EPOCH_METRICS.epoch, EPOCH_METRICS.metric_id)
    ):
        if epoch != previous:
            of = found[epoch] = {}
            previous = epoch
        of[names[metric]] = math.nan if value is None else value
    return found


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
