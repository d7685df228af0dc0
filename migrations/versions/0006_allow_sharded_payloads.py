"""Allow payloads of the format ``sharded``: SQLite changes a check only with the table, so it is made again."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

FORMATS = "'keras', 'weights', 'h5', 'sharded'"
STATES = "'complete', 'missing', 'damaged', 'deleting'"
KEEP_ROWS = """
CREATE TABLE checkpoints_0005 AS
SELECT
    version, run_id, epoch, batch, step, created_at, file, nbytes, digest, format, state, resumable, pinned, extra,
    blocked_s, total_s
FROM checkpoints
"""

PUT_BACK_ROWS = """
INSERT INTO checkpoints (
    version, run_id, epoch, batch, step, created_at, file, nbytes, digest, format, state, resumable, pinned, extra,
    blocked_s, total_s
)
SELECT
    version, run_id, epoch, batch, step, created_at, file, nbytes, digest, format, state, resumable, pinned, extra,
    blocked_s, total_s
FROM checkpoints_0005
"""


def upgrade() -> None:
    op.execute(KEEP_ROWS.strip())
    # Views and the other tables refer to the name, which is the same again.
    op.drop_table("checkpoints")
    _create_checkpoints()
    op.execute(PUT_BACK_ROWS.strip())
    op.drop_table("checkpoints_0005")
    _create_indexes()


def downgrade() -> None:
    raise NotImplementedError("put back the backup that was made beside the manifest")


def _create_checkpoints() -> None:
    op.create_table(
        "checkpoints",
        sa.Column("version", sa.Integer, nullable=False),
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
        sa.CheckConstraint(f"format IN ({FORMATS})", name=op.f("ck_checkpoints_format")),
        sa.CheckConstraint(f"state IN ({STATES})", name=op.f("ck_checkpoints_state")),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name=op.f("fk_checkpoints_run_id")),
    )


def _create_indexes() -> None:
    for name, columns in (
        ("checkpoints_by_state", ["state", "version"]),
        ("resume_points", ["state", "resumable", "version"]),
        ("resume_points_by_run", ["run_id", "state", "resumable", "version"]),
    ):
        op.create_index(name, "checkpoints", columns)
    complete, unpinned = sa.text("state = 'complete'"), sa.text("state = 'complete' AND NOT pinned")
    for name, columns, where in (
        ("checkpoints_by_epoch", ["run_id", "epoch", "version"], complete),
        ("checkpoints_by_step", ["run_id", "step", "version"], complete),
        ("checkpoints_by_time", ["run_id", "created_at", "version"], complete),
        ("unpinned_checkpoints", ["run_id", "version"], unpinned),
    ):
        op.create_index(name, "checkpoints", columns, sqlite_where=where, postgresql_where=where)


def _boolean(constraint: str) -> sa.Boolean:
    return sa.Boolean(create_constraint=True, name=op.f(constraint))
