"""What is written to a manifest, each function inside the caller's transaction."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, Executable, Table, bindparam, delete, insert, select, update

from ckptstore.manifest_epochs import note_epoch
from ckptstore.models import (
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


def reserve_version(connection: Connection) -> int:
    """Take the next version; the COMMIT makes it durable, so that it is never given out again."""
    connection.execute(update(STORE.table).values(next_version=STORE.next_version + 1))
    return connection.execute(select(STORE.next_version)).scalar_one() - 1


def insert_checkpoint(connection: Connection, new: NewCheckpoint) -> None:
    """Insert a checkpoint with its metrics and tags; no later version is lower than it."""
    run = run_id(connection, new.run)
    connection.execute(
        insert(CHECKPOINTS.table).values(
            version=new.version,
            run_id=run,
            epoch=new.epoch,
            batch=new.batch,
            step=new.step,
            created_at=new.created_at,
            file=new.file,
            nbytes=new.nbytes,
            digest=new.digest,
            format=new.format,
            state="complete",
            resumable=new.resumable,
            pinned=new.pinned,
            extra=new.extra,
            blocked_s=new.blocked_s,
            total_s=new.total_s,
        )
    )
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
        connection.execute(insert(METRICS.table), values)
    note_epoch(connection, run, new, {ids[name]: value for name, value in new.metrics.items()})
    for name in new.tags:
        put_tag(connection, new.version, name)
    connection.execute(
        update(STORE.table).where(STORE.next_version <= new.version).values(next_version=new.version + 1)
    )


def set_state(connection: Connection, versions: Sequence[int], state: State) -> None:
    """Set the state of checkpoints and of their metrics; versions that are not there are passed over.

    What retention noted of a run holds no more when others than itself remove something of it.
    """
    if state == "deleting" and versions:
        found = select(CHECKPOINTS.run_id).where(CHECKPOINTS.version == bindparam("which"))
        _of_each(
            connection, delete(RETENTION.table).where(RETENTION.run_id == found.scalar_subquery()), versions
        )
    _for_each(connection, CHECKPOINTS.table, versions, state=state)
    _for_each(connection, METRICS.table, versions, state=state)


def set_pinned(connection: Connection, version: int, pinned: bool) -> None:
    """Pin a checkpoint, or let it go; a change stands in the events."""
    before = connection.execute(select(CHECKPOINTS.pinned).where(CHECKPOINTS.version == version)).scalar()
    if before == pinned:
        return
    add_event(connection, "pinned" if pinned else "unpinned", version=version)
    _for_each(connection, CHECKPOINTS.table, [version], pinned=pinned)


def remove(connection: Connection, versions: Sequence[int]) -> None:
    """Drop checkpoints and what refers to them, but events; versions that are not there are passed over."""
    for table in (TAGS.table, PUBLISHED.table, METRICS.table, CHECKPOINTS.table):
        _of_each(connection, delete(table).where(table.c["version"] == bindparam("which")), versions)


def _for_each(connection: Connection, table: Table, versions: Sequence[int], **values: object) -> None:
    _of_each(
        connection, update(table).where(table.c["version"] == bindparam("which")).values(values), versions
    )


def _of_each(connection: Connection, statement: Executable, versions: Sequence[int]) -> None:
    """Execute a statement for each version, some at a time: there may be very many."""
    for begin in range(0, len(versions), _AT_ONCE):
        connection.execute(statement, [{"which": version} for version in versions[begin : begin + _AT_ONCE]])


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
    connection.execute(
        update(STORE.table).where(STORE.next_version < next_version).values(next_version=next_version)
    )


def put_tag(connection: Connection, version: int, name: str) -> None:
    """Give a checkpoint a tag; one that stands elsewhere moves. Both stand in the events."""
    before = connection.execute(select(TAGS.version).where(TAGS.name == name)).scalar()
    if before == version:
        return
    if before is not None:
        add_event(connection, "untagged", version=before, detail={"tag": name, "to": version})
    add_event(connection, "tagged", version=version, detail={"tag": name, "from": before})
    _put(connection, TAGS.table, {"name": name}, {"version": version, "created_at": datetime.now(UTC)})


def remove_tag(connection: Connection, name: str) -> int | None:
    """Take a tag away; returns the checkpoint that had it, or None where none had."""
    before: int | None = connection.execute(select(TAGS.version).where(TAGS.name == name)).scalar()
    if before is not None:
        connection.execute(delete(TAGS.table).where(TAGS.name == name))
        add_event(connection, "untagged", version=before, detail={"tag": name, "to": None})
    return before


def put_monitor(connection: Connection, run: str, metric: str, mode: Mode) -> None:
    """Note which way a run takes a metric to be better."""
    metric_id = metric_ids(connection, [metric])[metric]
    _put(
        connection,
        MONITORS.table,
        {"run_id": run_id(connection, run), "metric_id": metric_id},
        {"mode": mode},
    )


def put_published(connection: Connection, path: str, run: str, version: int) -> None:
    """Note that a path is to show a checkpoint, and that the switch is still to come."""
    _unshow(connection, path, version)
    _put(
        connection,
        PUBLISHED.table,
        {"path": path},
        {"run_id": run_id(connection, run), "version": version, "pending": True},
    )


def confirm_published(connection: Connection, path: str) -> None:
    """Note that a path shows its checkpoint."""
    connection.execute(update(PUBLISHED.table).where(PUBLISHED.path == path).values(pending=False))


def forget_published(connection: Connection, path: str) -> None:
    """Drop the row of a path."""
    _unshow(connection, path, None)
    connection.execute(delete(PUBLISHED.table).where(PUBLISHED.path == path))


def _unshow(connection: Connection, path: str, version: int | None) -> None:
    """Note which checkpoint a path is about to show no more, for retention to look at it again."""
    before = connection.execute(select(PUBLISHED.version).where(PUBLISHED.path == path)).scalar()
    if before is not None and before != version:
        add_event(connection, "unshown", version=before)


def note_retention(connection: Connection, run: str, values: Mapping[str, object]) -> None:
    """Note how far retention has come with a run."""
    _put(connection, RETENTION.table, {"run_id": run_id(connection, run)}, dict(values))


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
    run_of: object = None if run is None else run_id(connection, run)
    if run is None and version is not None:
        run_of = select(CHECKPOINTS.run_id).where(CHECKPOINTS.version == version).scalar_subquery()
    connection.execute(
        insert(EVENTS.table).values(
            at=datetime.now(UTC),
            kind=kind,
            run_id=run_of,
            version=version,
            detail=detail,
        )
    )


def run_id(connection: Connection, name: str) -> int:
    """Return a run's id; makes the run if there is none."""
    found: int | None = connection.execute(select(RUNS.id).where(RUNS.name == name)).scalar()
    if found is not None:
        return found
    return _new_id(connection, RUNS.table, name=name, created_at=datetime.now(UTC))


def metric_ids(connection: Connection, names: Iterable[str]) -> dict[str, int]:
    """Return metrics' ids by name; makes those that are new, in the order given."""
    wanted: Collection[str] = list(names)
    known = select(METRIC_NAMES.name, METRIC_NAMES.id).where(METRIC_NAMES.name.in_(wanted))
    ids: dict[str, int] = dict(connection.execute(known).all())
    for name in wanted:
        if name not in ids:
            ids[name] = _new_id(connection, METRIC_NAMES.table, name=name)
    return ids


def _new_id(connection: Connection, table: Table, **values: object) -> int:
    key = connection.execute(insert(table).values(values)).inserted_primary_key
    assert key is not None
    return int(key[0])


def _put(connection: Connection, table: Table, key: dict[str, object], values: dict[str, object]) -> None:
    """Update the row that has this key, or insert it: nobody else writes meanwhile."""
    matches = [table.c[name] == value for name, value in key.items()]
    if not connection.execute(update(table).where(*matches).values(values)).rowcount:
        connection.execute(insert(table).values(key | values))
