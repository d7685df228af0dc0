"""Create the manifest: its tables, their indexes, and the views that people query.

Carries its own, frozen tables and never imports `ckptstore.manifest.tables`, which will have changed by the next
revision.
"""

from __future__ import annotations

import uuid
from datetime import UTC, datetime

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

# NaN is NULL here, as SQLite keeps it.
CHECKPOINT_METRICS = """
CREATE VIEW checkpoint_metrics AS
SELECT
    checkpoints.version,
    runs.name AS run,
    checkpoints.epoch,
    checkpoints.batch,
    checkpoints.step,
    metric_names.name AS metric,
    metrics.value,
    checkpoints.created_at,
    checkpoints.file,
    checkpoints.state,
    checkpoints.resumable,
    checkpoints.pinned
FROM metrics
JOIN metric_names ON metric_names.id = metrics.metric_id
JOIN checkpoints ON checkpoints.version = metrics.version
JOIN runs ON runs.id = checkpoints.run_id
"""

CHECKPOINT_LIST = """
CREATE VIEW checkpoint_list AS
SELECT
    checkpoints.version,
    runs.name AS run,
    checkpoints.epoch,
    checkpoints.batch,
    checkpoints.step,
    checkpoints.created_at,
    checkpoints.file,
    checkpoints.nbytes,
    checkpoints.digest,
    checkpoints.format,
    checkpoints.state,
    checkpoints.resumable,
    checkpoints.pinned,
    (
        SELECT {joined}(named.name, ', ')
        FROM (SELECT tags.name FROM tags WHERE tags.version = checkpoints.version ORDER BY tags.name) AS named
    ) AS tags,
    checkpoints.blocked_s,
    checkpoints.total_s
FROM checkpoints
JOIN runs ON runs.id = checkpoints.run_id
"""

# Of equal values the lower version is given, as the store's own `best` does.
METRIC_RANGES = """
CREATE VIEW metric_ranges AS
SELECT
    extremes.run,
    extremes.metric,
    extremes.min_value,
    (
        SELECT min(metrics.version) FROM metrics
        WHERE metrics.metric_id = extremes.metric_id AND metrics.run_id = extremes.run_id
            AND metrics.state = 'complete' AND metrics.value = extremes.min_value
    ) AS min_version,
    extremes.max_value,
    (
        SELECT min(metrics.version) FROM metrics
        WHERE metrics.metric_id = extremes.metric_id AND metrics.run_id = extremes.run_id
            AND metrics.state = 'complete' AND metrics.value = extremes.max_value
    ) AS max_version
FROM (
    SELECT
        runs.id AS run_id,
        runs.name AS run,
        metric_names.id AS metric_id,
        metric_names.name AS metric,
        (
            SELECT min(metrics.value) FROM metrics
            WHERE metrics.metric_id = metric_names.id AND metrics.run_id = runs.id
                AND metrics.state = 'complete'
        ) AS min_value,
        (
            SELECT max(metrics.value) FROM metrics
            WHERE metrics.metric_id = metric_names.id AND metrics.run_id = runs.id
                AND metrics.state = 'complete'
        ) AS max_value
    FROM runs CROSS JOIN metric_names
) AS extremes
WHERE extremes.min_value IS NOT NULL
"""


def upgrade() -> None:
    _create_store()
    _create_runs()
    _create_checkpoints()
    _create_metrics()
    _create_names_and_paths()
    _create_events()
    joined = "group_concat" if op.get_context().dialect.name == "sqlite" else "string_agg"
    for view in (CHECKPOINT_METRICS, CHECKPOINT_LIST.format(joined=joined), METRIC_RANGES):
        op.execute(view.strip())


def downgrade() -> None:
    raise NotImplementedError("put back the backup that was made beside the manifest")


def _create_store() -> None:
    table = op.create_table(
        "store",
        sa.Column("id", sa.Integer, sa.CheckConstraint("id = 1", name=op.f("ck_store_one_row"))),
        sa.Column("uuid", sa.Text, nullable=False),
        sa.Column("created_at", sa.Text, nullable=False),
        sa.Column("next_version", sa.Integer, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_store")),
        sa.CheckConstraint("next_version >= 1", name=op.f("ck_store_next_version")),
    )
    created_at = datetime.now(UTC).isoformat(timespec="microseconds")
    row = {"id": 1, "uuid": str(uuid.uuid4()), "created_at": created_at, "next_version": 1}
    op.bulk_insert(table, [row])


def _create_runs() -> None:
    op.create_table(
        "runs",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("created_at", sa.Text, nullable=False),
        sa.Column("holder_host", sa.Text),
        sa.Column("holder_pid", sa.BigInteger),
        sa.Column("holder_started_at", sa.Text),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_runs")),
        sa.UniqueConstraint("name", name=op.f("uq_runs_name")),
        sa.CheckConstraint(
            "(holder_host IS NULL) = (holder_pid IS NULL)"
            " AND (holder_host IS NULL) = (holder_started_at IS NULL)",
            name=op.f("ck_runs_holder"),
        ),
    )


def _create_checkpoints() -> None:
    op.create_table(
        "checkpoints",
        sa.Column("version", sa.Integer, nullable=False, autoincrement=False),
        sa.Column("run_id", sa.Integer, nullable=False),
        sa.Column("epoch", sa.BigInteger, nullable=False),
        sa.Column("batch", sa.BigInteger),
        sa.Column("step", sa.BigInteger),
        sa.Column("created_at", sa.Text, nullable=False),
        sa.Column("file", sa.Text, nullable=False),
        sa.Column("nbytes", sa.BigInteger, nullable=False),
        sa.Column("digest", sa.Text, nullable=False),
        sa.Column("format", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("resumable", _boolean("ck_checkpoints_resumable"), nullable=False),
        sa.Column("pinned", _boolean("ck_checkpoints_pinned"), nullable=False),
        sa.Column("extra", sa.Text),
        sa.Column("blocked_s", sa.Double),
        sa.Column("total_s", sa.Double),
        sa.PrimaryKeyConstraint("version", name=op.f("pk_checkpoints")),
        sa.UniqueConstraint("run_id", "state", "version", name=op.f("uq_checkpoints_run_id_state_version")),
        sa.UniqueConstraint("file", name=op.f("uq_checkpoints_file")),
        sa.CheckConstraint("version >= 1", name=op.f("ck_checkpoints_version")),
        sa.CheckConstraint("epoch >= 0", name=op.f("ck_checkpoints_epoch")),
        sa.CheckConstraint("batch >= 0", name=op.f("ck_checkpoints_batch")),
        sa.CheckConstraint("step >= 0", name=op.f("ck_checkpoints_step")),
        sa.CheckConstraint("nbytes >= 0", name=op.f("ck_checkpoints_nbytes")),
        sa.CheckConstraint("format IN ('keras', 'weights', 'h5')", name=op.f("ck_checkpoints_format")),
        sa.CheckConstraint(
            "state IN ('complete', 'missing', 'damaged', 'deleting')", name=op.f("ck_checkpoints_state")
        ),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name=op.f("fk_checkpoints_run_id")),
    )
    op.create_index("checkpoints_by_state", "checkpoints", ["state", "version"])
    op.create_index("resume_points", "checkpoints", ["state", "resumable", "version"])
    op.create_index("resume_points_by_run", "checkpoints", ["run_id", "state", "resumable", "version"])


def _create_metrics() -> None:
    op.create_table(
        "metric_names",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_metric_names")),
        sa.UniqueConstraint("name", name=op.f("uq_metric_names_name")),
    )
    op.create_table(
        "metrics",
        sa.Column("version", sa.Integer, nullable=False, autoincrement=False),
        sa.Column("metric_id", sa.Integer, nullable=False),
        sa.Column("run_id", sa.Integer, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("value", sa.Double),
        sa.PrimaryKeyConstraint("version", "metric_id", name=op.f("pk_metrics")),
        sa.ForeignKeyConstraint(
            ["run_id", "state", "version"],
            ["checkpoints.run_id", "checkpoints.state", "checkpoints.version"],
            name=op.f("fk_metrics_run_id_state_version"),
            deferrable=True,
            initially="DEFERRED",
        ),
        sa.ForeignKeyConstraint(["metric_id"], ["metric_names.id"], name=op.f("fk_metrics_metric_id")),
        sqlite_with_rowid=False,
    )
    complete = sa.text("state = 'complete'")
    for name, columns in (
        ("metrics_by_value", ["metric_id", "value", "version"]),
        ("metrics_by_run_and_value", ["metric_id", "run_id", "value", "version"]),
    ):
        op.create_index(name, "metrics", columns, sqlite_where=complete, postgresql_where=complete)


def _create_names_and_paths() -> None:
    op.create_table(
        "tags",
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("created_at", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_tags")),
        sa.ForeignKeyConstraint(["version"], ["checkpoints.version"], name=op.f("fk_tags_version")),
        sqlite_with_rowid=False,
    )
    op.create_index("tags_by_version", "tags", ["version"])
    op.create_table(
        "monitors",
        sa.Column("run_id", sa.Integer, nullable=False),
        sa.Column("metric_id", sa.Integer, nullable=False),
        sa.Column("mode", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("run_id", "metric_id", name=op.f("pk_monitors")),
        sa.CheckConstraint("mode IN ('min', 'max')", name=op.f("ck_monitors_mode")),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name=op.f("fk_monitors_run_id")),
        sa.ForeignKeyConstraint(["metric_id"], ["metric_names.id"], name=op.f("fk_monitors_metric_id")),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "published",
        sa.Column("path", sa.Text, nullable=False),
        sa.Column("run_id", sa.Integer, nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("pending", _boolean("ck_published_pending"), nullable=False),
        sa.PrimaryKeyConstraint("path", name=op.f("pk_published")),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name=op.f("fk_published_run_id")),
        sa.ForeignKeyConstraint(["version"], ["checkpoints.version"], name=op.f("fk_published_version")),
        sqlite_with_rowid=False,
    )
    op.create_index("published_by_version", "published", ["version"])


def _create_events() -> None:
    op.create_table(
        "events",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("at", sa.Text, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("run_id", sa.Integer),
        sa.Column("version", sa.Integer),
        sa.Column("detail", sa.Text),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_events")),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name=op.f("fk_events_run_id")),
    )
    op.create_index("events_by_kind_and_run", "events", ["kind", "run_id"])
    op.create_index("events_by_version", "events", ["version"])


def _boolean(constraint: str) -> sa.Boolean:
    return sa.Boolean(create_constraint=True, name=op.f(constraint))
