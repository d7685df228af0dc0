"""Deletes checkpoints that are marked ``deleting``: the files first, durably, then the rows."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from itertools import islice
from pathlib import Path

from ckptstore.manifest.manifest import Manifest
from ckptstore.records import Checkpoint, State
from ckptstore.storage.files import fsync_directory, unlink

# Checkpoints deleted at a time.
_BATCH = 1000
_MARKED: tuple[State, ...] = ("deleting",)


def finish_deletions(
    manifest: Manifest, checkpoints: Sequence[Checkpoint], locked: Callable[[], AbstractContextManager[None]]
) -> None:
    """Unlink the payloads of rows marked ``deleting``, durably, then drop the rows. May be repeated.

    A crash leaves marked rows, with or without their payload; the next opening for writing finishes.
    """
    unlink_marked(checkpoints)
    with locked():
        manifest.checkpoints.remove(array("q", (checkpoint.version for checkpoint in checkpoints)))


def finish_marked(
    manifest: Manifest, locked: Callable[[], AbstractContextManager[None]], run: str | None = None
) -> None:
    """Finish the deletions of a run, or of all runs, in batches: there may be very many."""
    while marked := list(islice(manifest.checkpoints.iterate(run, states=_MARKED), _BATCH)):
        finish_deletions(manifest, marked, locked)


def unlink_marked(checkpoints: Sequence[Checkpoint], unlink: Callable[[Path], None] = unlink) -> None:
    """Unlink the payloads of rows marked ``deleting``; durable when this returns.

    Args:
        checkpoints: The rows.
        unlink: Removes one file's name.
    """
    directories = set()
    for checkpoint in checkpoints:
        unlink(checkpoint.path)
        directories.add(checkpoint.path.parent)
    for directory in directories:
        fsync_directory(directory)
