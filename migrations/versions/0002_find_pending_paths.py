"""Index the published paths that are still pending, so that recovery need not read all of them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    pending = sa.text("pending")
    op.create_index(
        "published_pending", "published", ["path"], sqlite_where=pending, postgresql_where=pending
    )


def downgrade() -> None:
    raise NotImplementedError("put back the backup that was made beside the manifest")
