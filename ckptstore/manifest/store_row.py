"""The one row about the store itself: its id, and the next version."""

from __future__ import annotations

from sqlalchemy import Connection, bindparam, select, update

from ckptstore.manifest.tables import STORE

NEXT_VERSION = select(STORE.next_version)
_TAKE_VERSION = update(STORE.table).values(next_version=STORE.next_version + 1)
_RAISE_NEXT_VERSION = update(STORE.table).where(STORE.next_version < bindparam("at_least"))


def uuid(connection: Connection) -> str:
    """Return the store's id."""
    return connection.execute(select(STORE.uuid)).scalar_one()


def set_uuid(connection: Connection, uuid: str) -> None:
    """Give the store an id."""
    connection.execute(update(STORE.table).values(uuid=uuid))


def next_version(connection: Connection) -> int:
    """Return the version that the next save gets."""
    return connection.execute(NEXT_VERSION).scalar_one()


def reserve_version(connection: Connection) -> int:
    """Take the next version; the COMMIT makes that durable, so that it is never given out again."""
    connection.execute(_TAKE_VERSION)
    return next_version(connection) - 1


def raise_next_version(connection: Connection, at_least: int) -> None:
    """Raise the next version to `at_least`, if it is lower."""
    connection.execute(_RAISE_NEXT_VERSION, {"at_least": at_least, "next_version": at_least})
