"""Rules by age: the newest few, and those of the last time."""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from datetime import timedelta

from ckptstore.errors import InvalidArgumentError
from ckptstore.records import Checkpoint
from ckptstore.retention.policy import Policy
from ckptstore.retention.reasons import SharedReasons
from ckptstore.retention.rule import IsCertainlyKept, Reasons, RetentionFacts, Rule, RunView, check_count


def keep_last(n: int) -> Policy:
    """Keep the newest `n` checkpoints of a run.

    Raises:
        InvalidArgumentError: `n` is not a positive integer.

    Example:
        >>> keep_last(3)
        keep_last(3)
    """
    return Policy(f"keep_last({check_count('n', n)})", KeepLast(n), is_builtin=True)


def keep_within(time: timedelta) -> Policy:
    """Keep what was saved within `time` before the run's newest checkpoint.

    The newest checkpoint, not the clock, is what counts from: a run that waits for a machine over a weekend loses none.

    Raises:
        InvalidArgumentError: It is no timedelta above zero.

    Example:
        >>> keep_within(timedelta(hours=12))
        keep_within(12:00:00)
    """
    if not isinstance(time, timedelta) or time <= timedelta(0):
        raise InvalidArgumentError(
            argument="time",
            value=time,
            reason="must be a timedelta above zero",
            hint="such as datetime.timedelta(hours=12)",
        )
    return Policy(f"keep_within({time})", KeepWithin(time), is_builtin=True)


@dataclass(frozen=True, slots=True)
class KeepLast(Rule):
    """The newest `n`."""

    n: int

    def reasons(self, checkpoints: Sequence[RetentionFacts], always: AbstractSet[int]) -> Reasons:
        """Return the newest `n`."""
        why = (f"keep_last({self.n})",)
        return SharedReasons((checkpoint.version, why) for checkpoint in checkpoints[-self.n :])

    def candidates(self, view: RunView) -> Sequence[int]:
        """Return those that as many new ones have pushed behind the `n`-th."""
        last = view.nth_newest(self.n)
        return () if last is None else view.below(last, len(view.fresh))

    def keeps(self, view: RunView, checkpoint: Checkpoint) -> bool:
        """Tell whether it is not older than the `n`-th newest."""
        last = view.nth_newest(self.n)
        return last is None or checkpoint.version >= last

    def certainly_kept(self, view: RunView, after: int) -> IsCertainlyKept:
        """Return what tells the same."""
        last = view.nth_newest(self.n) or 0
        return lambda one: one.version >= last


@dataclass(frozen=True, slots=True)
class KeepWithin(Rule):
    """What was saved within a time before the newest."""

    time: timedelta

    def reasons(self, checkpoints: Sequence[RetentionFacts], always: AbstractSet[int]) -> Reasons:
        """Return those of the last time."""
        if not checkpoints:
            return {}
        since = max(checkpoint.created_at for checkpoint in checkpoints) - self.time
        why = (f"keep_within({self.time})",)
        return SharedReasons((one.version, why) for one in checkpoints if one.created_at >= since)

    def candidates(self, view: RunView) -> Sequence[int]:
        """Return those that the newest has left behind since."""
        since = view.newest_at() - self.time
        return () if view.before is None else view.saved_between(view.before - self.time, since)

    def keeps(self, view: RunView, checkpoint: Checkpoint) -> bool:
        """Tell whether it is of the last time."""
        return checkpoint.created_at >= view.newest_at() - self.time

    def certainly_kept(self, view: RunView, after: int) -> IsCertainlyKept:
        """Return what tells the same."""
        since = view.newest_at() - self.time
        return lambda one: one.created_at >= since
