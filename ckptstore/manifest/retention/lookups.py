"""The statements by which retention looks up a run, each built once: building one takes longer than executing it.

All take a ``run_id``, except `RECORD`, which takes a run's name, and those about tags and published paths.
"""

from __future__ import annotations

from typing import Any, Literal

from sqlalchemy import BindParameter, ColumnElement, Executable, Integer, bindparam, case, func, select, text

from ckptstore.manifest.statements import RUN, id_of_run
from ckptstore.manifest.tables import CHECKPOINTS, COMPLETE, EVENTS, PUBLISHED, RETENTION, STORE, TAGS

Scale = Literal["epochs", "steps", "microseconds"]

# How many of the newest checkpoints are read at once.
NEAR = 16

_OF_RUN = EVENTS.run_id == bindparam("run_id")
_HERE = (CHECKPOINTS.run_id == bindparam("run_id"), CHECKPOINTS.state == COMPLETE)
_LIMIT: BindParameter[int] = bindparam("limit", type_=Integer)
_LOW, _HIGH = bindparam("low", type_=Integer), bindparam("high", type_=Integer)

# --- since the last check ----------------------------------------------------------------------------

# The version that the run was resumed from last, before its last check.
_RESUMED_BEFORE = (
    select(EVENTS.version)
    .where(EVENTS.kind == "resumed", EVENTS.run_id == id_of_run(RUN), EVENTS.id <= RETENTION.event_id)
    .order_by(EVENTS.id.desc())
    .limit(1)
    .scalar_subquery()
)
# The record of a run's last check. Selected from the store's one row, so that there is a row for any name.
RECORD = select(
    id_of_run(RUN).label("run_id"),
    RETENTION.policy,
    RETENTION.event_id,
    RETENTION.newest_at,
    RETENTION.nbytes,
    select(func.max(EVENTS.id)).scalar_subquery().label("last_event"),
    _RESUMED_BEFORE.label("resumed_before"),
).join_from(STORE.table, RETENTION.table, RETENTION.run_id == id_of_run(RUN), isouter=True)
_AFTER = (EVENTS.id > bindparam("event_id"), _OF_RUN)
VERSIONS_BY_KIND = select(EVENTS.kind, EVENTS.version).where(*_AFTER).order_by(EVENTS.id)
EVENTS_AFTER = select(EVENTS.kind, EVENTS.version, EVENTS.detail).where(*_AFTER).order_by(EVENTS.id)
RESUMED = select(EVENTS.version).where(EVENTS.kind == "resumed", _OF_RUN).order_by(EVENTS.id)
TOTAL = select(func.sum(CHECKPOINTS.nbytes)).where(*_HERE)

# --- the newest --------------------------------------------------------------------------------------

_VERSIONS = select(CHECKPOINTS.version).where(*_HERE)
_FILES = select(CHECKPOINTS.version, CHECKPOINTS.file, CHECKPOINTS.nbytes).where(*_HERE)
NEWEST = _FILES.order_by(CHECKPOINTS.version.desc())
NEWEST_RESUMABLE = NEWEST.where(CHECKPOINTS.resumable)
BELOW = NEWEST.where(CHECKPOINTS.version < bindparam("before"))
NEAREST = NEWEST.add_columns(CHECKPOINTS.resumable).limit(NEAR)
NTH = _VERSIONS.order_by(CHECKPOINTS.version.desc()).offset(bindparam("skip", type_=Integer)).limit(1)
NEWEST_AT = (
    select(CHECKPOINTS.created_at, CHECKPOINTS.file, CHECKPOINTS.nbytes)
    .where(*_HERE)
    .order_by(CHECKPOINTS.version.desc())
)

# --- by a scale --------------------------------------------------------------------------------------

_FINISHED = CHECKPOINTS.epoch + case((CHECKPOINTS.batch.is_(None), 1), else_=0)
_SAVED_IN = (CHECKPOINTS.created_at >= bindparam("low"), CHECKPOINTS.created_at < bindparam("high"))
_LOWEST = _FILES.order_by(CHECKPOINTS.version)
FIRST_IN: dict[Scale, Executable] = {
    # The first two conditions are redundant, but an index can use them.
    "epochs": _LOWEST.where(
        CHECKPOINTS.epoch >= _LOW - 1, CHECKPOINTS.epoch < _HIGH, _FINISHED >= _LOW, _FINISHED < _HIGH
    ),
    "steps": _LOWEST.where(CHECKPOINTS.step >= _LOW, CHECKPOINTS.step < _HIGH),
    "microseconds": _LOWEST.where(*_SAVED_IN),
}
_SCALES: dict[Scale, ColumnElement[Any]] = {
    "epochs": CHECKPOINTS.epoch,
    "steps": CHECKPOINTS.step,
    "microseconds": CHECKPOINTS.created_at,
}
_UPTO = (*_HERE, CHECKPOINTS.version <= bindparam("upto"))
GREATEST = {
    scale: select(column).where(*_UPTO).order_by(column.desc()).limit(1) for scale, column in _SCALES.items()
}
SAVED_BETWEEN = _VERSIONS.where(*_SAVED_IN)

# --- many checkpoints, tags and published paths -------------------------------------------------------

OLDEST = (
    _VERSIONS.where(text("NOT checkpoints.pinned"), CHECKPOINTS.version > bindparam("after"))
    .order_by(CHECKPOINTS.version)
    .limit(_LIMIT)
)
ROW_KEYS = (
    select(
        CHECKPOINTS.version,
        CHECKPOINTS.epoch,
        CHECKPOINTS.batch,
        CHECKPOINTS.step,
        CHECKPOINTS.created_at,
    )
    .where(*_HERE, CHECKPOINTS.version > bindparam("after"))
    .order_by(CHECKPOINTS.version)
    .limit(_LIMIT)
)
ROW_KEYS_UPTO = ROW_KEYS.where(CHECKPOINTS.version <= bindparam("upto"))
TAGGED = select(TAGS.version).where(TAGS.version.between(bindparam("first"), bindparam("last")))
ALL_SHOWN = select(PUBLISHED.version, PUBLISHED.path, PUBLISHED.pending)
SHOWN = ALL_SHOWN.where(PUBLISHED.version.in_(bindparam("versions", expanding=True)))
