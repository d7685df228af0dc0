"""Runs the revisions on the connection that `ckptstore.manifest.schema` hands in, or on a file of a developer's.

From the command line, in the repository's root: `alembic -x manifest=scratch.sqlite upgrade head`, and then
`alembic -x manifest=scratch.sqlite check`, or `... revision --autogenerate --rev-id 0002 -m "what it does"`.
"""

from __future__ import annotations

from pathlib import Path

from alembic import context
from sqlalchemy import Connection


def run(connection: Connection) -> None:
    """Run the revisions inside the transaction that is open on `connection`."""
    from ckptstore.manifest.tables import metadata  # to compare with; the revisions themselves never see it

    context.configure(
        connection=connection, target_metadata=metadata, render_as_batch=True, transactional_ddl=True
    )
    with context.begin_transaction():
        context.run_migrations()


def run_for_developers() -> None:
    """Run the revisions on the manifest named by `-x manifest=PATH`, which is made if there is none."""
    from ckptstore.manifest.schema import migration

    path = context.get_x_argument(as_dictionary=True).get("manifest")
    if path is None or context.is_offline_mode():
        raise SystemExit("say which manifest: alembic -x manifest=scratch.sqlite upgrade head")
    with migration(Path(str(path))) as connection:
        run(connection)


handed_in = context.config.attributes.get("connection")
if handed_in is None:
    run_for_developers()
else:
    run(handed_in)
