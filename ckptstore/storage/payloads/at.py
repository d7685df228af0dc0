"""The payload store of a store, and the payload of a checkpoint."""

from __future__ import annotations

from ckptstore.records import Checkpoint
from ckptstore.storage.layout import Layout
from ckptstore.storage.payloads.interface import PayloadRef, PayloadStore
from ckptstore.storage.payloads.local import LocalPayloadStore
from ckptstore.storage.payloads.mounts import mounted_at


def payloads_at(layout: Layout) -> PayloadStore:
    """Return the payloads of a store."""
    elsewhere = mounted_at(layout.root)
    return LocalPayloadStore(layout) if elsewhere is None else elsewhere


def payloads_of(checkpoint: Checkpoint) -> PayloadStore:
    """Return the payloads of the store that a checkpoint belongs to."""
    return payloads_at(Layout(checkpoint.store_path))


def payload_of(checkpoint: Checkpoint) -> PayloadRef:
    """Return the payload of a checkpoint."""
    return PayloadRef(payloads_of(checkpoint), checkpoint.payload)
