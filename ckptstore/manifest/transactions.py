"""Transactions on a manifest: begun explicitly, with their errors translated, and never left open."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from weakref import finalize

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError, ResourceClosedError

from ckptstore.errors import (
    CheckpointStoreError,
    CorruptManifestError,
    InvalidArgumentError,
    ReadOnlyError,
    StorageError,
)
from ckptstore.manifest import schema
from ckptstore.manifest.engine import WRITES, roll_back_hot_journal
from ckptstore.manifest.fences import Fences
from ckptstore.manifest.sqlite_errors import FOREIGN_ERRORS, needs_rollback_of_hot_journal, translated
from ckptstore.storage.locks import in_process_lock
from ckptstore.system.fork_safety import no_fork


class Transactions:
    """Transactions on one manifest, for any number of threads, and for children after a fork.

    Args:
        path: The manifest file.
        read_only: True to refuse writing.

    Attributes:
        fences: The claims under which runs are written.

    Raises:
        CheckpointStoreError: As `ckptstore.manifest.schema.open_manifest` says.
    """

    def __init__(self, path: Path, *, read_only: bool) -> None:
        self.path = path
        self.read_only = read_only
        self.fences = Fences(path.parent)
        self._engine = schema.open_manifest(path, read_only=read_only)
        self._closing = finalize(self, self._engine.dispose)

    @property
    def store(self) -> Path:
        """The store's directory."""
        return self.path.parent

    def close(self) -> None:
        """Close all connections; later transactions are refused."""
        self._closing()

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """Open a transaction that sees one state of the manifest, whatever others commit meanwhile.

        A writer's COMMIT waits for it, so it is kept short: nothing but queries belongs into the block.

        Raises:
            CorruptManifestError: The manifest, or a value in it, cannot be read.
            StoreLockedError: A writer's COMMIT did not end in time.
            SchemaError: Another process brought the manifest to another schema.
            StorageError: It cannot be read.
        """
        with self._translating(), no_fork(), in_process_lock(), self._begun(writes=False) as connection:
            try:
                yield connection
            except ValueError as error:
                if isinstance(error, CheckpointStoreError):
                    raise
                raise CorruptManifestError(
                    path=self.path, reason=f"it holds an unreadable value: {error}"
                ) from error

    @contextmanager
    def writing(self, operation: str, *, run: str | None = None) -> Iterator[Connection]:
        """Open a transaction for writing, alone among all processes, and COMMIT it when the block ends well.

        When the block fails, nothing has changed. When COMMIT itself fails, the change may be durable anyway: the
        connections are closed, and the next transaction, on a new one, sees what is on disk.

        Args:
            operation: A name for the change, used in the error on a manifest that is open for reading.
            run: A run whose rows change; if it was claimed here, the claim must still be the newest.

        Raises:
            RunTakenOverError: The run was claimed here, and another process has claimed it since.
            StoreRemovedError: The run was claimed here, and this manifest does not know of it.
            ReadOnlyError: The manifest is open for reading.
            StoreLockedError: Another process wrote for too long.
            DiskFullError: There is no room.
            StorageError: The disk failed.
        """
        if self.read_only:
            raise ReadOnlyError(store=self.store, operation=operation)
        with self._translating(), no_fork(), in_process_lock(), self._begun(writes=True) as connection:
            try:
                if run is not None:
                    self.fences.check(connection, run)
                yield connection
                self._check_open(connection)
                connection.commit()
            except DBAPIError:
                self._engine.dispose()
                raise

    def _check_open(self, connection: Connection) -> None:
        """Refuse to commit nothing: SQLite undoes a whole transaction when a statement in it meets a failing disk."""
        driver: Any = connection.connection.driver_connection
        if not driver.in_transaction:
            problem = OSError(errno.EIO, "the transaction was rolled back")
            raise StorageError(operation="SQLite", path=self.path, error=problem)

    @contextmanager
    def _begun(self, *, writes: bool) -> Iterator[Connection]:
        """Yield a connection whose transaction has begun; it ends with the block, and with it every lock."""
        if not self._closing.alive:
            raise InvalidArgumentError(argument="store", value=str(self.store), reason="it is closed")
        connection = self._engine.connect().execution_options(**{WRITES: writes})
        try:
            try:
                self._begin(connection)
            except DBAPIError as error:
                if not needs_rollback_of_hot_journal(error):
                    raise
                connection.rollback()
                roll_back_hot_journal(self.path)
                self._begin(connection)
            yield connection
            connection.close()
        except BaseException:
            # An interrupt may have come anywhere, even in a rollback: this connection is never used again.
            with suppress(ResourceClosedError):
                connection.invalidate()
            raise

    def _begin(self, connection: Connection) -> None:
        connection.begin()
        # This read takes the lock; and a newer ckptstore may have upgraded the manifest since it was opened.
        found = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar()
        if found != schema.HEAD:
            raise schema.schema_error(self.path, str(found))

    @contextmanager
    def _translating(self) -> Iterator[None]:
        try:
            yield
        except FOREIGN_ERRORS as error:
            raise translated(error, self.path) from error


class Repository:
    """Base of the objects through which one kind of thing in a manifest is read and changed.

    Each method is one transaction; those that change something return when it is durable.
    """

    def __init__(self, transactions: Transactions) -> None:
        self._transactions = transactions
        self._store = transactions.store
