"""Turns a search, by a condition and in an order, into the statement that selects the versions."""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection
from typing import Any

from sqlalchemy import ColumnElement, Select, and_, exists, false, not_, or_, select

from ckptstore.manifest.conditions import (
    Absent,
    Comparison,
    Condition,
    Field,
    Joined,
    Metric,
    Not,
    OneOf,
    Tagged,
    Term,
)
from ckptstore.manifest.statements import id_of_metric, id_of_run
from ckptstore.manifest.tables import CHECKPOINTS, METRICS, RUNS, TAGS
from ckptstore.records import State

_COMPARE: dict[str, Callable[[Any, Any], ColumnElement[bool]]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
}


def search_statement(
    *,
    run: str | None,
    states: Collection[State] | None,
    where: Condition | None,
    order: tuple[Term, bool] | None,
    limit: int | None,
) -> Select[Any]:
    """Return the statement that selects the versions of the checkpoints that are searched for.

    Args:
        run: The run; None for all.
        states: The states; None for all.
        where: A condition; None for none.
        order: What to sort by, and True if the greatest comes first; checkpoints that lack it come last, and of equals
            the lower version comes first. None for the lowest version first.
        limit: The most versions; None for all.
    """
    chosen = select(CHECKPOINTS.version)
    if run is not None:
        chosen = chosen.where(CHECKPOINTS.run_id == id_of_run(run))
    if states is not None:
        chosen = chosen.where(CHECKPOINTS.state.in_(sorted(states)))
    if where is not None:
        chosen = chosen.where(_matches(where))
    if order is not None:
        term, descending = order
        if term == Field("version"):
            return chosen.order_by(CHECKPOINTS.version.desc() if descending else CHECKPOINTS.version).limit(
                limit
            )
        value = _column(term)
        chosen = chosen.order_by(value.is_(None), value.desc() if descending else value)
    return chosen.order_by(CHECKPOINTS.version).limit(limit)


def _matches(condition: Condition) -> ColumnElement[bool]:
    match condition:
        case Joined(parts=parts, every=every):
            return (and_ if every else or_)(*map(_matches, parts))
        case Not(part=part):
            return not_(_matches(part))
        case Tagged(name=name):
            return exists().where(TAGS.version == CHECKPOINTS.version, TAGS.name == name)
        case Absent(term=term):
            return _column(term).is_(None)
        case OneOf(term=term, values=values):
            return _column(term).in_(list(values)) if values else false()
        case Comparison(left=left, operator=sign, right=right):
            other = _column(right) if isinstance(right, Field | Metric) else right
            return _COMPARE[sign](_column(left), other)


def _column(term: Term) -> ColumnElement[Any]:
    if isinstance(term, Metric):
        value = select(METRICS.value).where(
            METRICS.version == CHECKPOINTS.version, METRICS.metric_id == id_of_metric(term.name)
        )
        return value.correlate(CHECKPOINTS.table).scalar_subquery()
    if term.name == "run":
        return (
            select(RUNS.name)
            .where(RUNS.id == CHECKPOINTS.run_id)
            .correlate(CHECKPOINTS.table)
            .scalar_subquery()
        )
    column: ColumnElement[Any] = CHECKPOINTS.table.c[term.name]
    return column
