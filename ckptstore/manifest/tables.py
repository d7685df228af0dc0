"""The manifest's tables, as typed SQLAlchemy columns.

Core tables rather than mapped classes: rows leave the manifest as frozen records, never as objects that
follow the database, and importing `sqlalchemy.orm` would add a quarter to the start of every command.

Each table is the one instance of a class, `CHECKPOINTS.version` say, so that type checkers know what a column
holds. Nothing here creates a table: the revisions in `migrations/` do, and a test compares both.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Double,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
    literal_column,
    text,
)

from ckptstore.manifest.column_types import JsonObject, JsonTexts, UtcTime
from ckptstore.records import END_REASONS

metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
    }
)


# A literal in every statement: whether a partial index applies must not depend on a bound parameter.
COMPLETE = literal_column("'complete'", Text)
UNPINNED = text("state = 'complete' AND NOT pinned")


class StoreTable:
    """The one row about the store itself; `next_version` only grows, so that no version is used twice."""

    id: Column[int] = Column("id", Integer, CheckConstraint("id = 1", name="one_row"), primary_key=True)
    uuid: Column[str] = Column("uuid", Text, nullable=False)
    created_at: Column[datetime] = Column("created_at", UtcTime, nullable=False)
    next_version: Column[int] = Column("next_version", Integer, nullable=False)
    table = Table(
        "store",
        metadata,
        id,
        uuid,
        created_at,
        next_version,
        CheckConstraint("next_version >= 1", name="next_version"),
    )


STORE = StoreTable()


class RunsTable:
    """Runs by name, each with the process that writes it, or last wrote it."""

    id: Column[int] = Column("id", Integer, primary_key=True)
    name: Column[str] = Column("name", Text, nullable=False)
    created_at: Column[datetime] = Column("created_at", UtcTime, nullable=False)
    holder_host: Column[str | None] = Column("holder_host", Text)
    holder_pid: Column[int | None] = Column("holder_pid", BigInteger)
    holder_started_at: Column[datetime | None] = Column("holder_started_at", UtcTime)
    table = Table(
        "runs",
        metadata,
        id,
        name,
        created_at,
        holder_host,
        holder_pid,
        holder_started_at,
        UniqueConstraint("name"),
        CheckConstraint(
            "(holder_host IS NULL) = (holder_pid IS NULL)"
            " AND (holder_host IS NULL) = (holder_started_at IS NULL)",
            name="holder",
        ),
    )


RUNS = RunsTable()


class WritersTable:
    """The token of the process that became each run's writer last; see `ckptstore.manifest.fences`."""

    run_id: Column[int] = Column("run_id", Integer, ForeignKey("runs.id"), primary_key=True)
    token: Column[str] = Column("token", Text, nullable=False)
    table = Table("writers", metadata, run_id, token, sqlite_with_rowid=False)


WRITERS = WritersTable()


class CheckpointsTable:
    """One row for each checkpoint."""

    version: Column[int] = Column("version", Integer, primary_key=True, autoincrement=False)
    run_id: Column[int] = Column("run_id", Integer, ForeignKey("runs.id"), nullable=False)
    epoch: Column[int] = Column("epoch", BigInteger, nullable=False)
    batch: Column[int | None] = Column("batch", BigInteger)
    step: Column[int | None] = Column("step", BigInteger)
    created_at: Column[datetime] = Column("created_at", UtcTime, nullable=False)
    file: Column[str] = Column("file", Text, nullable=False)
    nbytes: Column[int] = Column("nbytes", BigInteger, nullable=False)
    digest: Column[str] = Column("digest", Text, nullable=False)
    format: Column[str] = Column("format", Text, nullable=False)
    state: Column[str] = Column("state", Text, nullable=False)
    resumable: Column[bool] = Column(
        "resumable", Boolean(create_constraint=True, name="resumable"), nullable=False
    )
    pinned: Column[bool] = Column("pinned", Boolean(create_constraint=True, name="pinned"), nullable=False)
    extra: Column[Mapping[str, Any] | None] = Column("extra", JsonObject)
    blocked_s: Column[float | None] = Column("blocked_s", Double)
    total_s: Column[float | None] = Column("total_s", Double)
    table = Table(
        "checkpoints",
        metadata,
        version,
        run_id,
        epoch,
        batch,
        step,
        created_at,
        file,
        nbytes,
        digest,
        format,
        state,
        resumable,
        pinned,
        extra,
        blocked_s,
        total_s,
        # Also the newest of a run, and what the metrics below refer to.
        UniqueConstraint("run_id", "state", "version"),
        UniqueConstraint("file"),
        CheckConstraint("version >= 1", name="version"),
        CheckConstraint("epoch >= 0", name="epoch"),
        CheckConstraint("batch >= 0", name="batch"),
        CheckConstraint("step >= 0", name="step"),
        CheckConstraint("nbytes >= 0", name="nbytes"),
        CheckConstraint("format IN ('keras', 'weights', 'h5', 'sharded')", name="format"),
        CheckConstraint("state IN ('complete', 'missing', 'damaged', 'deleting')", name="state"),
        Index("checkpoints_by_state", state, version),
        Index("resume_points", state, resumable, version),
        Index("resume_points_by_run", run_id, state, resumable, version),
        Index("checkpoints_by_epoch", run_id, epoch, version, sqlite_where=state == COMPLETE),
        Index("checkpoints_by_step", run_id, step, version, sqlite_where=state == COMPLETE),
        Index("checkpoints_by_time", run_id, created_at, version, sqlite_where=state == COMPLETE),
        Index("unpinned_checkpoints", run_id, version, sqlite_where=UNPINNED),
    )


CHECKPOINTS = CheckpointsTable()


class MetricNamesTable:
    """Metrics by name, so that each value costs a small integer and not a text."""

    id: Column[int] = Column("id", Integer, primary_key=True)
    name: Column[str] = Column("name", Text, nullable=False)
    table = Table("metric_names", metadata, id, name, UniqueConstraint("name"))


METRIC_NAMES = MetricNamesTable()


class MetricsTable:
    """One row for each value; NULL is NaN, which SQLite cannot keep. Infinities are kept.

    `run_id` and `state` repeat those of the checkpoint, so that the best of a run is the end of an index,
    however many better ones are missing or being deleted. The foreign key holds them equal at every COMMIT.
    """

    version: Column[int] = Column("version", Integer, primary_key=True, autoincrement=False)
    metric_id: Column[int] = Column("metric_id", Integer, ForeignKey("metric_names.id"), primary_key=True)
    run_id: Column[int] = Column("run_id", Integer, nullable=False)
    state: Column[str] = Column("state", Text, nullable=False)
    value: Column[float | None] = Column("value", Double)
    table = Table(
        "metrics",
        metadata,
        version,
        metric_id,
        run_id,
        state,
        value,
        ForeignKeyConstraint(
            ["run_id", "state", "version"],
            ["checkpoints.run_id", "checkpoints.state", "checkpoints.version"],
            deferrable=True,
            initially="DEFERRED",
        ),
        # Partial on PostgreSQL too, as the revision says; naming its dialect here would import it at every start.
        Index(
            "metrics_by_value",
            metric_id,
            value,
            version,
            sqlite_where=state == COMPLETE,
        ),
        Index(
            "metrics_by_run_and_value",
            metric_id,
            run_id,
            value,
            version,
            sqlite_where=state == COMPLETE,
        ),
        sqlite_with_rowid=False,
    )


METRICS = MetricsTable()


class TagsTable:
    """Names that people gave to checkpoints; each names one checkpoint."""

    name: Column[str] = Column("name", Text, primary_key=True)
    version: Column[int] = Column("version", Integer, ForeignKey("checkpoints.version"), nullable=False)
    created_at: Column[datetime] = Column("created_at", UtcTime, nullable=False)
    table = Table(
        "tags",
        metadata,
        name,
        version,
        created_at,
        Index("tags_by_version", version),
        sqlite_with_rowid=False,
    )


TAGS = TagsTable()


class MonitorsTable:
    """The metrics that a run's callback monitors, each with its better direction."""

    run_id: Column[int] = Column("run_id", Integer, ForeignKey("runs.id"), primary_key=True)
    metric_id: Column[int] = Column("metric_id", Integer, ForeignKey("metric_names.id"), primary_key=True)
    mode: Column[str] = Column("mode", Text, nullable=False)
    table = Table(
        "monitors",
        metadata,
        run_id,
        metric_id,
        mode,
        CheckConstraint("mode IN ('min', 'max')", name="mode"),
        sqlite_with_rowid=False,
    )


MONITORS = MonitorsTable()


class PublishedTable:
    """The checkpoint that each of the user's paths shows; `pending` from the commit until the path is switched."""

    path: Column[str] = Column("path", Text, primary_key=True)
    run_id: Column[int] = Column("run_id", Integer, ForeignKey("runs.id"), nullable=False)
    version: Column[int] = Column("version", Integer, ForeignKey("checkpoints.version"), nullable=False)
    pending: Column[bool] = Column("pending", Boolean(create_constraint=True, name="pending"), nullable=False)
    table = Table(
        "published",
        metadata,
        path,
        run_id,
        version,
        pending,
        Index("published_by_version", version),
        Index("published_pending", path, sqlite_where=pending),
        sqlite_with_rowid=False,
    )


PUBLISHED = PublishedTable()


class AttemptsTable:
    """The processes that trained each run; paths in the store are relative to it. An open attempt has no reason yet.

    `boot_id` and `oom_kills` are as they were at the start: they tell how an attempt ended that was killed.
    """

    run_id: Column[int] = Column("run_id", Integer, ForeignKey("runs.id"), primary_key=True)
    attempt: Column[int] = Column("attempt", Integer, primary_key=True, autoincrement=False)
    started_at: Column[datetime] = Column("started_at", UtcTime, nullable=False)
    ended_at: Column[datetime | None] = Column("ended_at", UtcTime)
    host: Column[str] = Column("host", Text, nullable=False)
    pid: Column[int] = Column("pid", BigInteger, nullable=False)
    boot_id: Column[str | None] = Column("boot_id", Text)
    oom_kills: Column[int | None] = Column("oom_kills", BigInteger)
    command: Column[tuple[str, ...]] = Column("command", JsonTexts, nullable=False)
    directory: Column[str] = Column("directory", Text, nullable=False)
    git_commit: Column[str | None] = Column("git_commit", Text)
    git_dirty: Column[bool | None] = Column("git_dirty", Boolean(create_constraint=True, name="git_dirty"))
    versions: Column[Mapping[str, Any]] = Column("versions", JsonObject, nullable=False)
    devices: Column[tuple[str, ...]] = Column("devices", JsonTexts, nullable=False)
    environment: Column[Mapping[str, Any]] = Column("environment", JsonObject, nullable=False)
    supervised: Column[bool] = Column(
        "supervised", Boolean(create_constraint=True, name="supervised"), nullable=False
    )
    resumed_from: Column[int | None] = Column("resumed_from", Integer)
    batches_lost: Column[int | None] = Column("batches_lost", BigInteger)
    exit_code: Column[int | None] = Column("exit_code", Integer)
    signal: Column[str | None] = Column("signal", Text)
    reason: Column[str | None] = Column("reason", Text)
    detail: Column[Mapping[str, Any]] = Column("detail", JsonObject, nullable=False)
    log: Column[str | None] = Column("log", Text)
    diff: Column[str | None] = Column("diff", Text)
    table = Table(
        "attempts", metadata, run_id, attempt, started_at, ended_at, host, pid, boot_id, oom_kills, command, directory,
        git_commit, git_dirty, versions, devices, environment, supervised, resumed_from, batches_lost, exit_code,
        signal, reason, detail, log, diff,
        CheckConstraint("attempt >= 1", name="attempt"),
        CheckConstraint(f"reason IN ({', '.join(map(repr, END_REASONS))})", name="reason"),
        CheckConstraint("(reason IS NULL) = (ended_at IS NULL)", name="ended"),
        sqlite_with_rowid=False,
    )  # fmt: skip


ATTEMPTS = AttemptsTable()


class EpochsTable:
    """The checkpoint that represents each epoch of a run: that of the epoch's end, or else the newest.

    Rows outlive their checkpoint, so `version` is no foreign key.
    """

    run_id: Column[int] = Column("run_id", Integer, ForeignKey("runs.id"), primary_key=True)
    epoch: Column[int] = Column("epoch", BigInteger, primary_key=True, autoincrement=False)
    version: Column[int] = Column("version", Integer, nullable=False)
    batch: Column[int | None] = Column("batch", BigInteger)
    step: Column[int | None] = Column("step", BigInteger)
    created_at: Column[datetime] = Column("created_at", UtcTime, nullable=False)
    table = Table(
        "epochs", metadata, run_id, epoch, version, batch, step, created_at, sqlite_with_rowid=False
    )


EPOCHS = EpochsTable()


class EpochMetricsTable:
    """The metrics of the epochs; NULL is NaN."""

    run_id: Column[int] = Column("run_id", Integer, primary_key=True, autoincrement=False)
    epoch: Column[int] = Column("epoch", BigInteger, primary_key=True, autoincrement=False)
    metric_id: Column[int] = Column("metric_id", Integer, ForeignKey("metric_names.id"), primary_key=True)
    value: Column[float | None] = Column("value", Double)
    table = Table(
        "epoch_metrics",
        metadata,
        run_id,
        epoch,
        metric_id,
        value,
        ForeignKeyConstraint(["run_id", "epoch"], ["epochs.run_id", "epochs.epoch"]),
        sqlite_with_rowid=False,
    )


EPOCH_METRICS = EpochMetricsTable()


class RetentionTable:
    """The last check of each run by retention: its policy, the newest event it saw, and the bytes of what it kept."""

    run_id: Column[int] = Column("run_id", Integer, ForeignKey("runs.id"), primary_key=True)
    policy: Column[str] = Column("policy", Text, nullable=False)
    event_id: Column[int] = Column("event_id", Integer, nullable=False)
    newest_at: Column[datetime | None] = Column("newest_at", UtcTime)
    nbytes: Column[int] = Column("nbytes", BigInteger, nullable=False)
    table = Table("retention", metadata, run_id, policy, event_id, newest_at, nbytes, sqlite_with_rowid=False)


RETENTION = RetentionTable()


class EventsTable:
    """Events in order; `version` may name a checkpoint that is gone, so it is no foreign key."""

    id: Column[int] = Column("id", Integer, primary_key=True)
    at: Column[datetime] = Column("at", UtcTime, nullable=False)
    kind: Column[str] = Column("kind", Text, nullable=False)
    run_id: Column[int | None] = Column("run_id", Integer, ForeignKey("runs.id"))
    version: Column[int | None] = Column("version", Integer)
    detail: Column[Mapping[str, Any] | None] = Column("detail", JsonObject)
    table = Table(
        "events",
        metadata,
        id,
        at,
        kind,
        run_id,
        version,
        detail,
        Index("events_by_kind_and_run", kind, run_id),
        Index("events_by_version", version),
    )


EVENTS = EventsTable()
