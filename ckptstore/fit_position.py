"""Counts the batches of a fit: where it stands, in the terms of a checkpoint's position."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True, kw_only=True)
class FitPosition:
    """Where a fit stands.

    Attributes:
        epoch: Zero-based index of the present epoch.
        batches: Batches of it that are finished.
        steps_before: Batches of the run that were finished when the epoch began.
        per_epoch: Batches that an epoch has, or None where that is not known.

    Example:
        >>> position = FitPosition(per_epoch=10)
        >>> position.batch_done(3)  # with steps_per_execution, several are finished at once
        4
        >>> position.batch, position.step
        (3, 4)
        >>> position.begin_epoch(1)
        >>> position.epoch, position.batches, position.step
        (1, 0, 4)
    """

    epoch: int = 0
    batches: int = 0
    steps_before: int = 0
    per_epoch: int | None = None

    @property
    def batch(self) -> int:
        """Zero-based index of the last finished batch; -1 before the first."""
        return self.batches - 1

    @property
    def step(self) -> int:
        """Finished batches of the run."""
        return self.steps_before + self.batches

    def begin_epoch(self, epoch: int) -> None:
        """Note that an epoch begins."""
        self.steps_before, self.batches, self.epoch = self.step, 0, epoch

    def batch_done(self, end: int) -> int:
        """Note that the batches up to index `end` are finished; returns how many are so since the last call.

        With ``steps_per_execution`` Keras counts in whole executions, and so past the end of the epoch.
        """
        done = end + 1 if self.per_epoch is None else min(end + 1, self.per_epoch)
        new, self.batches = max(done - self.batches, 0), max(done, self.batches)
        return new

    def stand_at(self, *, epoch: int, batches: int, step: int | None) -> None:
        """Go on from where another process stood."""
        self.epoch, self.batches = epoch, batches
        self.steps_before = max((step or 0) - batches, 0)
