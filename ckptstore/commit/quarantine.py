"""Quarantines damaged payloads: moves them, never deletes them, and records the reason."""

from __future__ import annotations

from ckptstore.manifest.manifest import Manifest
from ckptstore.records import Checkpoint
from ckptstore.storage.layout import Layout
from ckptstore.storage.payloads.at import payloads_at


def quarantine_stray(layout: Layout, manifest: Manifest, name: str, reason: str) -> None:
    """Quarantine a payload that belongs to no row, and record the reason; the caller holds the store's lock.

    A crash leaves it in one place or the other, and perhaps unrecorded.

    Raises:
        StorageError: It cannot be moved.
    """
    moved_to = payloads_at(layout).quarantine(name)
    manifest.events.add("quarantined", detail={"file": name, "to": moved_to, "reason": reason})


def withdraw(layout: Layout, manifest: Manifest, checkpoint: Checkpoint, reason: str) -> None:
    """Mark a checkpoint as damaged, record the reason, and quarantine its payload; the row stays.

    The caller holds the store's lock. The row is marked first: a crash leaves a marked row whose payload is still in
    its place, and the next opening for writing checks it again.

    Raises:
        StorageError: The row could not be marked, or the payload not moved.
    """
    manifest.checkpoints.set_state(
        [checkpoint.version], "damaged", event="damaged", detail={"reason": reason}
    )
    if payloads_at(layout).exists(checkpoint.payload):
        quarantine_stray(layout, manifest, checkpoint.payload, reason)
