"""`keep_last` and `keep_within`: rules by age."""

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

    The time counts back from the checkpoint with the highest version, not from now: a run that waits for a machine over
    a weekend loses none, and one that was saved while the clock was wrong does not expire those after it. What the
    clock says is later than the newest stays. A clock that was set forward for good makes older ones that much older.

    Raises:
        InvalidArgumentError: It is not a timedelta above zero.

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
    """Keeps the newest `n`."""

    n: int

    def reasons(self, checkpoints: Sequence[RetentionFacts], always: AbstractSet[int]) -> Reasons:
        """Return the newest `n`."""
        why = (f"keep_last({self.n})",)
        return SharedReasons((checkpoint.version, why) for checkpoint in checkpoints[-self.n :])

    def candidates(self, view: RunView) -> Sequence[int]:
        """Return those that new checkpoints have pushed out of the newest `n`."""
        last = view.nth_newest(self.n)
        return () if last is None else view.below(last, len(view.added))

    def keeps(self, view: RunView, checkpoint: Checkpoint) -> bool:
        """Return True if it is not older than the `n`-th newest."""
        last = view.nth_newest(self.n)
        return last is None or checkpoint.version >= last

    def certainly_kept(self, view: RunView, after: int) -> IsCertainlyKept:
        """Return a test that decides as `keeps` does."""
        last = view.nth_newest(self.n) or 0
        return lambda row: row.version >= last


@dataclass(frozen=True, slots=True)
class KeepWithin(Rule):
    """Keeps what was saved within a time before the newest, which is the one with the highest version."""

    time: timedelta

    def reasons(self, checkpoints: Sequence[RetentionFacts], always: AbstractSet[int]) -> Reasons:
        """Return those saved within the time."""
        if not checkpoints:
            return {}
        since = checkpoints[-1].created_at - self.time
        why = (f"keep_within({self.time})",)
        kept = (checkpoint.version for checkpoint in checkpoints if checkpoint.created_at >= since)
        return SharedReasons((version, why) for version in kept)

    def candidates(self, view: RunView) -> Sequence[int]:
        """Return those whose time has passed since the last check."""
        since = view.newest_at() - self.time
        return () if view.before is None else view.saved_between(view.before - self.time, since)

    def keeps(self, view: RunView, checkpoint: Checkpoint) -> bool:
        """Return True if it was saved within the time."""
        return checkpoint.created_at >= view.newest_at() - self.time

    def certainly_kept(self, view: RunView, after: int) -> IsCertainlyKept:
        """Return a test that decides as `keeps` does."""
        since = view.newest_at() - self.time
        return lambda row: row.created_at >= since
