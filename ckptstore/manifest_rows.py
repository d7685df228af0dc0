"""Checkpoints made of a manifest's rows, which are taken as the driver gives them: there may be very many."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterable
from datetime import datetime
from pathlib import Path
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, select

from ckptstore.layout import is_payload_file
from ckptstore.manifest_queries import id_of_run, plain
from ckptstore.models import CHECKPOINTS, METRIC_NAMES, METRICS, RUNS, TAGS
from ckptstore.records import Checkpoint, State

# In the order in which `_checkpoint` takes them.
_ROWS = select(
    CHECKPOINTS.version,
    RUNS.name,
    CHECKPOINTS.epoch,
    CHECKPOINTS.batch,
    CHECKPOINTS.step,
    CHECKPOINTS.created_at,
    CHECKPOINTS.file,
    CHECKPOINTS.nbytes,
    CHECKPOINTS.digest,
    CHECKPOINTS.format,
    CHECKPOINTS.state,
    CHECKPOINTS.resumable,
    CHECKPOINTS.pinned,
    CHECKPOINTS.extra,
    CHECKPOINTS.blocked_s,
    CHECKPOINTS.total_s,
).join_from(CHECKPOINTS.table, RUNS.table, RUNS.id == CHECKPOINTS.run_id)

# Checkpoints that are fetched by their versions in one statement.
_AT_ONCE = 500


def one(connection: Connection, store: Path, version: int | Select[Any]) -> Checkpoint | None:
    """Return one checkpoint, of a version or of a statement that gives one; None where there is none."""
    wanted = version if isinstance(version, int) else version.scalar_subquery()
    row = next(plain(connection, _ROWS.where(CHECKPOINTS.version == wanted)), None)
    if row is None:
        return None
    metrics = (
        select(METRIC_NAMES.name, METRICS.value)
        .join_from(METRICS.table, METRIC_NAMES.table, METRIC_NAMES.id == METRICS.metric_id)
        .where(METRICS.version == row[0])
        .order_by(METRICS.metric_id)
    )
    values = {name: math.nan if value is None else value for name, value in plain(connection, metrics)}
    tags = connection.scalars(select(TAGS.name).where(TAGS.version == row[0]))
    return _checkpoint(row, values, tags, store)


def many(
    connection: Connection, store: Path, run: str | None, states: Collection[State] | None
) -> list[Checkpoint]:
    """Return checkpoints, lowest version first, in four queries however many there are."""
    which: list[ColumnElement[bool]] = []
    if run is not None:
        which.append(CHECKPOINTS.run_id == id_of_run(run))
    if states is not None:
        which.append(CHECKPOINTS.state.in_(sorted(states)))
    return _those(connection, store, which, select(TAGS.version, TAGS.name))


def some(connection: Connection, store: Path, versions: Iterable[int]) -> list[Checkpoint]:
    """Return the checkpoints of some versions, lowest first, in whatever state; those that are gone are left out."""
    wanted = sorted(set(versions))
    found: list[Checkpoint] = []
    for begin in range(0, len(wanted), _AT_ONCE):
        part = wanted[begin : begin + _AT_ONCE]
        tags = select(TAGS.version, TAGS.name).where(TAGS.version.in_(part))
        found += _those(connection, store, [CHECKPOINTS.version.in_(part)], tags)
    return found


def bare(connection: Connection, store: Path, versions: Collection[int]) -> list[Checkpoint]:
    """Return the checkpoints of a few hundred versions, lowest first, without their metrics."""
    tags: dict[int, list[str]] = {}
    for version, name in plain(connection, select(TAGS.version, TAGS.name).where(TAGS.version.in_(versions))):
        tags.setdefault(version, []).append(name)
    found = plain(connection, _ROWS.where(CHECKPOINTS.version.in_(versions)).order_by(CHECKPOINTS.version))
    return [_checkpoint(row, {}, tags.get(row[0], ()), store) for row in found]


def page(
    connection: Connection, store: Path, run: str | None, states: Collection[State] | None, after: int
) -> list[Checkpoint]:
    """Return the next some checkpoints whose version is above one, lowest first."""
    chosen = select(CHECKPOINTS.version).where(CHECKPOINTS.version > after)
    if run is not None:
        chosen = chosen.where(CHECKPOINTS.run_id == id_of_run(run))
    if states is not None:
        chosen = chosen.where(CHECKPOINTS.state.in_(sorted(states)))
    return some(connection, store, connection.scalars(chosen.order_by(CHECKPOINTS.version).limit(_AT_ONCE)))


def _those(
    connection: Connection, store: Path, which: list[ColumnElement[bool]], tagged: Select[int, str]
) -> list[Checkpoint]:
    names = dict(connection.execute(select(METRIC_NAMES.id, METRIC_NAMES.name)).all())
    values = (
        select(METRICS.version, METRICS.metric_id, METRICS.value)
        .join_from(CHECKPOINTS.table, METRICS.table, METRICS.version == CHECKPOINTS.version)
        .where(*which)
        .order_by(CHECKPOINTS.version, METRICS.metric_id)
    )
    metrics: dict[int, dict[str, float]] = {}
    of, last = {}, None
    for version, metric, value in plain(connection, values):
        if version != last:
            of = metrics[version] = {}
            last = version
        of[names[metric]] = math.nan if value is None else value
    tags: dict[int, list[str]] = {}
    for version, name in plain(connection, tagged):
        tags.setdefault(version, []).append(name)
    rows = plain(connection, _ROWS.where(*which).order_by(CHECKPOINTS.version))
    return [_checkpoint(row, metrics.get(row[0], {}), tags.get(row[0], ()), store) for row in rows]


def _checkpoint(
    row: tuple[Any, ...], metrics: dict[str, float], tags: Iterable[str], store: Path
) -> Checkpoint:
    (version, run, epoch, batch, step, created_at, file, nbytes, digest, format, state, resumable, pinned,
     extra, blocked_s, total_s) = row  # fmt: skip
    if not is_payload_file(file):
        # A manifest from elsewhere must not have us read, move or remove what lies outside the store.
        raise ValueError(f"version {version} claims the file {file!r}")
    return Checkpoint(
        version=version,
        run=run,
        epoch=epoch,
        batch=batch,
        step=step,
        metrics=metrics,
        path=store / file,
        nbytes=nbytes,
        digest=digest,
        created_at=datetime.fromisoformat(created_at),
        tags=tuple(sorted(tags)),
        pinned=bool(pinned),
        format=format,
        state=state,
        resumable=bool(resumable),
        extra=None if extra is None else json.loads(extra),
        blocked_s=blocked_s,
        total_s=total_s,
    )
