"""A position of a fit at which it is saved, with its logs and its state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ckptstore.formats.snapshot import FitState


@dataclass(frozen=True, slots=True, kw_only=True)
class SavePoint:
    """A position at which a fit is saved.

    Attributes:
        epoch: Zero-based index of the epoch.
        batch: Zero-based index of its last finished batch, or None at its end.
        step: Finished batches of the run.
        logs: Keras' logs.
        fit: State of the fit; None for a checkpoint that holds none.
        resumable: False after a loss that is not finite: such a checkpoint is no resume point.
        droppable: True if a newer save may replace this one while it waits for the disk.
        expires: False to remove no older checkpoint, since the training may have to go back to one.
        rollbacks: Steps that the run went back to and came from, of each rollback so far.
        publish: The path at which the file appears, or None.
        finishes: True at the end of the last epoch: the run is finished once this is saved.
    """

    epoch: int
    batch: int | None
    step: int
    logs: Mapping[str, Any]
    fit: FitState | None = None
    resumable: bool = True
    droppable: bool = False
    expires: bool = True
    rollbacks: tuple[tuple[int, int], ...] = ()
    publish: Path | None = None
    finishes: bool = False

    @property
    def last_finished_epoch(self) -> int:
        """The epoch that was finished last; -1 within the first."""
        return self.epoch - (self.batch is not None)
