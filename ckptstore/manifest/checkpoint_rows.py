"""Reads checkpoints: their rows, metrics and tags, as the driver gives them, since there may be very many."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from sys import intern
from typing import Any, NamedTuple

from sqlalchemy import BindParameter, ColumnElement, Connection, Executable, Select, bindparam, select

from ckptstore.errors import CheckpointNotFoundError
from ckptstore.manifest.statements import id_of_run, raw_rows
from ckptstore.manifest.tables import CHECKPOINTS, METRIC_NAMES, METRICS, RUNS, TAGS
from ckptstore.records import Checkpoint, Format, State
from ckptstore.storage.payloads.names import is_payload_file

# In the order of `_row_of`.
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

# Of one version, and of several.
_VERSION: BindParameter[int] = bindparam("version")
_VERSIONS: BindParameter[int] = bindparam("versions", expanding=True)
_VALUES = select(METRIC_NAMES.name, METRICS.value, METRICS.version).join_from(
    METRICS.table, METRIC_NAMES.table, METRIC_NAMES.id == METRICS.metric_id
)
_ONE_ROW = _ROWS.where(CHECKPOINTS.version == _VERSION)
_VALUES_OF_ONE = _VALUES.where(METRICS.version == _VERSION).order_by(METRICS.metric_id)
_TAGS_OF_ONE = select(TAGS.name).where(TAGS.version == _VERSION)
_SOME_ROWS = _ROWS.where(CHECKPOINTS.version.in_(_VERSIONS)).order_by(CHECKPOINTS.version)
_VALUES_OF_SOME = _VALUES.where(METRICS.version.in_(_VERSIONS)).order_by(METRICS.version, METRICS.metric_id)
_TAGS_OF_SOME = select(TAGS.version, TAGS.name).where(TAGS.version.in_(_VERSIONS))

# Checkpoints that one statement fetches by their versions.
_VERSIONS_PER_STATEMENT = 500
_PAGE_SIZE = 1000


class CheckpointRow(NamedTuple):
    """The values of a `Checkpoint`, in an object that is made many times faster."""

    version: int
    run: str
    epoch: int
    batch: int | None
    step: int | None
    created_at: datetime
    file: str
    nbytes: int
    digest: str
    format: Format
    state: State
    resumable: bool
    pinned: bool
    extra: Mapping[str, Any] | None
    blocked_s: float | None
    total_s: float | None
    metrics: Mapping[str, float]
    tags: tuple[str, ...]

    def to_checkpoint(self, store: Path) -> Checkpoint:
        """Return the checkpoint."""
        return Checkpoint(
            version=self.version,
            run=self.run,
            epoch=self.epoch,
            batch=self.batch,
            step=self.step,
            metrics=self.metrics,
            path=store / self.file,
            nbytes=self.nbytes,
            digest=self.digest,
            created_at=self.created_at,
            tags=self.tags,
            pinned=self.pinned,
            format=self.format,
            state=self.state,
            resumable=self.resumable,
            extra=self.extra,
            blocked_s=self.blocked_s,
            total_s=self.total_s,
        )


def fetch(connection: Connection, store: Path, version: int | Select[Any]) -> Checkpoint | None:
    """Return the checkpoint of a version, or of a statement that selects one; None where there is none."""
    if isinstance(version, int):
        rows = raw_rows(connection, _ONE_ROW, {"version": version})
    else:
        rows = raw_rows(connection, _ROWS.where(CHECKPOINTS.version == version.scalar_subquery()))
    row = next(rows, None)
    if row is None:
        return None
    which = {"version": row[0]}
    values = {
        name: math.nan if value is None else value
        for name, value, _ in raw_rows(connection, _VALUES_OF_ONE, which)
    }
    tags = connection.scalars(_TAGS_OF_ONE, which)
    return _row_of(row, values, tags).to_checkpoint(store)


def require(connection: Connection, store: Path, version: int) -> None:
    """Raise `CheckpointNotFoundError` unless there is a checkpoint that is not being deleted."""
    found = fetch(connection, store, version)
    if found is None or found.state == "deleting":
        raise CheckpointNotFoundError(ref=version, store=store)


def fetch_all(
    connection: Connection, store: Path, run: str | None, states: Collection[State] | None
) -> list[Checkpoint]:
    """Return the checkpoints of a run in some states, lowest version first, in four queries however many there are."""
    found = _fetch_where(connection, _of_run_and_states(run, states), select(TAGS.version, TAGS.name))
    return [row.to_checkpoint(store) for row in found]


def fetch_versions(
    connection: Connection, store: Path, versions: Iterable[int], *, with_metrics: bool = True
) -> list[Checkpoint]:
    """Return the checkpoints of some versions, lowest first, in whatever state; those that are gone are left out."""
    found: list[Checkpoint] = []
    wanted = sorted(set(versions))
    for begin in range(0, len(wanted), _VERSIONS_PER_STATEMENT):
        which = {"versions": wanted[begin : begin + _VERSIONS_PER_STATEMENT]}
        metrics: dict[int, dict[str, float]] = {}
        for name, value, version in raw_rows(connection, _VALUES_OF_SOME, which) if with_metrics else ():
            # All share one name.
            metrics.setdefault(version, {})[intern(name)] = math.nan if value is None else value
        rows = _join(connection, metrics, _TAGS_OF_SOME, _SOME_ROWS, which)
        found += (row.to_checkpoint(store) for row in rows)
    return found


def fetch_page(
    connection: Connection, run: str | None, states: Collection[State] | None, after: int
) -> list[CheckpointRow]:
    """Return the next page of a run's checkpoints in some states, after a version, lowest first."""
    which = [*_of_run_and_states(run, states), CHECKPOINTS.version > after]
    tags = select(TAGS.version, TAGS.name).where(TAGS.version > after)
    ends = select(CHECKPOINTS.version).where(*which).order_by(CHECKPOINTS.version)
    last = connection.scalar(ends.offset(_PAGE_SIZE - 1).limit(1))
    if last is not None:
        which.append(CHECKPOINTS.version <= last)
        tags = tags.where(TAGS.version <= last)
    return list(_fetch_where(connection, which, tags))


def _of_run_and_states(run: str | None, states: Collection[State] | None) -> list[ColumnElement[bool]]:
    which: list[ColumnElement[bool]] = []
    if run is not None:
        which.append(CHECKPOINTS.run_id == id_of_run(run))
    if states is not None:
        which.append(CHECKPOINTS.state.in_(sorted(states)))
    return which


def _fetch_where(
    connection: Connection, which: list[ColumnElement[bool]], tagged: Select[int, str]
) -> Iterator[CheckpointRow]:
    names = dict(connection.execute(select(METRIC_NAMES.id, METRIC_NAMES.name)).all())
    values = (
        select(METRICS.version, METRICS.metric_id, METRICS.value)
        .join_from(CHECKPOINTS.table, METRICS.table, METRICS.version == CHECKPOINTS.version)
        .where(*which)
        .order_by(CHECKPOINTS.version, METRICS.metric_id)
    )
    metrics: dict[int, dict[str, float]] = {}
    current, last = {}, None
    for version, metric, value in raw_rows(connection, values):
        if version != last:
            current = metrics[version] = {}
            last = version
        current[names[metric]] = math.nan if value is None else value
    return _join(connection, metrics, tagged, _ROWS.where(*which).order_by(CHECKPOINTS.version))


def _join(
    connection: Connection,
    metrics: Mapping[int, dict[str, float]],
    tagged: Executable,
    rows: Executable,
    parameters: Mapping[str, object] | None = None,
) -> Iterator[CheckpointRow]:
    """Yield rows, each joined with its metrics and its tags."""
    tags: dict[int, list[str]] = {}
    for version, name in raw_rows(connection, tagged, parameters):
        tags.setdefault(version, []).append(name)
    for row in raw_rows(connection, rows, parameters):
        yield _row_of(row, metrics.get(row[0], {}), tags.get(row[0], ()))


def _row_of(row: tuple[Any, ...], metrics: dict[str, float], tags: Iterable[str]) -> CheckpointRow:
    (version, run, epoch, batch, step, created_at, file, nbytes, digest, format, state, resumable, pinned,
     extra, blocked_s, total_s) = row  # fmt: skip
    if not is_payload_file(file):
        # A manifest from elsewhere must not have us read, move or remove what lies outside the store.
        raise ValueError(f"version {version} claims the file {file!r}")
    return CheckpointRow(
        version,
        run,
        epoch,
        batch,
        step,
        datetime.fromisoformat(created_at),
        file,
        nbytes,
        digest,
        format,
        state,
        bool(resumable),
        bool(pinned),
        None if extra is None else json.loads(extra),
        blocked_s,
        total_s,
        metrics,
        tuple(sorted(tags)),
    )
