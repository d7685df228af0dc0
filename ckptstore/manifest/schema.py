"""Creates a manifest, reads which schema it has, and upgrades it.

An older manifest is upgraded by running the revisions in `migrations/`; a new one is created from
``migrations/schema.sql``, the result of all revisions together, which `tools/write_schema.py` writes and a test
compares. A creation and each upgrade are one transaction: killed at any instant it leaves what was there before, and
the next opening for writing does it again. alembic is imported only when there are revisions to run, or when a manifest
has a revision that this code does not write: importing it takes a third of a second.
"""

from __future__ import annotations

import sqlite3
import threading
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import Connection, Engine, NullPool, create_engine, insert

from ckptstore.errors import (
    CorruptManifestError,
    NotAStoreError,
    SchemaError,
    SchemaTooNewError,
    SchemaTooOldError,
    StorageError,
    StoreNotFoundError,
)
from ckptstore.manifest.engine import (
    APPLICATION_ID,
    MIGRATION_PRAGMAS,
    WRITES,
    apply_pragmas,
    begin_explicitly,
    connect,
    engine_for,
    roll_back_hot_journal,
    uri_of,
)
from ckptstore.manifest.sqlite_errors import FOREIGN_ERRORS, needs_rollback_of_hot_journal, translated
from ckptstore.manifest.tables import STORE
from ckptstore.storage.files import fsync_directory, rename_to_new, unlink
from ckptstore.storage.layout import Layout
from ckptstore.system import fork_safety

if TYPE_CHECKING:
    from alembic.config import Config

# The newest revision: what this code reads and writes.
HEAD = "0006"

# The result of all revisions, beside them; its first line names the last.
SCHEMA = "schema.sql"

# Where the revisions lie: in the installed package, or beside it in a checkout.
_HERE = Path(__file__).resolve().parent.parent
MIGRATIONS: tuple[Path, ...] = (_HERE / "migrations", _HERE.parent / "migrations")

# alembic keeps the revision in progress in module globals.
_migrating = threading.Lock()


def open_manifest(path: Path, *, read_only: bool) -> Engine:
    """Return an engine on the manifest at `path`, which has schema `HEAD` when this returns.

    For writing, a missing manifest is created and an older one upgraded, after a backup beside it; the caller
    holds the store's lock. A crash meanwhile leaves no store, or the older schema as it was, and perhaps the
    backup.

    Args:
        path: The manifest file; its directory must exist.
        read_only: True to change nothing.

    Raises:
        StoreNotFoundError: Read-only, and there is no store.
        NotAStoreError: The file is another program's database, or a directory.
        CorruptManifestError: It is damaged, or empty though there are payloads.
        SchemaTooNewError: A newer ckptstore made it.
        SchemaTooOldError: Read-only, and an older one did.
        StorageError: The disk failed, or this process may not do what is needed.
    """
    found = schema_of(path)
    if found == HEAD:
        return engine_for(path, read_only=read_only)
    if found is None:
        if read_only:
            raise StoreNotFoundError(path=path.parent)
        create(path)
    else:
        error = schema_error(path, found)
        if read_only or isinstance(error, SchemaTooNewError):
            raise error
        back_up(path, found)
        upgrade(path)
    return engine_for(path, read_only=read_only)


def check_manifest(path: Path) -> None:
    """Raise what `open_manifest` for writing would raise of the file as it is; changes nothing.

    A missing manifest, and one of an older schema, are fine.

    Raises:
        NotAStoreError: The file is another program's database, or a directory.
        CorruptManifestError: It is damaged, or empty though there are payloads.
        SchemaTooNewError: A newer ckptstore made it.
        StorageError: It cannot be read.
    """
    found = schema_of(path)
    if found is not None and found != HEAD:
        error = schema_error(path, found)
        if isinstance(error, SchemaTooNewError):
            raise error


def schema_of(path: Path) -> str | None:
    """Return the revision of the manifest at `path`, or None where there is none yet; changes nothing.

    A file without a table is what a crash during the creation leaves; it counts as none if there are no payloads beside
    it.

    Raises:
        NotAStoreError: The file is another program's database, or a directory.
        CorruptManifestError: It is damaged, or empty though there are payloads.
        StorageError: It cannot be read.
    """
    if path.is_dir():
        raise NotAStoreError(path=path, reason="it is a directory")
    if not path.exists():
        return None
    try:
        found = _read_revision(path)
    except sqlite3.Error as error:
        if not needs_rollback_of_hot_journal(error):
            raise translated(error, path) from error
        roll_back_hot_journal(path)
        found = schema_of(path)
    if found is None and Layout(path.parent).holds_payloads():
        raise CorruptManifestError(path=path, reason="it is empty, though there are payloads")
    return found


def _read_revision(path: Path) -> str | None:
    with closing(connect(path, "ro")) as connection:
        connection.execute("BEGIN")
        ((application_id,),) = connection.execute("PRAGMA application_id").fetchall()
        tables = {
            name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        }
        if application_id != APPLICATION_ID and (tables or application_id):
            raise NotAStoreError(path=path, reason="it is another program's database")
        if not tables:
            return None
        if "alembic_version" not in tables:
            raise CorruptManifestError(path=path, reason="it does not say which schema it has")
        rows = connection.execute("SELECT version_num FROM alembic_version").fetchall()
        if len(rows) != 1:
            raise CorruptManifestError(path=path, reason=f"it says {len(rows)} times which schema it has")
        return str(rows[0][0])


def schema_error(path: Path, found: str) -> SchemaError:
    """Return the error for a manifest whose revision is not `HEAD`: too old if it is known, else too new."""
    from alembic.script import ScriptDirectory

    known = {script.revision for script in ScriptDirectory.from_config(_config()).walk_revisions()}
    kind = SchemaTooOldError if found in known else SchemaTooNewError
    return kind(path=path, found=found, known=HEAD)


def create(path: Path) -> None:
    """Create a manifest of schema `HEAD`, in one transaction; one that another process has created by then stays.

    Raises:
        StorageError: The disk failed; whether the COMMIT became durable shows at the next opening.
    """
    dump = _migrations() / SCHEMA
    first, _, text = dump.read_text(encoding="utf-8").partition("\n") if dump.is_file() else ("", "", "")
    if first != f"-- {HEAD}":
        upgrade(path)  # while a new revision is being written
        return
    with migration(path) as connection:
        if connection.exec_driver_sql("SELECT 1 FROM sqlite_master WHERE name = 'alembic_version'").first():
            return
        for statement in text.split(";\n"):
            if statement.strip():
                connection.exec_driver_sql(statement)
        new = {"id": 1, "uuid": str(uuid.uuid4()), "created_at": datetime.now(UTC), "next_version": 1}
        connection.execute(insert(STORE.table).values(new))


def upgrade(path: Path) -> None:
    """Create the manifest, or bring it to `HEAD`, in one transaction.

    Raises:
        SchemaError: The revisions do not lead there.
        CorruptManifestError: Rows refer to what is not there; nothing was changed.
        StorageError: The disk failed; whether the COMMIT became durable shows at the next opening.
    """
    from alembic import command
    from alembic.util import CommandError

    config = _config()
    try:
        with migration(path) as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
    except CommandError as error:
        raise SchemaError(f"{path}: the schema cannot be brought to {HEAD}: {error}") from error


@contextmanager
def migration(path: Path) -> Iterator[Connection]:
    """Open the one transaction in which revisions run, and commit it when the block ends well.

    Foreign keys are off in it, so that a table can be made again under its name, and are checked before the COMMIT.

    Args:
        path: The manifest file; created if there is none.

    Raises:
        CorruptManifestError: Rows refer to what is not there; nothing was changed.
        StorageError: The disk failed.
    """
    engine = create_engine("sqlite://", creator=partial(_connect_for_migration, path), poolclass=NullPool)
    begin_explicitly(engine)
    try:
        with (
            fork_safety.no_fork(),
            _migrating,
            engine.connect().execution_options(**{WRITES: True}) as connection,
        ):
            connection.begin()
            yield connection
            connection.exec_driver_sql(f"PRAGMA application_id = {APPLICATION_ID}")
            dangling = connection.exec_driver_sql("PRAGMA foreign_key_check").fetchall()
            if dangling:
                raise CorruptManifestError(
                    path=path, reason=f"{len(dangling)} rows refer to rows that are not there"
                )
            connection.commit()
    except FOREIGN_ERRORS as error:
        raise translated(error, path) from error


def _connect_for_migration(path: Path) -> sqlite3.Connection:
    return apply_pragmas(connect(path, "rwc"), path, MIGRATION_PRAGMAS)


def back_up(path: Path, revision: str) -> Path:
    """Copy the manifest to ``manifest-<revision>-<UTC time>.backup.sqlite`` beside it, and return that path.

    SQLite copies it, to a temporary name; the copy is durable when this returns. A crash leaves that; the
    next backup removes it.

    Raises:
        StorageError: There is no room, or the directory cannot be written.
    """
    moment = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
    partial_copy = path.with_name(f"{path.stem}.backup.partial")
    target = path.with_name(f"{path.stem}-{revision}-{moment}.backup.sqlite")
    unlink(partial_copy)
    try:
        with closing(connect(path, "rw")) as connection:
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("VACUUM INTO ?", (uri_of(partial_copy),))
    except sqlite3.Error as error:
        unlink(partial_copy)
        raise translated(error, path) from error
    rename_to_new(partial_copy, target)
    fsync_directory(path.parent)
    return target


def _config() -> Config:
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(_migrations()).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config


def _migrations() -> Path:
    for directory in MIGRATIONS:
        if (directory / "env.py").is_file():
            return directory
    missing = FileNotFoundError(2, "the migrations are missing from the installation")
    raise StorageError(operation="open", path=MIGRATIONS[0], error=missing, hint="install ckptstore again")
