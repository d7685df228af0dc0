"""Parts that the statements of several tables share, and how rows are read and written.

Statements are built once, when their module is imported: building one takes longer than executing it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from sqlalchemy import (
    BindParameter,
    ColumnElement,
    Connection,
    Executable,
    Insert,
    ScalarSelect,
    Table,
    Update,
    bindparam,
    func,
    insert,
    select,
    update,
)

from ckptstore.manifest.tables import EVENTS, METRIC_NAMES, RUNS

# A run's name, in statements that are built once.
RUN: BindParameter[str] = bindparam("run")

# The version that a statement of `execute_for_each` is about.
WHICH: BindParameter[int] = bindparam("which")

# The kind of the event that marks where a run begins from scratch.
RUN_BEGAN = "began"

# Versions that one call of the driver changes.
_VERSIONS_PER_CALL = 5000
_BEGINNING, _OTHER = EVENTS.table.alias("beginning"), EVENTS.table.alias("other")

# --- parts of statements ------------------------------------------------------------------------------


def id_of_run(name: str | BindParameter[str]) -> ScalarSelect[int]:
    """Return the id of a run, as part of a statement; NULL, which equals nothing, for an unknown name."""
    return select(RUNS.id).where(RUNS.name == name).scalar_subquery()


def id_of_metric(name: str | BindParameter[str]) -> ScalarSelect[int]:
    """Return the id of a metric, as part of a statement; NULL, which equals nothing, for an unknown name."""
    return select(METRIC_NAMES.id).where(METRIC_NAMES.name == name).scalar_subquery()


def first_version_of_beginning(
    run_id: ColumnElement[int] | ColumnElement[int | None] | ScalarSelect[int],
) -> ColumnElement[int]:
    """Return the lowest version of a run's newest beginning, as part of a statement; 1 if the run was never restarted.

    It costs one look at the end of an index and one at a row, however many beginnings there are.
    """
    newest = (
        select(func.max(_OTHER.c.id))
        .where(_OTHER.c.kind == RUN_BEGAN, _OTHER.c.run_id == run_id)
        .correlate_except(_OTHER)
        .scalar_subquery()
    )
    found = select(_BEGINNING.c.version).where(_BEGINNING.c.id == newest).correlate_except(_BEGINNING)
    return func.coalesce(found.scalar_subquery(), 1)


# --- reading -----------------------------------------------------------------------------------------


def raw_rows(
    connection: Connection, statement: Executable, parameters: Mapping[str, Any] | None = None
) -> Iterator[tuple[Any, ...]]:
    """Yield rows as the driver gives them: times and JSON are text, booleans are 0 or 1.

    That takes half the time of SQLAlchemy's rows. A caller that stops halfway leaves the cursor to the connection,
    which may be closed by the time that this generator is collected.
    """
    result = connection.execute(statement, parameters)
    cursor: Any = result.cursor
    # Not "yield from", which would close the cursor then.
    for row in cursor:  # noqa: UP028
        yield row
    result.close()


# --- writing -----------------------------------------------------------------------------------------


class Upsert(NamedTuple):
    """Statements that update the row with a key, or insert it."""

    update: Update
    insert: Insert


def upsert_by(table: Table, *key: str) -> Upsert:
    """Return the statements that `upsert` executes on a table whose rows are known by some columns."""
    matches = (table.c[name] == bindparam(f"key_{name}") for name in key)
    return Upsert(update(table).where(*matches), insert(table))


def upsert(
    connection: Connection, statements: Upsert, key: Mapping[str, object], values: Mapping[str, object]
) -> None:
    """Update the row that has a key, or insert it: nobody else writes meanwhile."""
    matches = {f"key_{name}": value for name, value in key.items()}
    if not connection.execute(statements.update, {**matches, **values}).rowcount:
        connection.execute(statements.insert, {**key, **values})


def insert_with_new_id(connection: Connection, table: Table, **values: object) -> int:
    """Insert a row and return the id that it was given."""
    key = connection.execute(insert(table).values(values)).inserted_primary_key
    assert key is not None
    return int(key[0])


def execute_for_each(
    connection: Connection, statement: Executable, versions: Sequence[int], **values: object
) -> None:
    """Execute a statement with the parameter `WHICH` for each version, in batches: there may be very many."""
    for begin in range(0, len(versions), _VERSIONS_PER_CALL):
        batch = versions[begin : begin + _VERSIONS_PER_CALL]
        connection.execute(statement, [{"which": version, **values} for version in batch])
