"""Translates SQLite's errors into ours."""

from __future__ import annotations

import errno
import sqlite3
from pathlib import Path

from sqlalchemy.exc import SQLAlchemyError, StatementError

from ckptstore.errors import (
    CheckpointStoreError,
    CorruptManifestError,
    DiskFullError,
    InvalidArgumentError,
    StorageError,
    StoreLockedError,
)
from ckptstore.storage.files import free_bytes, mount_point
from ckptstore.storage.locks import unsafe_file_system

# Seconds that a statement waits for another process's transaction.
BUSY_TIMEOUT_S = 30.0

# Errors that SQLAlchemy and the driver raise; the last two come from binding a value.
FOREIGN_ERRORS = (SQLAlchemyError, sqlite3.Error, OverflowError, UnicodeEncodeError)

_UNREADABLE = ("no such table", "no such column", "Could not decode")
_NO_LOCKS = (
    sqlite3.SQLITE_IOERR_LOCK,
    sqlite3.SQLITE_IOERR_RDLOCK,
    sqlite3.SQLITE_IOERR_CHECKRESERVEDLOCK,
)
_SYSTEM_CODES = {
    sqlite3.SQLITE_IOERR: errno.EIO,
    sqlite3.SQLITE_READONLY: errno.EROFS,
    sqlite3.SQLITE_PERM: errno.EACCES,
    sqlite3.SQLITE_AUTH: errno.EACCES,
}


def cause_of(error: BaseException) -> BaseException:
    """Return the error that SQLAlchemy wrapped, or the error itself."""
    return error.orig if isinstance(error, StatementError) and error.orig is not None else error


def code_of(error: BaseException) -> int | None:
    """Return SQLite's extended result code, or None for an error that is not SQLite's."""
    code: int | None = getattr(cause_of(error), "sqlite_errorcode", None)
    return code


def needs_rollback_of_hot_journal(error: BaseException) -> bool:
    """Return True when a read-only connection found the journal of a writer that died in mid-commit."""
    return code_of(error) == sqlite3.SQLITE_READONLY_ROLLBACK


def translated(error: Exception, path: Path) -> CheckpointStoreError:
    """Return our error for one of `FOREIGN_ERRORS`, to be raised from it.

    Args:
        error: The error that was raised.
        path: The manifest.

    Example:
        >>> print(translated(sqlite3.OperationalError("no such table: runs"), Path("m.sqlite")).message)
        m.sqlite: damaged manifest: no such table: runs
    """
    cause = cause_of(error)
    if isinstance(cause, CheckpointStoreError):
        return cause
    if isinstance(cause, OverflowError | UnicodeEncodeError | TypeError) or _refused_to_bind(cause):
        value = cause.object if isinstance(cause, UnicodeEncodeError) else None
        return InvalidArgumentError(argument="value", value=value, reason=f"cannot be stored: {cause}")
    code = code_of(error)
    primary = None if code is None else code & 0xFF
    if primary in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB) or str(cause).startswith(_UNREADABLE):
        return CorruptManifestError(path=path, reason=str(cause))
    if primary in (sqlite3.SQLITE_CONSTRAINT, sqlite3.SQLITE_MISMATCH, sqlite3.SQLITE_TOOBIG):
        return InvalidArgumentError(argument="row", value=None, reason=str(cause))
    if primary in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return StoreLockedError(path=path, waited_s=BUSY_TIMEOUT_S)
    if code in _NO_LOCKS:
        return unsafe_file_system(path, "has no working locks for SQLite", OSError(str(cause)))
    if primary == sqlite3.SQLITE_FULL:
        return DiskFullError(path=path, free=free_bytes(path.parent), disk=mount_point(path))
    return _storage_error(cause, code, path)


def _refused_to_bind(cause: BaseException) -> bool:
    kinds = (sqlite3.ProgrammingError, sqlite3.InterfaceError)
    return isinstance(cause, kinds) and str(cause).startswith("Error binding")


def _storage_error(cause: BaseException, code: int | None, path: Path) -> StorageError:
    if code == sqlite3.SQLITE_READONLY_ROLLBACK:
        return StorageError(
            operation="rollback",
            path=path,
            error=OSError(
                errno.EROFS, "a writer died in mid-commit, and its journal cannot be rolled back from here"
            ),
            hint="open the store once where its directory can be written; nothing is lost",
        )
    if code == sqlite3.SQLITE_READONLY_DBMOVED:
        return StorageError(
            operation="SQLite",
            path=path,
            error=OSError(errno.ESTALE, "the manifest was replaced by another while it was open here"),
            hint="open the store again",
        )
    name = getattr(cause, "sqlite_errorname", type(cause).__name__)
    number = _SYSTEM_CODES.get((code or 0) & 0xFF)
    if (code or 0) & 0xFF == sqlite3.SQLITE_CANTOPEN:
        number = errno.EACCES if path.exists() else errno.ENOENT
    error = OSError(f"{cause} ({name})") if number is None else OSError(number, f"{cause} ({name})")
    return StorageError(operation="SQLite", path=path, error=error)
