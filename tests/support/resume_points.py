"""Loads a store's newest resume point without a model, and damages payloads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ckptstore.errors import (
    CorruptPayloadError,
)
from ckptstore.records import Checkpoint
from ckptstore.storage.files import digest_file
from ckptstore.storage.locks import store_lock
from ckptstore.store.resume import ResumePointLoader
from ckptstore.store.store import CheckpointStore


def load(checkpoint: Checkpoint) -> None:
    """Verify a payload, as an adapter does before it changes a model."""
    if digest_file(checkpoint.path) != checkpoint.digest:
        raise CorruptPayloadError(path=checkpoint.path, reason="its digest differs")


def load_newest(
    store: CheckpointStore, load: Callable[[Checkpoint], None] = load, run: str | None = "default"
) -> Checkpoint | None:
    locked = None if store.read_only else lambda: store_lock(store.path / "locks")
    return ResumePointLoader(store._layout, store._manifest, run=run, locked=locked).load(load)


def damage(path: Path) -> None:
    path.chmod(0o644)
    path.write_bytes(b"x" + path.read_bytes()[1:])
