"""The position of a fit, in the terms of a checkpoint: epoch, finished batches, step of the run."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True, kw_only=True)
class BatchPosition:
    """Counts the epochs and batches of a fit.

    Attributes:
        epoch: Zero-based index of the present epoch.
        batches: Finished batches of it.
        counted: The same as Keras counts with ``steps_per_execution``: in whole executions, and so past the end.
        steps_before: Batches of the run that were finished when the epoch began; None if not known.
        per_epoch: Batches that an epoch has, or None if not known.
        ended: True once the epoch's last batch and its validation are finished.

    Example:
        >>> position = BatchPosition(per_epoch=10)
        >>> position.batch_done(3)  # with steps_per_execution, several are finished at once
        4
        >>> position.batch, position.step
        (3, 4)
        >>> position.begin_epoch(1)
        >>> position.epoch, position.batches, position.step
        (1, 0, 4)
        >>> position.batch_done(11)  # the third execution of four batches
        10
        >>> position.counted, position.step
        (12, 14)
    """

    epoch: int = 0
    batches: int = 0
    counted: int = 0
    steps_before: int | None = None
    per_epoch: int | None = None
    ended: bool = False

    @property
    def batch(self) -> int:
        """Zero-based index of the last finished batch; -1 before the first."""
        return self.batches - 1

    @property
    def step(self) -> int:
        """Finished batches of the run."""
        return (self.steps_before or 0) + self.batches

    @property
    def next_epoch(self) -> int:
        """The first epoch that is not finished."""
        return self.epoch + self.ended

    def begin_epoch(self, epoch: int) -> None:
        """Begin an epoch."""
        self.steps_before, self.epoch = self.step, epoch
        self.batches, self.counted, self.ended = 0, 0, False

    def batch_done(self, end: int) -> int:
        """Count the batches up to index `end` as finished; returns how many are new."""
        counted, per_epoch = end + 1, self.per_epoch
        if counted <= self.counted:
            return 0
        self.counted = counted
        done = counted if per_epoch is None or counted < per_epoch else per_epoch
        new, self.batches = done - self.batches, done
        return new

    def move_to(self, *, epoch: int, batches: int, step: int | None) -> None:
        """Continue from the position of another process."""
        self.epoch, self.batches, self.counted, self.ended = epoch, batches, batches, False
        self.steps_before = max((step or 0) - batches, 0)
