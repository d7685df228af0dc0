"""Finds what was brought into a store before, so that a copy or an import that was killed may simply be run again."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckptstore.commit.request import SaveRequest
from ckptstore.errors import CheckpointNotFoundError
from ckptstore.formats import payload
from ckptstore.records import Checkpoint

if TYPE_CHECKING:
    from ckptstore.store.moving import StoreMoving


def earlier(
    store: StoreMoving, kind: str, origin: Mapping[str, Any], request: SaveRequest, source: Path
) -> Checkpoint | None:
    """Return the checkpoint that an earlier call made, or None.

    Args:
        store: Where it would be.
        kind: The event that notes such a call.
        origin: What that says of the source.
        request: What is to be saved.
        source: The file that it would be made from.
    """
    for event in store.events(kind=kind, run=request.run):
        if event.detail == origin:
            found = _complete(store, event.version)
            if found is not None and _stands_where(found, request):
                return found
    # A process that was killed before the row was there left a payload, which was adopted, and no such note.
    for event in store.events(kind="adopted", run=request.run):
        found = _complete(store, event.version)
        if found is None or found.created_at != request.created_at:
            continue
        if _stands_where(found, request) and _holds_the_same(found.path, source):
            return found
    return None


def _complete(store: StoreMoving, version: int | None) -> Checkpoint | None:
    if version is not None:
        with suppress(CheckpointNotFoundError):
            found = store.get(version)
            return found if found.state == "complete" else None
    return None


def _stands_where(found: Checkpoint, request: SaveRequest) -> bool:
    return (found.epoch, found.batch, found.step) == (request.epoch, request.batch, request.step)


def _holds_the_same(one: Path, other: Path) -> bool:
    """Return whether two payloads hold the same variables, byte for byte; one of each is in memory at a time."""
    with payload.open_variables(one) as ours, payload.open_variables(other) as theirs:
        return set(ours) == set(theirs) and all(
            ours[name].dtype == theirs[name].dtype and ours[name].tobytes() == theirs[name].tobytes()
            for name in ours
        )
