"""Where a run's newest attempt begins: nothing below that version belongs to it."""

from __future__ import annotations

from sqlalchemy import ColumnElement, ScalarSelect, func, select

from ckptstore.models import EVENTS

# The kind of the event that marks where an attempt begins.
BEGAN = "began"
_BEGINNING, _OTHER = EVENTS.table.alias("beginning"), EVENTS.table.alias("other")


def first_version(
    run_id: ColumnElement[int] | ColumnElement[int | None] | ScalarSelect[int],
) -> ColumnElement[int]:
    """Return the least version of a run's newest attempt, as part of a statement; 1 where it never began anew.

    One look at the end of an index, and one at a row, however often the run began.
    """
    newest = (
        select(func.max(_OTHER.c.id))
        .where(_OTHER.c.kind == BEGAN, _OTHER.c.run_id == run_id)
        .correlate_except(_OTHER)
        .scalar_subquery()
    )
    found = select(_BEGINNING.c.version).where(_BEGINNING.c.id == newest).correlate_except(_BEGINNING)
    return func.coalesce(found.scalar_subquery(), 1)
