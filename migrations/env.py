"""Runs the revisions on the connection that `ckptstore.manifest.schema` provides, or on a developer's file.

From the command line, in the repository's root: `alembic -x manifest=scratch.sqlite upgrade head`, and then
`alembic -x manifest=scratch.sqlite check`, or `... revision --autogenerate --rev-id 0002 -m "what it does"`.
"""

from __future__ import annotations

from pathlib import Path

from alembic import context
from sqlalchemy import Connection


def run(connection: Connection) -> None:
    """Run the revisions inside the transaction that is open on `connection`."""
    from ckptstore.manifest.tables import metadata  # for comparison; the revisions themselves never use it

    context.configure(
        connection=connection, target_metadata=metadata, render_as_batch=True, transactional_ddl=True
    )
    with context.begin_transaction():
        context.run_migrations()


def run_for_developers() -> None:
    """Run the revisions on the manifest named by `-x manifest=PATH`, which is created if there is none."""
    from ckptstore.manifest.schema import migration

    path = context.get_x_argument(as_dictionary=True).get("manifest")
    if path is None or context.is_offline_mode():
        raise SystemExit("name a manifest: alembic -x manifest=scratch.sqlite upgrade head")
    with migration(Path(str(path))) as connection:
        run(connection)


provided = context.config.attributes.get("connection")
if provided is None:
    run_for_developers()
else:
    run(provided)
