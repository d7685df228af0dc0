"""Counts the batches of a fit: where it stands, in the terms of a checkpoint's position."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


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


@dataclass(slots=True, kw_only=True)
class BatchCount:
    """How many batches have passed, in the epoch and since the last save.

    Attributes:
        epoch: Zero-based index of the present epoch.
        in_epoch: Batches of it that have passed, as Keras counts: in whole executions, and so past its end.
        since_save: Batches since one was last due, across epochs.
        steps_before: Batches of the run that were finished when the epoch began; None before the first.
        per_epoch: Batches that an epoch has, or None where that is not known.

    Example:
        >>> count = BatchCount(per_epoch=10)
        >>> count.begin_epoch(0, lambda epoch: 0)
        >>> count.batch_done(11)  # the third execution of four steps each
        >>> count.in_epoch, count.finished(count.in_epoch), count.step
        (12, 10, 10)
    """

    epoch: int = 0
    in_epoch: int = 0
    since_save: int = 0
    steps_before: int | None = None
    per_epoch: int | None = None

    def begin(self, per_epoch: int | None) -> None:
        """Note that training begins; batches since the last save go on to count, as in Keras."""
        self.steps_before, self.in_epoch, self.per_epoch = None, 0, per_epoch

    def begin_epoch(self, epoch: int, steps_before: Callable[[int], int]) -> None:
        """Note that an epoch begins; the first one's `steps_before` is asked for."""
        self.epoch = epoch
        self.steps_before = steps_before(epoch) if self.steps_before is None else self.step
        self.in_epoch = 0

    def batch_done(self, batch: int) -> None:
        """Note that the batches up to this index have passed; with ``steps_per_execution`` several at once."""
        seen, self.in_epoch = self.in_epoch, max(self.in_epoch, batch + 1)
        self.since_save += self.in_epoch - seen

    def is_due(self, save_freq: int) -> bool:
        """Return whether enough batches have passed; from then on they count anew."""
        if self.since_save < save_freq:
            return False
        self.since_save = 0
        return True

    def finished(self, batches: int) -> int:
        """Return how many batches of the epoch there really were."""
        return batches if self.per_epoch is None else min(batches, self.per_epoch)

    @property
    def step(self) -> int:
        """Finished batches of the run."""
        return (self.steps_before or 0) + self.finished(self.in_epoch)

    def state(self) -> dict[str, Any]:
        """Return what another process needs to go on counting."""
        return {
            "epoch": self.epoch,
            "batches_in_epoch": self.in_epoch,
            "batches_since_save": self.since_save,
            "steps_before_epoch": self.steps_before,
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` returned."""
        self.epoch, self.in_epoch = state["epoch"], state["batches_in_epoch"]
        self.since_save, self.steps_before = state["batches_since_save"], state["steps_before_epoch"]
