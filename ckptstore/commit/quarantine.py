"""Quarantines damaged payloads: moves them, never deletes them, and records the reason."""

from __future__ import annotations

import os
from pathlib import Path

from ckptstore.manifest.manifest import Manifest
from ckptstore.records import Checkpoint
from ckptstore.storage.files import move_durably
from ckptstore.storage.layout import Layout


def move_to_quarantine(layout: Layout, path: Path) -> Path:
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
    """Quarantine a payload that belongs to no row, and record the reason; the caller holds the store's lock."""
    target = move_to_quarantine(layout, path)
    manifest.events.add("quarantined", detail={"file": path.name, "to": target.name, "reason": reason})


def withdraw(layout: Layout, manifest: Manifest, checkpoint: Checkpoint, reason: str) -> None:
    """Mark a checkpoint as damaged, record the reason, and quarantine its payload; the row stays.

    The caller holds the store's lock. The row is marked first: a crash leaves a marked row whose payload is still in
    its place, and the next opening for writing checks it again.

    Raises:
        StorageError: The row could not be marked, or the file not moved.
    """
    manifest.checkpoints.set_state(
        [checkpoint.version], "damaged", event="damaged", detail={"reason": reason}
    )
    if os.path.lexists(checkpoint.path):
        quarantine_stray(layout, manifest, checkpoint.path, reason)
