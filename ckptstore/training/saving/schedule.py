"""Save schedules: every epoch, every n batches, after an interval, within an overhead budget, or several of these.

Whichever it is, two kinds of epoch ends are saved besides: those at which the monitored metric is the best so far, and
the last one. A schedule decides *when* to save and knows positions and outcomes alone: neither Keras nor the store.
`ckptstore.training.saving.saves` knows *how*, and reports every save to the schedule.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Literal

from ckptstore.records import Checkpoint
from ckptstore.training.saving.overhead_budget import OverheadBudget


class SaveSchedule:
    """Decides after each batch and each epoch whether a save is due.

    By itself it saves the end of each epoch that is the best so far, and the end of the last epoch.

    Args:
        at_end: Whether the end of the last epoch is saved in any case.

    Attributes:
        since_save: Batches since the last save, where the schedule counts them; else 0.

    Example:
        >>> schedule = SaveSchedule()
        >>> schedule.due_at_epoch_end(last=False), schedule.due_at_epoch_end(last=True)
        (False, True)
        >>> schedule.due_at_epoch_end(last=False, best=True)
        True
    """

    def __init__(self, *, at_end: bool = True) -> None:
        self.at_end = at_end
        self.since_save = 0

    def begin(self) -> None:
        """Take note that the store is open and training begins; waiting for it is no part of an interval."""

    # --- decisions ---------------------------------------------------------------------------------

    def due_after(self, batches: int, *, saving: bool = False) -> bool:
        """Return True if a save is due, now that so many more batches are finished.

        Args:
            batches: Batches finished since the last call.
            saving: True while an earlier save is being written.
        """
        return False

    def due_at_epoch_end(self, *, last: bool, best: bool = False, saving: bool = False) -> bool:
        """Return True if a save is due at an epoch's end.

        Args:
            last: True if training ends with this epoch.
            best: True if the epoch's monitored metric is the best so far.
            saving: True while an earlier save is being written.
        """
        return best or (last and self.at_end)

    def epoch_ends(self, *, best: bool = False) -> None:
        """Take note of an epoch's end at which another schedule has found a save due; `best` as above."""

    # --- saves and their outcomes ------------------------------------------------------------------

    def about_to_save(self) -> None:
        """Record that a save is due at the batch that is just finished."""

    def save_begins(self) -> int:
        """Start counting again; returns the batches since the save before, which the outcome brings back."""
        return 0

    def handed_over(self, *, saving: bool) -> None:
        """Record that training resumes: the save is finished or, if `saving`, continues in the background."""

    def left_out(self, batches: int) -> None:
        """Record that the save was left out, since the best checkpoint so far still waits for the disk."""

    def not_saved(self) -> None:
        """Record that training resumes after a save that it waited for and that failed."""

    def settled(
        self, checkpoint: Checkpoint | None, batches: int, *, saving: bool = False, start_s: float = 0.0
    ) -> None:
        """Record the outcome of a save.

        Args:
            checkpoint: The checkpoint, or None if the save failed.
            batches: What `save_begins` returned for this save.
            saving: True while another save is being written.
            start_s: Seconds of processor time that another process took to start, and not reported before.
        """

    # --- overhead ----------------------------------------------------------------------------------

    def batch_ends(self, *, once: bool = False) -> None:
        """Record that the callback's work for a batch is done, but for a save.

        Args:
            once: True if the work included something that no other batch needs.
        """

    def charge(self, seconds: float) -> None:
        """Record seconds that training has waited for something other than a save."""

    def events(self) -> dict[str, dict[str, Any]]:
        """Return the events to record with the next checkpoint, by their kinds."""
        return {}


class EveryEpoch(SaveSchedule):
    """Saves at the end of every epoch."""

    def due_at_epoch_end(self, *, last: bool, best: bool = False, saving: bool = False) -> bool:
        """Return True."""
        return True


class EveryBatches(SaveSchedule):
    """Saves after every n batches, counted across epochs; a failed save is due again at once.

    Args:
        number: Batches from one save to the next.
        at_end: Whether the end of the last epoch is saved in any case.
        by_outcome: False to count batches alone, whatever becomes of a save: several processes learn that at
            different batches, and must save after the same.

    Example:
        >>> schedule = EveryBatches(3)
        >>> [schedule.due_after(1) for _ in range(4)]
        [False, False, True, True]
        >>> schedule.save_begins()
        4
        >>> schedule.due_after(1)
        False
        >>> schedule.settled(None, 4)  # the save failed
        >>> schedule.due_after(1)
        True
    """

    def __init__(self, number: int, *, at_end: bool = True, by_outcome: bool = True) -> None:
        super().__init__(at_end=at_end)
        self._number = number
        self._by_outcome = by_outcome

    def due_after(self, batches: int, *, saving: bool = False) -> bool:
        """Return True if enough batches have passed since the last save."""
        self.since_save += batches
        return self.since_save >= self._number

    def save_begins(self) -> int:
        """Start counting again."""
        batches, self.since_save = self.since_save, 0
        return batches

    def left_out(self, batches: int) -> None:
        """Be due again after half the batches."""
        self.since_save += batches // 2

    def settled(
        self, checkpoint: Checkpoint | None, batches: int, *, saving: bool = False, start_s: float = 0.0
    ) -> None:
        """Count the batches of a failed save again."""
        if checkpoint is None and self._by_outcome:
            self.since_save += batches


class EveryInterval(SaveSchedule):
    """Saves at the first batch or epoch's end after an interval.

    Args:
        seconds: The time from one save to the next.
        at_end: Whether the end of the last epoch is saved in any case.
        clock: Seconds.

    Example:
        >>> schedule = EveryInterval(10, clock=iter([0, 9, 10, 10, 15]).__next__)
        >>> schedule.due_after(1), schedule.due_after(1)
        (False, True)
        >>> schedule.handed_over(saving=True)
        >>> schedule.due_after(1)
        False
    """

    def __init__(
        self, seconds: float, *, at_end: bool = True, clock: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__(at_end=at_end)
        self._seconds = seconds
        self._clock = clock
        self._saved_at = clock()

    def begin(self) -> None:
        """Start the interval."""
        self._saved_at = self._clock()

    def due_after(self, batches: int, *, saving: bool = False) -> bool:
        """Return True if the interval has passed."""
        return self._clock() - self._saved_at >= self._seconds

    def due_at_epoch_end(self, *, last: bool, best: bool = False, saving: bool = False) -> bool:
        """Return True if the interval has passed, the epoch is the best so far, or training ends."""
        return super().due_at_epoch_end(last=last, best=best) or self.due_after(0)

    def handed_over(self, *, saving: bool) -> None:
        """Start the interval again."""
        self._saved_at = self._clock()

    def left_out(self, batches: int) -> None:
        """Be due again after half the interval."""
        self._saved_at = self._clock() - self._seconds / 2


class WithinOverhead(SaveSchedule):
    """Saves as often as an overhead budget allows, measured while training.

    Args:
        max_overhead: The share of the run that saving may cost, above 0 and below 1.
        nbytes: The size of the state.
        wait_for_device: Waits until the batches so far are computed; a device may be some steps behind.
        at_end: Whether the end of the last epoch is saved in any case.
    """

    def __init__(
        self,
        max_overhead: float,
        *,
        nbytes: int,
        wait_for_device: Callable[[], None],
        at_end: bool = True,
    ) -> None:
        super().__init__(at_end=at_end)
        self._budget = OverheadBudget(max_overhead, nbytes=nbytes)
        self._wait_for_device = wait_for_device
        self._was_saving = False
        self._is_measured = False

    def due_after(self, batches: int, *, saving: bool = False) -> bool:
        """Return True if the budget pays for a save; most batches are only counted."""
        budget = self._budget
        self._is_measured = False
        if not self._was_saving and not saving and budget.is_quiet(batches):
            return False
        # Times are taken where the device has caught up, and that not at every batch.
        if budget.needs_measurement(saving=self._was_saving):
            self._wait_for_device()
            self._is_measured = True
        budget.batches_done(batches, saving=self._was_saving, computed=self._is_measured)
        self._was_saving = saving
        if saving or not budget.is_due():
            return False
        self.about_to_save()
        return True

    def epoch_ends(self, *, best: bool = False) -> None:
        """Leave the time from here to the next batch out of the measurements; the best is saved at any cost."""
        self._budget.pause()
        if best:
            self._budget.forgive()

    def due_at_epoch_end(self, *, last: bool, best: bool = False, saving: bool = False) -> bool:
        """Return True if the budget pays for a save, the epoch is the best so far, or training ends."""
        self.epoch_ends(best=best)
        return super().due_at_epoch_end(last=last, best=best) or (not saving and self._budget.is_due())

    def about_to_save(self) -> None:
        """Begin to measure the save when the device has caught up."""
        if not self._is_measured:
            self._wait_for_device()
            self._budget.batches_done(0, saving=False)
            self._is_measured = True

    def handed_over(self, *, saving: bool) -> None:
        """Measure how long training has waited for the save."""
        self._budget.saved()
        self._was_saving = saving

    def left_out(self, batches: int) -> None:
        """Charge the time that training has waited."""
        self._budget.not_saved()

    def not_saved(self) -> None:
        """Charge the time that training has waited."""
        self._budget.not_saved()

    def settled(
        self, checkpoint: Checkpoint | None, batches: int, *, saving: bool = False, start_s: float = 0.0
    ) -> None:
        """Charge what the save has cost the batches that ran meanwhile."""
        self._was_saving = saving
        if checkpoint is None:
            self._budget.failed()
        elif checkpoint.total_s is not None:
            self._budget.settled(checkpoint.total_s)
            self._budget.charge_processor_time(start_s)

    def batch_ends(self, *, once: bool = False) -> None:
        """Charge the callback's own work for the batch."""
        self._budget.hook_ends(once=once)

    def charge(self, seconds: float) -> None:
        """Charge seconds that training has waited for something other than a save."""
        self._budget.charge(seconds)

    def events(self) -> dict[str, dict[str, Any]]:
        """Return the interval that follows from the measurements, where it is new."""
        interval = self._budget.new_interval()
        return {} if interval is None else {"interval": interval.detail()}


class AnySchedule(SaveSchedule):
    """Saves when one of several schedules is due; each counts every save.

    Example:
        >>> schedule = AnySchedule(EveryEpoch(), EveryBatches(2))
        >>> schedule.due_after(1), schedule.due_after(1), schedule.due_at_epoch_end(last=False)
        (False, True, True)
    """

    def __init__(self, *schedules: SaveSchedule) -> None:
        super().__init__()
        self._schedules = schedules

    def begin(self) -> None:
        """Tell each of them."""
        for schedule in self._schedules:
            schedule.begin()

    def due_after(self, batches: int, *, saving: bool = False) -> bool:
        """Return True if one of them is due; all count the batches."""
        due = False
        for schedule in self._schedules:
            if schedule.due_after(batches, saving=saving):
                due = True
        if due:
            self.about_to_save()
        return due

    def due_at_epoch_end(self, *, last: bool, best: bool = False, saving: bool = False) -> bool:
        """Return True if one of them is due; those after the first that is are not asked, so that none pays for it."""
        due = False
        for schedule in self._schedules:
            if due:
                schedule.epoch_ends(best=best)
            else:
                due = schedule.due_at_epoch_end(last=last, best=best, saving=saving)
        return due

    def epoch_ends(self, *, best: bool = False) -> None:
        """Tell each of them."""
        for schedule in self._schedules:
            schedule.epoch_ends(best=best)

    def about_to_save(self) -> None:
        """Pass it on to each of them."""
        for schedule in self._schedules:
            schedule.about_to_save()

    def save_begins(self) -> int:
        """Pass it on to each of them; returns the largest count."""
        return max(schedule.save_begins() for schedule in self._schedules)

    def handed_over(self, *, saving: bool) -> None:
        """Pass it on to each of them."""
        for schedule in self._schedules:
            schedule.handed_over(saving=saving)

    def left_out(self, batches: int) -> None:
        """Pass it on to each of them."""
        for schedule in self._schedules:
            schedule.left_out(batches)

    def not_saved(self) -> None:
        """Pass it on to each of them."""
        for schedule in self._schedules:
            schedule.not_saved()

    def settled(
        self, checkpoint: Checkpoint | None, batches: int, *, saving: bool = False, start_s: float = 0.0
    ) -> None:
        """Pass it on to each of them."""
        for schedule in self._schedules:
            schedule.settled(checkpoint, batches, saving=saving, start_s=start_s)

    def batch_ends(self, *, once: bool = False) -> None:
        """Pass it on to each of them."""
        for schedule in self._schedules:
            schedule.batch_ends(once=once)

    def charge(self, seconds: float) -> None:
        """Pass it on to each of them."""
        for schedule in self._schedules:
            schedule.charge(seconds)

    def events(self) -> dict[str, dict[str, Any]]:
        """Return the events of all of them."""
        return {kind: event for schedule in self._schedules for kind, event in schedule.events().items()}


def every(save_freq: int | Literal["epoch"], *, at_end: bool = True, by_outcome: bool = True) -> SaveSchedule:
    """Return the schedule that Keras' ``save_freq`` stands for.

    Args:
        save_freq: ``"epoch"``, or a number of batches.
        at_end: Whether the end of the last epoch is saved in any case.
        by_outcome: See `EveryBatches`.
    """
    if save_freq == "epoch":
        return EveryEpoch(at_end=at_end)
    return EveryBatches(save_freq, at_end=at_end, by_outcome=by_outcome)
