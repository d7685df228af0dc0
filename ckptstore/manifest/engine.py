"""Connections to SQLite: how the file is opened, and the settings of every connection.

The database file is never opened, copied or renamed by anything but SQLite: closing any other descriptor on
it would drop SQLite's locks. The journal is TRUNCATE and never WAL, and each commit is synced (FULL): that
keeps every acknowledged commit over a power cut, on network file systems too, and is verified on each
connection.
"""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote
from weakref import WeakSet

from sqlalchemy import Connection, Engine, QueuePool, create_engine, event

from ckptstore.errors import StorageError
from ckptstore.manifest.sqlite_errors import BUSY_TIMEOUT_S, translated
from ckptstore.storage.locks import locks_disabled
from ckptstore.system import fork_safety

# Identifies our files to `file` and to us (the ASCII letters "ckpt").
APPLICATION_ID = 0x636B7074

# Execution option of a connection whose transaction will write.
WRITES = "ckptstore_writes"

Access = Literal["ro", "rw", "rwc"]
Pragma = tuple[str, str, int | str]

_BUSY_TIMEOUT_MS = round(BUSY_TIMEOUT_S * 1000)
_ALWAYS: tuple[Pragma, ...] = (
    ("busy_timeout", str(_BUSY_TIMEOUT_MS), _BUSY_TIMEOUT_MS),
    ("trusted_schema", "OFF", 0),
)
_DURABLE: tuple[Pragma, ...] = (
    ("journal_mode", "TRUNCATE", "truncate"),
    ("synchronous", "FULL", 2),
    ("fullfsync", "ON", 1),
)
READER_PRAGMAS: tuple[Pragma, ...] = (*_ALWAYS, ("foreign_keys", "ON", 1), ("query_only", "ON", 1))
WRITER_PRAGMAS: tuple[Pragma, ...] = (*_ALWAYS, *_DURABLE, ("foreign_keys", "ON", 1))
# Foreign keys can only be switched outside a transaction, and must be off while a table is made again.
MIGRATION_PRAGMAS: tuple[Pragma, ...] = (*_ALWAYS, *_DURABLE, ("foreign_keys", "OFF", 0))


class _Connection(sqlite3.Connection):
    """A connection that closes its cursors when it is closed.

    SQLite keeps a connection, and its locks, as long as one of its statements is unfinished; and after an interrupt,
    the traceback keeps the cursor alive.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._cursors: WeakSet[sqlite3.Cursor] = WeakSet()
        super().__init__(*arguments, **options)

    def cursor(self, *arguments: Any) -> Any:
        cursor = super().cursor(*arguments)
        self._cursors.add(cursor)
        return cursor

    def close(self) -> None:
        for cursor in list(self._cursors):
            cursor.close()
        super().close()


def connect(path: Path, access: Access) -> sqlite3.Connection:
    """Open a connection, without our settings, that begins and ends no transaction by itself.

    Args:
        path: The database file.
        access: ``"ro"``, ``"rw"``, or ``"rwc"`` to make the file if there is none.

    Raises:
        sqlite3.Error: It cannot be opened. (That it is damaged shows only when it is read.)
    """
    # SQLite's own locks are left out where the user has disabled locks.
    locks = "&vfs=unix-none" if locks_disabled() else ""
    return sqlite3.connect(
        f"{uri_of(path)}?mode={access}{locks}",
        uri=True,
        timeout=BUSY_TIMEOUT_S,
        isolation_level=None,
        check_same_thread=False,
        factory=_Connection,
    )


def uri_of(path: Path) -> str:
    """Return the URI by which SQLite opens a path, whatever bytes it contains.

    Example:
        >>> uri_of(Path("/runs/50% #1?/m.sqlite"))
        'file:///runs/50%25%20%231%3F/m.sqlite'
    """
    return f"file://{quote(os.fsencode(path.absolute()))}"


def apply_pragmas(
    connection: sqlite3.Connection, path: Path, pragmas: tuple[Pragma, ...]
) -> sqlite3.Connection:
    """Set each PRAGMA and read it back; one that is not in force is an error, since safety depends on them.

    Returns:
        The connection; it is closed when a setting is refused.

    Raises:
        StorageError: A setting is not in force.
    """
    try:
        for name, value, expected in pragmas:
            connection.execute(f"PRAGMA {name} = {value}").fetchall()
            found = connection.execute(f"PRAGMA {name}").fetchone()
            if found != (expected,):
                problem = OSError(f"{name} is {found and found[0]!r} instead of {expected!r}")
                raise StorageError(operation="SQLite", path=path, error=problem)
    except BaseException:
        connection.close()
        raise
    return connection


def engine_for(path: Path, *, read_only: bool) -> Engine:
    """Return an engine on an existing manifest, with pooled connections that many threads may share.

    Transactions are begun by ``BEGIN``, or by ``BEGIN IMMEDIATE`` on a connection with the execution option
    `WRITES`: a transaction that reads first and writes later could fail halfway, without waiting, where
    another one writes.
    """
    engine = create_engine(
        "sqlite://", creator=partial(_connect_for_pool, path, read_only), poolclass=QueuePool, max_overflow=-1
    )
    begin_explicitly(engine)
    fork_safety.reset_in_child(engine)
    return engine


def begin_explicitly(engine: Engine) -> None:
    """Have SQLAlchemy begin transactions explicitly: the driver's own would leave out DDL and reading."""
    event.listen(engine, "begin", _begin)


def _connect_for_pool(path: Path, read_only: bool) -> sqlite3.Connection:
    if read_only:
        return apply_pragmas(connect(path, "ro"), path, READER_PRAGMAS)
    return apply_pragmas(connect(path, "rw"), path, WRITER_PRAGMAS)


def _begin(connection: Connection) -> None:
    writes = connection.get_execution_options().get(WRITES, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def roll_back_hot_journal(path: Path) -> None:
    """Let SQLite undo a commit during which a writer died, which a read-only connection may not do.

    It takes no more than opening read-write and reading; nothing else is changed. A crash meanwhile leaves the
    journal where it was.

    Raises:
        StorageError: The file or its directory cannot be written by this process.
        CorruptManifestError: The file is damaged.
    """
    try:
        with closing(connect(path, "rw")) as connection:
            connection.execute("SELECT count(*) FROM sqlite_master").fetchall()
    except sqlite3.Error as error:
        raise translated(error, path) from error
