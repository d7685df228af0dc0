"""Checkpoints made of a manifest's rows, which are taken as the driver gives them: there may be very many."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from sys import intern
from typing import Any, NamedTuple

from sqlalchemy import BindParameter, ColumnElement, Connection, Executable, Select, bindparam, select

from ckptstore.manifest.statements import id_of_run, plain
from ckptstore.manifest.tables import CHECKPOINTS, METRIC_NAMES, METRICS, RUNS, TAGS
from ckptstore.records import Checkpoint, Format, State
from ckptstore.storage.layout import is_payload_file

# In the order in which `_slim` takes them.
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

# Of one version, and of some: built once, since building a statement takes longer than executing it.
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

# Checkpoints that are fetched by their versions in one statement.
_AT_ONCE = 500
# Checkpoints of a page.
_PAGE = 1000


class Slim(NamedTuple):
    """What a `Checkpoint` is made of, which takes many times longer to make: there may be very many."""

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

    def full(self, store: Path) -> Checkpoint:
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


def one(connection: Connection, store: Path, version: int | Select[Any]) -> Checkpoint | None:
    """Return one checkpoint, of a version or of a statement that gives one; None where there is none."""
    if isinstance(version, int):
        rows = plain(connection, _ONE_ROW, {"version": version})
    else:
        rows = plain(connection, _ROWS.where(CHECKPOINTS.version == version.scalar_subquery()))
    row = next(rows, None)
    if row is None:
        return None
    which = {"version": row[0]}
    values = {
        name: math.nan if value is None else value
        for name, value, _ in plain(connection, _VALUES_OF_ONE, which)
    }
    tags = connection.scalars(_TAGS_OF_ONE, which)
    return _slim(row, values, tags).full(store)


def many(
    connection: Connection, store: Path, run: str | None, states: Collection[State] | None
) -> list[Checkpoint]:
    """Return checkpoints, lowest version first, in four queries however many there are."""
    found = _chosen_ones(connection, _chosen(run, states), select(TAGS.version, TAGS.name))
    return [one.full(store) for one in found]


def some(connection: Connection, store: Path, versions: Iterable[int]) -> list[Checkpoint]:
    """Return the checkpoints of some versions, lowest first, in whatever state; those that are gone are left out."""
    found: list[Checkpoint] = []
    for which in _parts(versions):
        metrics: dict[int, dict[str, float]] = {}
        for name, value, version in plain(connection, _VALUES_OF_SOME, which):
            # All share one name.
            metrics.setdefault(version, {})[intern(name)] = math.nan if value is None else value
        found += (one.full(store) for one in _those(connection, metrics, _TAGS_OF_SOME, _SOME_ROWS, which))
    return found


def without_metrics(connection: Connection, store: Path, versions: Iterable[int]) -> list[Checkpoint]:
    """Return likewise, without their metrics."""
    found: list[Checkpoint] = []
    for which in _parts(versions):
        found += (one.full(store) for one in _those(connection, {}, _TAGS_OF_SOME, _SOME_ROWS, which))
    return found


def _parts(versions: Iterable[int]) -> Iterator[dict[str, list[int]]]:
    """Yield the parameters of statements that fetch some versions, lowest first, so many at a time."""
    wanted = sorted(set(versions))
    for begin in range(0, len(wanted), _AT_ONCE):
        yield {"versions": wanted[begin : begin + _AT_ONCE]}


def page(connection: Connection, run: str | None, states: Collection[State] | None, after: int) -> list[Slim]:
    """Return the next some checkpoints whose version is above one, lowest first."""
    which = [*_chosen(run, states), CHECKPOINTS.version > after]
    tags = select(TAGS.version, TAGS.name).where(TAGS.version > after)
    ends = select(CHECKPOINTS.version).where(*which).order_by(CHECKPOINTS.version)
    last = connection.scalar(ends.offset(_PAGE - 1).limit(1))
    if last is not None:
        which.append(CHECKPOINTS.version <= last)
        tags = tags.where(TAGS.version <= last)
    return list(_chosen_ones(connection, which, tags))


def _chosen(run: str | None, states: Collection[State] | None) -> list[ColumnElement[bool]]:
    which: list[ColumnElement[bool]] = []
    if run is not None:
        which.append(CHECKPOINTS.run_id == id_of_run(run))
    if states is not None:
        which.append(CHECKPOINTS.state.in_(sorted(states)))
    return which


def _chosen_ones(
    connection: Connection, which: list[ColumnElement[bool]], tagged: Select[int, str]
) -> Iterator[Slim]:
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
    return _those(connection, metrics, tagged, _ROWS.where(*which).order_by(CHECKPOINTS.version))


def _those(
    connection: Connection,
    metrics: Mapping[int, dict[str, float]],
    tagged: Executable,
    rows: Executable,
    parameters: Mapping[str, object] | None = None,
) -> Iterator[Slim]:
    """Yield what rows say, each with its metrics and the tags that stand on it."""
    tags: dict[int, list[str]] = {}
    for version, name in plain(connection, tagged, parameters):
        tags.setdefault(version, []).append(name)
    for row in plain(connection, rows, parameters):
        yield _slim(row, metrics.get(row[0], {}), tags.get(row[0], ()))


def _slim(row: tuple[Any, ...], metrics: dict[str, float], tags: Iterable[str]) -> Slim:
    (version, run, epoch, batch, step, created_at, file, nbytes, digest, format, state, resumable, pinned,
     extra, blocked_s, total_s) = row  # fmt: skip
    if not is_payload_file(file):
        # A manifest from elsewhere must not have us read, move or remove what lies outside the store.
        raise ValueError(f"version {version} claims the file {file!r}")
    return Slim(
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
