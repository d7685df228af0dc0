"""Keep each run's metrics by epoch when its checkpoints are removed, and add indexes for retention and queries."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

# For each epoch its last checkpoint: of the newest attempt if there is one, then of the epoch's end, then the newest.
FILL_EPOCHS = """
INSERT INTO epochs (run_id, epoch, version, batch, step, created_at)
SELECT run_id, epoch, version, batch, step, created_at FROM (
    SELECT
        checkpoints.run_id, checkpoints.epoch, checkpoints.version, checkpoints.batch, checkpoints.step,
        checkpoints.created_at,
        row_number() OVER (
            PARTITION BY checkpoints.run_id, checkpoints.epoch
            ORDER BY
                CASE WHEN checkpoints.version >= coalesce(attempts.first, 1) THEN 0 ELSE 1 END,
                CASE WHEN checkpoints.batch IS NULL THEN 0 ELSE 1 END,
                checkpoints.version DESC
        ) AS place
    FROM checkpoints
    LEFT JOIN (
        SELECT events.run_id, max(events.version) AS first FROM events WHERE events.kind = 'began'
        GROUP BY events.run_id
    ) AS attempts ON attempts.run_id = checkpoints.run_id
) AS ranked
WHERE place = 1
"""

FILL_EPOCH_METRICS = """
INSERT INTO epoch_metrics (run_id, epoch, metric_id, value)
SELECT epochs.run_id, epochs.epoch, metrics.metric_id, metrics.value
FROM epochs JOIN metrics ON metrics.version = epochs.version
"""

RUN_HISTORY = """
CREATE VIEW run_history AS
SELECT
    runs.name AS run,
    epochs.epoch,
    epochs.batch,
    epochs.step,
    metric_names.name AS metric,
    epoch_metrics.value,
    epochs.version,
    epochs.created_at
FROM epochs
JOIN runs ON runs.id = epochs.run_id
JOIN epoch_metrics ON epoch_metrics.run_id = epochs.run_id AND epoch_metrics.epoch = epochs.epoch
JOIN metric_names ON metric_names.id = epoch_metrics.metric_id
"""


def upgrade() -> None:
    _create_history()
    _create_retention()
    complete = sa.text("state = 'complete'")
    for name, columns in (
        ("checkpoints_by_epoch", ["run_id", "epoch", "version"]),
        ("checkpoints_by_step", ["run_id", "step", "version"]),
        ("checkpoints_by_time", ["run_id", "created_at", "version"]),
    ):
        op.create_index(name, "checkpoints", columns, sqlite_where=complete, postgresql_where=complete)
    unpinned = sa.text("state = 'complete' AND NOT pinned")
    op.create_index(
        "unpinned_checkpoints", "checkpoints", ["run_id", "version"],
        sqlite_where=unpinned, postgresql_where=unpinned,
    )  # fmt: skip
    for statement in (FILL_EPOCHS, FILL_EPOCH_METRICS, RUN_HISTORY):
        op.execute(statement.strip())


def downgrade() -> None:
    raise NotImplementedError("put back the backup that was made beside the manifest")


def _create_history() -> None:
    op.create_table(
        "epochs",
        sa.Column("run_id", sa.Integer, nullable=False),
        sa.Column("epoch", sa.BigInteger, nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("batch", sa.BigInteger),
        sa.Column("step", sa.BigInteger),
        sa.Column("created_at", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("run_id", "epoch", name=op.f("pk_epochs")),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name=op.f("fk_epochs_run_id")),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "epoch_metrics",
        sa.Column("run_id", sa.Integer, nullable=False),
        sa.Column("epoch", sa.BigInteger, nullable=False),
        sa.Column("metric_id", sa.Integer, nullable=False),
        sa.Column("value", sa.Double),
        sa.PrimaryKeyConstraint("run_id", "epoch", "metric_id", name=op.f("pk_epoch_metrics")),
        sa.ForeignKeyConstraint(
            ["run_id", "epoch"], ["epochs.run_id", "epochs.epoch"], name=op.f("fk_epoch_metrics_run_id_epoch")
        ),
        sa.ForeignKeyConstraint(["metric_id"], ["metric_names.id"], name=op.f("fk_epoch_metrics_metric_id")),
        sqlite_with_rowid=False,
    )


def _create_retention() -> None:
    op.create_table(
        "retention",
        sa.Column("run_id", sa.Integer, nullable=False),
        sa.Column("policy", sa.Text, nullable=False),
        sa.Column("event_id", sa.Integer, nullable=False),
        sa.Column("newest_at", sa.Text),
        sa.Column("nbytes", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("run_id", name=op.f("pk_retention")),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name=op.f("fk_retention_run_id")),
        sqlite_with_rowid=False,
    )
