"""Record a token of each run's writer, so that a commit of a writer that was replaced is refused."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "writers",
        sa.Column("run_id", sa.Integer, nullable=False),
        sa.Column("token", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("run_id", name=op.f("pk_writers")),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name=op.f("fk_writers_run_id")),
        sqlite_with_rowid=False,
    )


def downgrade() -> None:
    raise NotImplementedError("put back the backup that was made beside the manifest")
