"""Puts damaged payloads aside: moved, never deleted, and noted."""

from __future__ import annotations

import os
from pathlib import Path

from ckptstore.manifest.manifest import Manifest
from ckptstore.records import Checkpoint
from ckptstore.storage.files import move_durably
from ckptstore.storage.layout import Layout


def set_aside(layout: Layout, path: Path) -> Path:
    """Move a file of the store into `quarantine`, durably, under an unused name, which is returned.

    A crash leaves it in one place or the other.

    Raises:
        StorageError: It cannot be moved.
    """
    target = layout.quarantine / path.name
    count = 0
    while os.path.lexists(target):
        count += 1
        target = layout.quarantine / f"{path.name}.{count}"
    move_durably(path, target)
    return target


def quarantine_stray(layout: Layout, manifest: Manifest, path: Path, reason: str) -> None:
    """Move a payload that belongs to no row aside, and note why; the caller holds the store's lock."""
    target = set_aside(layout, path)
    manifest.events.add("quarantined", detail={"file": path.name, "to": target.name, "reason": reason})


def withdraw(layout: Layout, manifest: Manifest, checkpoint: Checkpoint, reason: str) -> None:
    """Mark a checkpoint as damaged, note why, and move its payload aside; the row stays.

    The caller holds the store's lock. The row is marked first: a crash leaves a marked row whose payload still lies
    in its place, and the next opening for writing looks at it again.

    Raises:
        StorageError: The mark could not be made, or the file not moved.
    """
    manifest.checkpoints.set_state(
        [checkpoint.version], "damaged", event="damaged", detail={"reason": reason}
    )
    if os.path.lexists(checkpoint.path):
        quarantine_stray(layout, manifest, checkpoint.path, reason)
