"""Finds the result of an earlier copy or import, so that one that was killed can simply be run again."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from ckptstore.commit.request import SaveRequest
from ckptstore.errors import CheckpointNotFoundError
from ckptstore.formats import payload
from ckptstore.records import Checkpoint
from ckptstore.storage.payloads.at import payload_of
from ckptstore.transfer.target import TransferTarget


def find_existing(
    target: TransferTarget, kind: str, origin: Mapping[str, Any], request: SaveRequest, source: payload.Source
) -> Checkpoint | None:
    """Return the checkpoint that an earlier call made, or None.

    Args:
        target: The store that would hold it.
        kind: The kind of event that records such a call.
        origin: The event's detail, which identifies the source.
        request: The save that would be made.
        source: The payload or file that it would be made from.
    """
    for event in target.events(kind=kind, run=request.run):
        if event.detail == origin:
            found = _complete(target, event.version)
            if found is not None and _has_position(found, request):
                return found
    # A process killed before the row was inserted left a payload, which was adopted, and no such event.
    for event in target.events(kind="adopted", run=request.run):
        found = _complete(target, event.version)
        if found is None or found.created_at != request.created_at:
            continue
        if _has_position(found, request) and _are_equal(payload_of(found), source):
            return found
    return None


def _complete(target: TransferTarget, version: int | None) -> Checkpoint | None:
    if version is not None:
        with suppress(CheckpointNotFoundError):
            found = target.get(version)
            return found if found.state == "complete" else None
    return None


def _has_position(found: Checkpoint, request: SaveRequest) -> bool:
    return (found.epoch, found.batch, found.step) == (request.epoch, request.batch, request.step)


def _are_equal(first: payload.Source, second: payload.Source) -> bool:
    """Return True if two payloads hold the same variables, byte for byte; one of each is in memory at a time."""
    with payload.open_variables(first) as variables, payload.open_variables(second) as others:
        return set(variables) == set(others) and all(
            variables[name].dtype == others[name].dtype
            and variables[name].tobytes() == others[name].tobytes()
            for name in variables
        )
