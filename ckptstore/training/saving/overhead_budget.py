"""When to save so that it costs at most a share of the run: measured while training, and tuned as it goes.

Of all that a run has taken so far, saves may have cost a share: what is earned with time is spent by saves, and one is
due when enough is there for it. What a save costs is what the step waits for, and what the steps beside it take longer
than others do. This follows CheckFreq (Mohan, Phanishayee, Chidambaram, FAST 2021), which profiles once and then
adapts an interval; with an account there is nothing to profile first.
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
# Seconds from one look at what batches take to the next, but beside a save; and at least that it looks back on, since
# an epoch may be short.
_LOOK_S, _SPAN_S = 0.25, 0.04
# Looks that are looked back on, fewer that must be known, and the share of the slowest that says nothing.
_STEPS = 64
_FEWEST = 3
_OUTLIERS = 0.1
# The newest save says as much as all before it.
_WEIGHT = 0.5
# At most this share of what is earned pays for what is no save, so that saves need not wait for all of it; less of it
# until there is a first one.
_FOR_DEBTS = 0.75
_FOR_DEBTS_AT_FIRST = 0.5
# Seconds that the hooks of a batch take at least: with what they leave cold, three times what a clock in them sees. As
# many of those that do more than count are remembered, since they tell how fast this machine is.
_HOOK_S = 1.5e-5
_HOOKS = 9
# At most this share of what is earned pays for hooks; each batch has them.
_FOR_HOOKS = 0.9
# Of the time that a save takes, what it may cost the steps beside it, where that cannot be seen.
_GUESS = 0.5
# Kept back for what nobody can measure, such as caches that a save leaves cold.
_UNSEEN = 0.15
# A change that is worth a note.
_NEWS = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """What was chosen, and from which figures.

    Attributes:
        batches: Batches from save to save.
        step_s: Seconds that a batch takes, with nothing beside it.
        blocked_s: Seconds that a save makes the training wait.
        slowed_s: Seconds that the batches beside a save take longer, all together.
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
        """Return it as the manifest's events have it."""
        return {
            name: round(value, 6) if isinstance(value, float) else value
            for name, value in asdict(self).items()
        }


class OverheadBudget:
    """The account of one fit.

    Args:
        max_overhead: The share of the run that saves may cost, above 0 and below 1.
        nbytes: The size of the state, for a guess before the first save.
        clock: Seconds.
        processor_clock: Seconds of processor time that this process has used.
        cores: How many this process may use; by itself, those that the system says.

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
        # When all that was begun was computed, and the batches since then: with nothing beside them, and with a save.
        self._mark: float | None = None
        self._alone = self._beside = 0
        self._looked: float = -math.inf
        self._entered: float | None = None
        self._paused = False
        self._pauses = 0
        # Seconds for each batch, and how many batches it was found with.
        self._steps: deque[tuple[float, int]] = deque(maxlen=_STEPS)
        # What some batches beside the last save have taken longer, how many these are, and of how many it is not known.
        self._longer_s = 0.0
        self._known = self._missed = 0
        self._closely = False
        # Seconds that this save took, until all batches beside it are known.
        self._settled_s: float | None = None
        self._blocked_s: float | None = None
        self._slowed_s: float | None = None
        self._write_s = 0.0
        self._expected_s = _EXPECTED_S + nbytes / _EXPECTED_BYTES_PER_S
        self._spent_s = 0.0
        self._debt_s = self._hooks_s = 0.0
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
        """Note that so many batches are finished, where that is all there is to do; returns False where it is not.

        Most batches take some microseconds less by that. Not to be asked while a save is being written.
        """
        if self._clock() >= self._quiet_until:
            return False
        self._alone += batches
        self._batches += batches
        self._hooks_s += self._quiet_s
        return True

    def wants_a_look(self, *, saving: bool = False) -> bool:
        """Return whether it is time to wait until the batches so far are computed, to know what they take.

        A device that is waited for after each batch computes fewer, where batches are short. Beside a save that is
        done every 40 ms; after each batch only where an epoch was too short to tell of the save before.

        Args:
            saving: Whether a save is being written beside them.
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
            return self._closely or max(span, (self._beside + 1) * self.step_s) >= _SPAN_S
        if len(self._steps) < _FEWEST:
            return True
        return span >= _SPAN_S and ago >= _LOOK_S

    def batches_done(self, batches: int, *, saving: bool, computed: bool = True) -> None:
        """Note that so many batches are finished.

        Args:
            batches: How many.
            saving: Whether a save was being written beside them.
            computed: False where the device may be behind, so that the moment says nothing of what they took.
        """
        now = self._entered = self._clock()
        self._batches += batches
        if self._began is None:
            self._began, self._processor_began = now, self._processor_clock()  # the first one compiles
        elif self._paused:
            self._missed += batches if saving else 0
        elif self._mark is not None:
            self._beside += batches if saving else 0
            self._alone += 0 if saving else batches
            if not computed:
                return
            took = now - self._mark
            if self._beside:
                self._longer_s += took - (self._beside + self._alone) * self.step_s
                self._known += self._beside
            elif self._alone:
                self._steps.append((took / self._alone, self._alone))
            self._looked = now
        self._mark, self._paused, self._alone, self._beside = now, False, 0, 0
        self._settle()

    def pause(self) -> None:
        """Note that an epoch is over: what comes before the next batch, validation say, is no part of it."""
        self._missed += self._beside
        self._mark, self._paused, self._alone, self._beside = self._clock(), True, 0, 0
        self._pauses += 1
        self._quiet_until = -math.inf
        self._settle()

    def saved(self) -> None:
        """Note that a save, begun when the last batch was done or at a `pause`, lets the training go on."""
        took = self._goes_on()
        if took is not None:
            self._blocked_s = _mixed(self._blocked_s, took)

    def not_saved(self) -> None:
        """Note that the training goes on without the save that was begun: it was left out, or waited for and failed.

        What that took is spent; it is no part of a batch, and says nothing of other saves.
        """
        self._goes_on()

    def _goes_on(self) -> float | None:
        now = self._clock()
        self._earliest = self._quiet_until = -math.inf
        if self._mark is None:
            return None
        took, self._mark = now - self._mark, now
        self._spent_s += took
        self._waited_s += took
        return took

    def settled(self, write_s: float) -> None:
        """Note that a save is durable, `write_s` seconds after it was begun; the next look tells what it has cost."""
        self._settled_s = (self._settled_s or 0.0) + write_s
        self._write_s = _mixed(self._write_s or None, write_s)
        self._earliest = self._quiet_until = -math.inf
        if not self._beside:
            self._settle()

    def _settle(self) -> None:
        """Take what the batches beside a save have taken longer, once all of them are known."""
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
        """Note that a save has failed: what it took is spent, and says nothing of others."""
        self._spent_s += max(0.0, self._longer_s)
        self._longer_s, self._known, self._missed = 0.0, 0, 0

    def hook_ends(self, *, once: bool = False) -> None:
        """Note that all is done that a batch asks for, since `batches_done` was called; a save may follow.

        Args:
            once: Whether something was among it that no other batch will ask for.
        """
        entered, self._entered = self._entered, None
        if entered is None:
            return  # the batch was only counted
        took = self._clock() - entered
        if once:
            self._debt_s += took
            return
        self._hooks_s += max(_HOOK_S, took)
        self._seen.append(took)
        self._quiet_s = max(_HOOK_S, statistics.median(self._seen))

    def charge(self, seconds: float) -> None:
        """Note seconds that the training has waited for what is no save, such as the beginning."""
        self._debt_s += seconds

    def charge_processor_time(self, seconds: float) -> None:
        """Note seconds of processor time that another process has used for what is no save, such as its start.

        The training has lost as much of it as there was no idle core for.
        """
        self._processor_s += seconds

    def _lost_s(self, now: float) -> float:
        """Return what the training has lost to another process, as busy as this one was on the whole."""
        wall = 0.0 if self._began is None else now - self._began
        if not self._processor_s or wall <= 0.0:
            return 0.0
        busy = (self._processor_clock() - self._processor_began) / wall
        return self._processor_s * min(1.0, max(0.0, busy + 1.0 - self._cores))

    # --- what follows ----------------------------------------------------------------------------------

    @property
    def step_s(self) -> float:
        """Seconds that a batch takes with nothing beside it; the slowest are left out. 0 where none is known."""
        kept = sorted(self._steps)[: math.ceil(len(self._steps) * (1 - _OUTLIERS))]
        # A look at many batches says more: one batch that is waited for takes longer than one of many.
        batches = sum(number for _, number in kept)
        return sum(step * number for step, number in kept) / batches if batches else 0.0

    @property
    def cost_s(self) -> float:
        """Seconds that a save costs the training."""
        if self._blocked_s is None:
            return self._expected_s
        return self._blocked_s + (self._slowed_s or 0.0)

    def is_due(self, *, early: bool = False) -> bool:
        """Return whether enough is earned for a save; `early` for one that may be paid for afterwards."""
        # Of epochs of one batch nobody knows what a batch takes.
        if self._began is None or (max(len(self._steps), self._pauses) < _FEWEST and not early):
            return False
        now = self._clock()
        if now < self._earliest and not early:
            self._be_quiet()
            return False
        earned = self._share * (now - self._began - self._waited_s)
        cost = self.cost_s
        earned -= _for_hooks(earned, self._hooks_s)
        # The fit's end waits for the last save.
        ahead = 0.0 if self._blocked_s is None else cost + self._write_s
        most = _FOR_DEBTS_AT_FIRST if self._blocked_s is None else _FOR_DEBTS
        earned -= min(self._debt_s + self._lost_s(now) + ahead, most * earned)
        # What was not spent is not saved up: a long validation is no reason for many saves.
        left = earned - self._spent_s
        self._spent_s += max(0.0, left - cost)
        # Unless a save is heard of before, which may tell of a lower cost.
        self._earliest = now + (cost - left) / self._share
        return left >= (0.0 if early else cost)

    def _be_quiet(self) -> None:
        """Leave the batches up to the next look alone, or up to when a save may be due."""
        if not self._paused and not self._beside:
            self._quiet_until = min(self._earliest, self._looked + _LOOK_S)

    def interval(self) -> Interval:
        """Return the interval that comes of it, as far as is known by now."""
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

    def news(self) -> Interval | None:
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
