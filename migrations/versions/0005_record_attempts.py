"""Record each attempt at a run: the process that trained it, where and with which code, and how it ended."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

REASONS = "'finished', 'preempted', 'interrupted', 'killed', 'oom', 'disk_full', 'nan', 'exception', 'hang', 'unknown'"

ATTEMPT_LIST = """
CREATE VIEW attempt_list AS
SELECT
    runs.name AS run,
    attempts.attempt,
    attempts.started_at,
    attempts.ended_at,
    attempts.reason,
    attempts.exit_code,
    attempts.signal,
    attempts.detail,
    attempts.resumed_from,
    attempts.batches_lost,
    attempts.host,
    attempts.pid,
    attempts.command,
    attempts.directory,
    attempts.git_commit,
    attempts.git_dirty,
    attempts.versions,
    attempts.devices,
    attempts.environment,
    attempts.supervised,
    attempts.log,
    attempts.diff
FROM attempts
JOIN runs ON runs.id = attempts.run_id
"""


def upgrade() -> None:
    op.create_table(
        "attempts",
        sa.Column("run_id", sa.Integer, nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("started_at", sa.Text, nullable=False),
        sa.Column("ended_at", sa.Text),
        sa.Column("host", sa.Text, nullable=False),
        sa.Column("pid", sa.BigInteger, nullable=False),
        sa.Column("boot_id", sa.Text),
        sa.Column("oom_kills", sa.BigInteger),
        sa.Column("command", sa.Text, nullable=False),
        sa.Column("directory", sa.Text, nullable=False),
        sa.Column("git_commit", sa.Text),
        sa.Column("git_dirty", _boolean("ck_attempts_git_dirty")),
        sa.Column("versions", sa.Text, nullable=False),
        sa.Column("devices", sa.Text, nullable=False),
        sa.Column("environment", sa.Text, nullable=False),
        sa.Column("supervised", _boolean("ck_attempts_supervised"), nullable=False),
        sa.Column("resumed_from", sa.Integer),
        sa.Column("batches_lost", sa.BigInteger),
        sa.Column("exit_code", sa.Integer),
        sa.Column("signal", sa.Text),
        sa.Column("reason", sa.Text),
        sa.Column("detail", sa.Text, nullable=False),
        sa.Column("log", sa.Text),
        sa.Column("diff", sa.Text),
        sa.PrimaryKeyConstraint("run_id", "attempt", name=op.f("pk_attempts")),
        sa.CheckConstraint("attempt >= 1", name=op.f("ck_attempts_attempt")),
        sa.CheckConstraint(f"reason IN ({REASONS})", name=op.f("ck_attempts_reason")),
        sa.CheckConstraint("(reason IS NULL) = (ended_at IS NULL)", name=op.f("ck_attempts_ended")),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name=op.f("fk_attempts_run_id")),
        sqlite_with_rowid=False,
    )
    op.execute(ATTEMPT_LIST.strip())


def downgrade() -> None:
    raise NotImplementedError("put back the backup that was made beside the manifest")


def _boolean(constraint: str) -> sa.Boolean:
    return sa.Boolean(create_constraint=True, name=op.f(constraint))
