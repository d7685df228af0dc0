"""Where a run's newest attempt begins: nothing below that version belongs to it."""

from __future__ import annotations

from sqlalchemy import ColumnElement, ScalarSelect, func, select

from ckptstore.models import EVENTS

# The kind of the event that marks where an attempt begins.
BEGAN = "began"


def first_version(
    run_id: ColumnElement[int] | ColumnElement[int | None] | ScalarSelect[int],
) -> ColumnElement[int]:
    """Return the least version of a run's newest attempt, as part of a statement; 1 where it never began anew.

    One look at the end of an index, and one at a row, however often the run began.
    """
    beginning, other = EVENTS.table.alias("beginning"), EVENTS.table.alias("other")
    newest = (
        select(func.max(other.c.id))
        .where(other.c.kind == BEGAN, other.c.run_id == run_id)
        .correlate_except(other)
        .scalar_subquery()
    )
    found = select(beginning.c.version).where(beginning.c.id == newest).correlate_except(beginning)
    return func.coalesce(found.scalar_subquery(), 1)
