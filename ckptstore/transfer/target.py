"""`TransferTarget`: the interface of a store that copies and imports are saved into."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from ckptstore.commit.request import SaveRequest
    from ckptstore.formats.snapshot import Snapshot
    from ckptstore.records import Checkpoint, Event, Mode


class TransferTarget(Protocol):
    """A store open for writing, as far as a transfer uses it; `ckptstore.CheckpointStore` is one.

    Attributes:
        path: The store's directory.
    """

    path: Path

    @property
    def uuid(self) -> str:
        """The store's own id."""
        ...

    def claim(self, run: str) -> None:
        """Own a run."""
        ...

    def watch(self, run: str, monitors: Mapping[str, Mode]) -> None:
        """Record the better direction of metrics that a run watches."""
        ...

    def get(self, ref: int) -> Checkpoint:
        """Return the checkpoint with a version."""
        ...

    def tags(self) -> dict[str, int]:
        """Return the version of each tag."""
        ...

    def events(self, *, kind: str, run: str) -> list[Event]:
        """Return a run's events of one kind, newest first."""
        ...

    def commit(self, snapshot: Snapshot, request: SaveRequest) -> Checkpoint:
        """Save a snapshot."""
        ...

    def pin(self, ref: Checkpoint) -> None:
        """Pin a checkpoint."""
        ...
