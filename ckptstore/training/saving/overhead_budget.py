"""Overhead budget of a run: saves cost at most a share of its time, measured and tuned while training.

The budget earns a share of the run's time and spends it on saves; a save is due when the budget covers its cost. The
cost of a save is the time that training waits for it, and the time that steps during the save take longer than others.
This follows CheckFreq (Mohan, Phanishayee, Chidambaram, FAST 2021), which profiles once and then adapts an interval; a
budget needs no profile first.
"""

from __future__ import annotations

import math
import statistics
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from ckptstore.system.cpu import usable_cores

MAX_OVERHEAD = 0.035
# Before the first save: a copy, and what writing takes from the training.
_EXPECTED_S = 0.01
_EXPECTED_BYTES_PER_S = 1e9
# Seconds from one measurement of the batches to the next, except during a save; and the shortest span of a
# measurement, since an epoch may be short.
_LOOK_S, _SPAN_S = 0.25, 0.04
# Measurements that are kept, the least number that is needed, and the share of the slowest that is left out.
_STEPS = 64
_FEWEST = 3
_OUTLIERS = 0.1
# The newest save weighs as much as all before it.
_WEIGHT = 0.5
# At most this share of the earned time pays for fixed costs, so that saves need not wait for all of them; less of it
# until the first save.
_FOR_FIXED_COSTS = 0.75
_FOR_FIXED_COSTS_AT_FIRST = 0.5
# Seconds that the hooks of a batch take at least: with the caches that they leave cold, three times what a clock in
# them measures. As many of those that do more than count are kept, to know how fast this machine is.
_HOOK_S = 1.5e-5
_HOOKS = 9
# At most this share of the earned time pays for hooks; each batch has them.
_FOR_HOOKS = 0.9
# The share of a save's time that it costs the steps during it, if that cannot be measured.
_GUESS = 0.5
# Kept back for costs that cannot be measured, such as caches that a save leaves cold.
_UNSEEN = 0.15
# A change of the interval that is recorded.
_NEWS = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """An interval between saves, and the measurements that it follows from.

    Attributes:
        batches: Batches from save to save.
        step_s: Seconds that a batch takes without a save.
        blocked_s: Seconds that a save makes the training wait.
        slowed_s: Seconds that the batches during a save take longer, all together.
        write_s: Seconds until a save is durable.
        max_overhead: The share of the run that saves may cost.
    """

    batches: int
    step_s: float
    blocked_s: float
    slowed_s: float
    write_s: float
    max_overhead: float

    def detail(self) -> dict[str, Any]:
        """Return it as the manifest records it."""
        return {
            name: round(value, 6) if isinstance(value, float) else value
            for name, value in asdict(self).items()
        }


class OverheadBudget:
    """The overhead budget of one fit.

    Args:
        max_overhead: The share of the run that saves may cost, above 0 and below 1.
        nbytes: The size of the state, for a guess before the first save.
        clock: Seconds.
        processor_clock: Seconds of processor time that this process has used.
        cores: How many this process may use; by default, those that the system reports.

    Example:
        >>> seconds = iter(range(1000))
        >>> budget = OverheadBudget(0.1, nbytes=0, clock=lambda: next(seconds))
        >>> for _ in range(5):
        ...     budget.batches_done(1, saving=False)
        >>> budget.saved()  # a second after the batch
        >>> budget.settled(4.0)
        >>> budget.interval().batches  # each costs a second: a twelfth, since some of the tenth is kept back
        12
    """

    def __init__(
        self,
        max_overhead: float,
        *,
        nbytes: int,
        clock: Callable[[], float] = time.perf_counter,
        processor_clock: Callable[[], float] = time.process_time,
        cores: int | None = None,
    ) -> None:
        self._share = max_overhead * (1 - _UNSEEN)
        self._max_overhead = max_overhead
        self._clock = clock
        self._processor_clock = processor_clock
        self._cores = usable_cores() if cores is None else cores
        self._processor_began = 0.0
        self._began: float | None = None
        # When all batches so far were computed, and the batches since then: without a save, and during one.
        self._mark: float | None = None
        self._alone = self._during = 0
        self._looked: float = -math.inf
        self._entered: float | None = None
        self._paused = False
        self._pauses = 0
        # Seconds for each batch, and how many batches it was found with.
        self._steps: deque[tuple[float, int]] = deque(maxlen=_STEPS)
        # Time that some batches during the last save took longer, their number, and the number of those not measured.
        self._longer_s = 0.0
        self._known = self._missed = 0
        self._closely = False
        # Seconds that this save took, until all batches during it are measured.
        self._settled_s: float | None = None
        self._blocked_s: float | None = None
        self._slowed_s: float | None = None
        self._write_s = 0.0
        self._expected_s = _EXPECTED_S + nbytes / _EXPECTED_BYTES_PER_S
        self._spent_s = 0.0
        self._fixed_s = self._hooks_s = 0.0
        self._batches = 0
        self._seen: deque[float] = deque(maxlen=_HOOKS)
        self._quiet_s = _HOOK_S
        self._processor_s = 0.0
        self._waited_s = 0.0
        self._noted = 0
        # Nothing is due before.
        self._earliest = -math.inf
        # Until then a batch is counted, and nothing else.
        self._quiet_until = -math.inf

    # --- what is measured ----------------------------------------------------------------------------

    def is_quiet(self, batches: int) -> bool:
        """Count finished batches if nothing else is to do; returns False if there is more to do.

        This spares most batches some microseconds. Not to be called while a save is being written.
        """
        if self._clock() >= self._quiet_until:
            return False
        self._alone += batches
        self._batches += batches
        self._hooks_s += self._quiet_s
        return True

    def needs_measurement(self, *, saving: bool = False) -> bool:
        """Return True if it is time to wait until the batches so far are computed, to measure them.

        A device that is waited for after each batch computes fewer, if batches are short. During a save that is done
        every 40 ms; after each batch only if an epoch was too short to measure the save before.

        Args:
            saving: True while a save is being written.
        """
        if self._settled_s is not None or self._mark is None:
            return True
        now = self._clock()
        span, ago = now - self._mark, now - self._looked
        if self._paused:
            # What is found later in this epoch is counted from its first batch.
            return saving or len(self._steps) < _FEWEST or ago >= _LOOK_S / 2
        if saving:
            # One that runs ahead of the device would hear of the save's end long after it.
            return self._closely or max(span, (self._during + 1) * self.step_s) >= _SPAN_S
        if len(self._steps) < _FEWEST:
            return True
        return span >= _SPAN_S and ago >= _LOOK_S

    def batches_done(self, batches: int, *, saving: bool, computed: bool = True) -> None:
        """Count finished batches.

        Args:
            batches: How many.
            saving: True if a save was being written meanwhile.
            computed: False if the device may be late, so that the present time does not measure them.
        """
        now = self._entered = self._clock()
        self._batches += batches
        if self._began is None:
            self._began, self._processor_began = now, self._processor_clock()  # the first one compiles
        elif self._paused:
            self._missed += batches if saving else 0
        elif self._mark is not None:
            self._during += batches if saving else 0
            self._alone += 0 if saving else batches
            if not computed:
                return
            took = now - self._mark
            if self._during:
                self._longer_s += took - (self._during + self._alone) * self.step_s
                self._known += self._during
            elif self._alone:
                self._steps.append((took / self._alone, self._alone))
            self._looked = now
        self._mark, self._paused, self._alone, self._during = now, False, 0, 0
        self._settle()

    def pause(self) -> None:
        """Note that an epoch is over: the time before the next batch, such as a validation, is no part of it."""
        self._missed += self._during
        self._mark, self._paused, self._alone, self._during = self._clock(), True, 0, 0
        self._pauses += 1
        self._quiet_until = -math.inf
        self._settle()

    def saved(self) -> None:
        """Note that a save, begun when the last batch was done or at a `pause`, is over for the training."""
        took = self._continue()
        if took is not None:
            self._blocked_s = _mixed(self._blocked_s, took)

    def not_saved(self) -> None:
        """Note that training continues without the save that was begun: it was left out, or waited for and failed.

        The time that it took is spent; it is no part of a batch, and no measurement of other saves.
        """
        self._continue()

    def _continue(self) -> float | None:
        now = self._clock()
        self._earliest = self._quiet_until = -math.inf
        if self._mark is None:
            return None
        took, self._mark = now - self._mark, now
        self._spent_s += took
        self._waited_s += took
        return took

    def settled(self, write_s: float) -> None:
        """Note that a save is durable, `write_s` seconds after it was begun; the next measurement gives its cost."""
        self._settled_s = (self._settled_s or 0.0) + write_s
        self._write_s = _mixed(self._write_s or None, write_s)
        self._earliest = self._quiet_until = -math.inf
        if not self._during:
            self._settle()

    def _settle(self) -> None:
        """Spend the time that the batches during a save have taken longer, once all of them are measured."""
        write_s = self._settled_s
        if write_s is None:
            return
        if self._known:
            longer = self._longer_s * (self._known + self._missed) / self._known
            self._slowed_s = _mixed(self._slowed_s, min(max(0.0, longer), write_s))
        elif not self._missed:
            self._slowed_s = _mixed(self._slowed_s, 0.0)  # it was over before a batch was
        elif self._slowed_s is None:
            self._slowed_s = _GUESS * write_s
        self._spent_s += self._slowed_s or 0.0
        self._closely = self._missed > self._known
        self._settled_s, self._longer_s, self._known, self._missed = None, 0.0, 0, 0
        self._earliest = -math.inf

    def failed(self) -> None:
        """Note that a save has failed: its time is spent, and is no measurement of other saves."""
        self._spent_s += max(0.0, self._longer_s)
        self._longer_s, self._known, self._missed = 0.0, 0, 0

    def hook_ends(self, *, once: bool = False) -> None:
        """Charge the work for a batch since `batches_done` was called; a save may follow.

        Args:
            once: True if the work included something that no other batch needs.
        """
        entered, self._entered = self._entered, None
        if entered is None:
            return  # the batch was only counted
        took = self._clock() - entered
        if once:
            self._fixed_s += took
            return
        self._hooks_s += max(_HOOK_S, took)
        self._seen.append(took)
        self._quiet_s = max(_HOOK_S, statistics.median(self._seen))

    def charge(self, seconds: float) -> None:
        """Charge seconds that training has waited for something other than a save, such as the beginning."""
        self._fixed_s += seconds

    def charge_processor_time(self, seconds: float) -> None:
        """Charge seconds of processor time that another process has used, such as for its start.

        Training has lost the part of it for which there was no idle core.
        """
        self._processor_s += seconds

    def _lost_s(self, now: float) -> float:
        """Return the seconds that training has lost to another process, given how busy this one was on the whole."""
        wall = 0.0 if self._began is None else now - self._began
        if not self._processor_s or wall <= 0.0:
            return 0.0
        busy = (self._processor_clock() - self._processor_began) / wall
        return self._processor_s * min(1.0, max(0.0, busy + 1.0 - self._cores))

    # --- what follows ----------------------------------------------------------------------------------

    @property
    def step_s(self) -> float:
        """Seconds that a batch takes without a save, without the slowest; 0 if none is measured."""
        kept = sorted(self._steps)[: math.ceil(len(self._steps) * (1 - _OUTLIERS))]
        # Weighted, since one batch that is waited for takes longer than one of many.
        batches = sum(number for _, number in kept)
        return sum(step * number for step, number in kept) / batches if batches else 0.0

    @property
    def cost_s(self) -> float:
        """Seconds that a save costs the training."""
        if self._blocked_s is None:
            return self._expected_s
        return self._blocked_s + (self._slowed_s or 0.0)

    def is_due(self) -> bool:
        """Return True if enough is earned for a save."""
        # In epochs of one batch, batches cannot be measured.
        if self._began is None or max(len(self._steps), self._pauses) < _FEWEST:
            return False
        now = self._clock()
        if now < self._earliest:
            self._pause_measuring()
            return False
        cost = self.cost_s
        # Unspent time is not saved up: a long validation is no reason for many saves.
        left = self._left(now)
        self._spent_s += max(0.0, left - cost)
        # Unless a save is settled before, which may show a lower cost.
        self._earliest = now + (cost - left) / self._share
        return left >= cost

    def forgive(self) -> None:
        """Forget what is owed, before a save that is made whatever it costs.

        So a row of such saves, as of epochs that are each the best so far, takes longer than the share; but afterwards
        at most one of them is owed, and the next save within an epoch comes as soon as after any other.
        """
        if self._began is not None:
            self._spent_s += min(0.0, self._left(self._clock()))
            self._earliest = -math.inf

    def _left(self, now: float) -> float:
        """Return the seconds that are earned and not spent; less than 0 if some are owed."""
        assert self._began is not None
        earned = self._share * (now - self._began - self._waited_s)
        earned -= _for_hooks(earned, self._hooks_s)
        # The fit's end waits for the last save.
        ahead = 0.0 if self._blocked_s is None else self.cost_s + self._write_s
        most = _FOR_FIXED_COSTS_AT_FIRST if self._blocked_s is None else _FOR_FIXED_COSTS
        earned -= min(self._fixed_s + self._lost_s(now) + ahead, most * earned)
        return earned - self._spent_s

    def _pause_measuring(self) -> None:
        """Only count the batches up to the next measurement, or until a save may be due."""
        if not self._paused and not self._during:
            self._quiet_until = min(self._earliest, self._looked + _LOOK_S)

    def interval(self) -> Interval:
        """Return the interval that follows from the measurements so far."""
        step = max(self.step_s, 1e-9)
        earned = self._share * step
        earned -= _for_hooks(earned, self._hooks_s / max(1, self._batches))
        return Interval(
            batches=max(1, math.ceil(round(max(self.cost_s / earned, self._write_s / step), 6))),
            step_s=self.step_s,
            blocked_s=self._blocked_s or 0.0,
            slowed_s=self._slowed_s or 0.0,
            write_s=self._write_s,
            max_overhead=self._max_overhead,
        )

    def new_interval(self) -> Interval | None:
        """Return the interval once it is measured, and again when it has changed by a fifth."""
        if self._blocked_s is None or self._slowed_s is None or not self._steps:
            return None
        interval = self.interval()
        if abs(interval.batches - self._noted) <= _NEWS * self._noted:
            return None
        self._noted = interval.batches
        return interval


def _for_hooks(earned_s: float, took_s: float) -> float:
    return min(took_s, _FOR_HOOKS * earned_s)


def _mixed(before: float | None, new: float) -> float:
    return new if before is None else before + _WEIGHT * (new - before)
