"""What is written to a manifest, each function inside the caller's transaction."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

from sqlalchemy import (
    BindParameter,
    Connection,
    Executable,
    Insert,
    Table,
    Update,
    bindparam,
    delete,
    insert,
    select,
    update,
)

from ckptstore.manifest import statements as queries
from ckptstore.manifest.epochs import note_epoch
from ckptstore.manifest.tables import (
    CHECKPOINTS,
    EVENTS,
    METRIC_NAMES,
    METRICS,
    MONITORS,
    PUBLISHED,
    RETENTION,
    RUNS,
    STORE,
    TAGS,
)
from ckptstore.records import Holder, Mode, NewCheckpoint, State

# Versions of which something is changed in one call of the driver.
_AT_ONCE = 5000

# --- statements, each built once: building one takes longer than executing it -------------------------

_WHICH: BindParameter[int] = bindparam("which")
_NEXT_VERSION = select(STORE.next_version)
_TAKE_VERSION = update(STORE.table).values(next_version=STORE.next_version + 1)
_COUNT_ON = update(STORE.table).where(STORE.next_version < bindparam("at_least"))
_RUN_ID = select(RUNS.id).where(RUNS.name == queries.RUN)
_RUN_AND_NEXT_VERSION = select(_RUN_ID.scalar_subquery(), _NEXT_VERSION.scalar_subquery())
_METRIC_IDS = select(METRIC_NAMES.name, METRIC_NAMES.id).where(
    METRIC_NAMES.name.in_(bindparam("names", expanding=True))
)
_ADD_CHECKPOINT, _ADD_METRICS, _ADD_EVENT = (
    insert(CHECKPOINTS.table),
    insert(METRICS.table),
    insert(EVENTS.table),
)
_CHANGE_CHECKPOINT = update(CHECKPOINTS.table).where(CHECKPOINTS.version == _WHICH)
_CHANGE_METRICS = update(METRICS.table).where(METRICS.version == _WHICH)
_RUN_OF = select(CHECKPOINTS.run_id).where(CHECKPOINTS.version == _WHICH)
_FORGET_RETENTION = delete(RETENTION.table).where(RETENTION.run_id == bindparam("of_run"))
_FORGET_RETENTION_OF = delete(RETENTION.table).where(RETENTION.run_id == _RUN_OF.scalar_subquery())
# In an order in which nothing refers to what is gone.
_DROP = tuple(
    delete(table).where(table.c["version"] == _WHICH)
    for table in (TAGS.table, PUBLISHED.table, METRICS.table, CHECKPOINTS.table)
)
_TAGGED = select(TAGS.version).where(TAGS.name == bindparam("name"))
_SHOWN = select(PUBLISHED.version).where(PUBLISHED.path == bindparam("path"))
_CHANGE_PUBLISHED = update(PUBLISHED.table).where(PUBLISHED.path == bindparam("at_path"))


class _Put(NamedTuple):
    """Statements that update the row with a key, or insert it."""

    update: Update
    insert: Insert


def _putting(table: Table, *key: str) -> _Put:
    matches = (table.c[name] == bindparam(f"key_{name}") for name in key)
    return _Put(update(table).where(*matches), insert(table))


_PUT_TAG, _PUT_PUBLISHED = _putting(TAGS.table, "name"), _putting(PUBLISHED.table, "path")
_PUT_MONITOR = _putting(MONITORS.table, "run_id", "metric_id")
_PUT_RETENTION = _putting(RETENTION.table, "run_id")

# -----------------------------------------------------------------------------------------------------


def reserve_version(connection: Connection) -> int:
    """Take the next version; the COMMIT makes it durable, so that it is never given out again."""
    connection.execute(_TAKE_VERSION)
    return connection.execute(_NEXT_VERSION).scalar_one() - 1


def insert_checkpoint(connection: Connection, new: NewCheckpoint) -> int:
    """Insert a checkpoint with its metrics and tags; no later version is lower than it. Returns its run's id."""
    found, next_version = connection.execute(_RUN_AND_NEXT_VERSION, {"run": new.run}).one()
    run = _new_run(connection, new.run) if found is None else found
    connection.execute(_ADD_CHECKPOINT, _row(new, run))
    ids = metric_ids(connection, new.metrics)
    values = [
        {
            "version": new.version,
            "metric_id": ids[name],
            "run_id": run,
            "state": "complete",
            "value": None if math.isnan(value) else float(value),
        }
        for name, value in new.metrics.items()
    ]
    if values:
        connection.execute(_ADD_METRICS, values)
    note_epoch(connection, run, new, {ids[name]: value for name, value in new.metrics.items()})
    for name in new.tags:
        put_tag(connection, new.version, name)
    if next_version is not None and next_version <= new.version:
        count_on(connection, new.version + 1)
    return run


def _row(new: NewCheckpoint, run: int) -> dict[str, object]:
    return {
        "version": new.version,
        "run_id": run,
        "epoch": new.epoch,
        "batch": new.batch,
        "step": new.step,
        "created_at": new.created_at,
        "file": new.file,
        "nbytes": new.nbytes,
        "digest": new.digest,
        "format": new.format,
        "state": "complete",
        "resumable": new.resumable,
        "pinned": new.pinned,
        "extra": new.extra,
        "blocked_s": new.blocked_s,
        "total_s": new.total_s,
    }


def set_state(connection: Connection, versions: Sequence[int], state: State) -> None:
    """Set the state of checkpoints and of their metrics; versions that are not there are passed over.

    What retention noted of a run holds no more when others than itself remove something of it.
    """
    if state == "deleting":
        _of_each(connection, _FORGET_RETENTION_OF, versions)
    _of_each(connection, _CHANGE_CHECKPOINT, versions, state=state)
    _of_each(connection, _CHANGE_METRICS, versions, state=state)


def let_go(connection: Connection, run_id: int, versions: Sequence[int]) -> None:
    """Mark checkpoints of a run for deletion; that stands in the events."""
    if versions:
        _of_each(connection, _CHANGE_CHECKPOINT, versions, state="deleting")
        _of_each(connection, _CHANGE_METRICS, versions, state="deleting")
        append_event(connection, "pruned", run_id=run_id, detail={"versions": list(versions)})


def note_retention(connection: Connection, run_id: int, values: Mapping[str, object]) -> None:
    """Note how far retention has come with a run."""
    _put(connection, _PUT_RETENTION, {"run_id": run_id}, dict(values))


def forget_retention(connection: Connection, run_id: int) -> None:
    """Forget how far retention had come with a run."""
    connection.execute(_FORGET_RETENTION, {"of_run": run_id})


def set_pinned(connection: Connection, version: int, pinned: bool) -> None:
    """Pin a checkpoint, or let it go; a change stands in the events."""
    before = connection.execute(select(CHECKPOINTS.pinned).where(CHECKPOINTS.version == version)).scalar()
    if before == pinned:
        return
    add_event(connection, "pinned" if pinned else "unpinned", version=version)
    connection.execute(_CHANGE_CHECKPOINT, {"which": version, "pinned": pinned})


def remove(connection: Connection, versions: Sequence[int]) -> None:
    """Drop checkpoints and what refers to them, but events; versions that are not there are passed over."""
    for statement in _DROP:
        _of_each(connection, statement, versions)


def _of_each(
    connection: Connection, statement: Executable, versions: Sequence[int], **values: object
) -> None:
    """Execute a statement for each version, some at a time: there may be very many."""
    for begin in range(0, len(versions), _AT_ONCE):
        part = versions[begin : begin + _AT_ONCE]
        connection.execute(statement, [{"which": version, **values} for version in part])


def refill(
    connection: Connection,
    rows: Iterable[tuple[NewCheckpoint, str | None]],
    tags: Mapping[str, int],
    monitors: Iterable[tuple[str, str, Mode]],
) -> None:
    """Insert checkpoints, each with the path that shows it, and what else a lost manifest knew."""
    versions = set()
    for new, path in rows:
        insert_checkpoint(connection, new)
        add_event(connection, "adopted", run=new.run, version=new.version)
        versions.add(new.version)
        if path is not None:
            put_published(connection, path, new.run, new.version)
            confirm_published(connection, path)
    for name, version in tags.items():
        if version in versions:
            put_tag(connection, version, name)
    for run, metric, mode in monitors:
        put_monitor(connection, run, metric, mode)


def identify(connection: Connection, uuid: str) -> None:
    """Give the store an id."""
    connection.execute(update(STORE.table).values(uuid=uuid))


def count_on(connection: Connection, next_version: int) -> None:
    """Let the store's next version be at least `next_version`."""
    connection.execute(_COUNT_ON, {"at_least": next_version, "next_version": next_version})


def put_tag(connection: Connection, version: int, name: str) -> None:
    """Give a checkpoint a tag; one that stands elsewhere moves. Both stand in the events."""
    before = connection.execute(_TAGGED, {"name": name}).scalar()
    if before == version:
        return
    if before is not None:
        add_event(connection, "untagged", version=before, detail={"tag": name, "to": version})
    add_event(connection, "tagged", version=version, detail={"tag": name, "from": before})
    _put(connection, _PUT_TAG, {"name": name}, {"version": version, "created_at": datetime.now(UTC)})


def remove_tag(connection: Connection, name: str) -> int | None:
    """Take a tag away; returns the checkpoint that had it, or None where none had."""
    before: int | None = connection.execute(_TAGGED, {"name": name}).scalar()
    if before is not None:
        connection.execute(delete(TAGS.table).where(TAGS.name == name))
        add_event(connection, "untagged", version=before, detail={"tag": name, "to": None})
    return before


def put_monitor(connection: Connection, run: str, metric: str, mode: Mode) -> None:
    """Note which way a run takes a metric to be better."""
    if (metric, mode) in queries.monitors(connection, run):
        return
    metric_id = metric_ids(connection, [metric])[metric]
    _put(
        connection,
        _PUT_MONITOR,
        {"run_id": run_id(connection, run), "metric_id": metric_id},
        {"mode": mode},
    )


def put_published(connection: Connection, path: str, run: str, version: int) -> None:
    """Note that a path is to show a checkpoint, and that the switch is still to come."""
    _unshow(connection, path, version)
    _put(
        connection,
        _PUT_PUBLISHED,
        {"path": path},
        {"run_id": run_id(connection, run), "version": version, "pending": True},
    )


def confirm_published(connection: Connection, path: str) -> None:
    """Note that a path shows its checkpoint."""
    connection.execute(_CHANGE_PUBLISHED, {"at_path": path, "pending": False})


def forget_published(connection: Connection, path: str) -> None:
    """Drop the row of a path."""
    _unshow(connection, path, None)
    connection.execute(delete(PUBLISHED.table).where(PUBLISHED.path == path))


def _unshow(connection: Connection, path: str, version: int | None) -> None:
    """Note which checkpoint a path is about to show no more, for retention to look at it again."""
    before = connection.execute(_SHOWN, {"path": path}).scalar()
    if before is not None and before != version:
        add_event(connection, "unshown", version=before)


def set_holder(connection: Connection, run: str, holder: Holder | None) -> None:
    """Note who writes a run, or that nobody does; makes the run if there is none."""
    values: dict[str, object] = {"holder_host": None, "holder_pid": None, "holder_started_at": None}
    if holder is not None:
        values = {
            "holder_host": holder.host,
            "holder_pid": holder.pid,
            "holder_started_at": holder.started_at,
        }
    connection.execute(update(RUNS.table).where(RUNS.id == run_id(connection, run)).values(values))


def add_event(
    connection: Connection,
    kind: str,
    *,
    run: str | None = None,
    version: int | None = None,
    detail: Mapping[str, Any] | None = None,
) -> None:
    """Append an event; of a checkpoint that is there, also the run, if it is not said."""
    run_of: int | None = None
    if run is not None:
        run_of = run_id(connection, run)
    elif version is not None:
        run_of = connection.execute(_RUN_OF, {"which": version}).scalar()
    append_event(connection, kind, run_id=run_of, version=version, detail=detail)


def append_event(
    connection: Connection,
    kind: str,
    *,
    run_id: int | None,
    version: int | None = None,
    detail: Mapping[str, Any] | None = None,
) -> None:
    """Append an event of a run whose id is known."""
    row = {"at": datetime.now(UTC), "kind": kind, "run_id": run_id, "version": version, "detail": detail}
    connection.execute(_ADD_EVENT, row)


def run_id(connection: Connection, name: str) -> int:
    """Return a run's id; makes the run if there is none."""
    found: int | None = connection.execute(_RUN_ID, {"run": name}).scalar()
    return _new_run(connection, name) if found is None else found


def _new_run(connection: Connection, name: str) -> int:
    return _new_id(connection, RUNS.table, name=name, created_at=datetime.now(UTC))


def metric_ids(connection: Connection, names: Iterable[str]) -> dict[str, int]:
    """Return metrics' ids by name; makes those that are new, in the order given."""
    wanted = list(names)
    if not wanted:
        return {}
    ids: dict[str, int] = dict(connection.execute(_METRIC_IDS, {"names": wanted}).all())
    for name in wanted:
        if name not in ids:
            ids[name] = _new_id(connection, METRIC_NAMES.table, name=name)
    return ids


def _new_id(connection: Connection, table: Table, **values: object) -> int:
    key = connection.execute(insert(table).values(values)).inserted_primary_key
    assert key is not None
    return int(key[0])


def _put(connection: Connection, put: _Put, key: dict[str, object], values: dict[str, object]) -> None:
    """Update the row that has this key, or insert it: nobody else writes meanwhile."""
    matches = {f"key_{name}": value for name, value in key.items()}
    if not connection.execute(put.update, matches | values).rowcount:
        connection.execute(put.insert, key | values)
