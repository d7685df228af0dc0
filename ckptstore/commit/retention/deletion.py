"""Deletes checkpoints that are marked ``deleting``: the files first, durably, then the rows."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from itertools import islice

from ckptstore.manifest.manifest import Manifest
from ckptstore.records import Checkpoint, State
from ckptstore.storage.payloads.interface import PayloadStore

# Checkpoints deleted at a time.
_BATCH = 1000
_MARKED: tuple[State, ...] = ("deleting",)


def finish_deletions(
    payloads: PayloadStore,
    manifest: Manifest,
    checkpoints: Sequence[Checkpoint],
    locked: Callable[[], AbstractContextManager[None]],
) -> None:
    """Remove the payloads of rows marked ``deleting``, durably, then drop the rows. May be repeated.

    A crash leaves marked rows, with or without their payload; the next opening for writing finishes.
    """
    remove_marked(payloads, checkpoints)
    with locked():
        manifest.checkpoints.remove(array("q", (checkpoint.version for checkpoint in checkpoints)))


def finish_marked(
    payloads: PayloadStore,
    manifest: Manifest,
    locked: Callable[[], AbstractContextManager[None]],
    run: str | None = None,
) -> None:
    """Finish the deletions of a run, or of all runs, in batches: there may be very many."""
    while marked := list(islice(manifest.checkpoints.iterate(run, states=_MARKED), _BATCH)):
        finish_deletions(payloads, manifest, marked, locked)


def remove_marked(
    payloads: PayloadStore, checkpoints: Sequence[Checkpoint], *, in_background: bool = False
) -> None:
    """Remove the payloads of rows marked ``deleting``; durable when this returns.

    Args:
        payloads: The store's payloads.
        checkpoints: The rows.
        in_background: True to free their space later.
    """
    payloads.remove([checkpoint.payload for checkpoint in checkpoints], in_background=in_background)
