"""`keep_every`: the rule that keeps one checkpoint per number of epochs, steps or hours."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from ckptstore.errors import InvalidArgumentError
from ckptstore.records import Checkpoint, RowKey
from ckptstore.retention.policy import Policy
from ckptstore.retention.reasons import SharedReasons
from ckptstore.retention.rule import (
    IsCertainlyKept,
    Reasons,
    RetentionFacts,
    Rule,
    RunView,
    Scale,
    check_count,
)

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def keep_every(*, epochs: int | None = None, steps: int | None = None, hours: float | None = None) -> Policy:
    """Keep one checkpoint per number of epochs, steps or hours.

    With ``epochs=10``, the first one saved after 10 or more finished epochs, then after 20, and so on, however often
    checkpoints are saved; ``steps`` does the same with finished batches. With ``hours``, the first one in each span of
    the clock.

    Args:
        epochs: Finished epochs from one to the next.
        steps: Finished train batches; checkpoints without a step count are not kept by this.
        hours: Hours from one to the next; may be a fraction.

    Raises:
        InvalidArgumentError: Not exactly one of them is given, or it is not positive.

    Example:
        >>> keep_every(epochs=10) | keep_every(hours=0.5)
        keep_every(epochs=10) | keep_every(hours=0.5)
    """
    given = {
        name: value
        for name, value in (("epochs", epochs), ("steps", steps), ("hours", hours))
        if value is not None
    }
    if len(given) != 1:
        raise InvalidArgumentError(
            argument="keep_every",
            value=given,
            reason="takes one of epochs, steps and hours",
            hint="join several by |: keep_every(epochs=10) | keep_every(hours=6)",
        )
    ((name, value),) = given.items()
    if name == "hours":
        return _policy(f"hours={value!r}", "microseconds", _microseconds(value))
    return _policy(f"{name}={value!r}", "epochs" if name == "epochs" else "steps", check_count(name, value))


def _policy(shown: str, scale: Scale, length: int) -> Policy:
    name = f"keep_every({shown})"
    return Policy(name, KeepEvery(name, scale, length), is_builtin=True)


def _microseconds(hours: object) -> int:
    if isinstance(hours, bool) or not isinstance(hours, int | float) or not 1e-6 <= hours < 1e9:
        raise InvalidArgumentError(argument="hours", value=hours, reason="must be a positive number")
    return round(hours * 3_600_000_000)


@dataclass(frozen=True, slots=True)
class KeepEvery(Rule):
    """Keeps the first in each span of a scale; those before the first whole number of epochs or steps are in none."""

    name: str
    scale: Scale
    length: int

    def reasons(self, checkpoints: Sequence[RetentionFacts], always: AbstractSet[int]) -> Reasons:
        """Return the first in each span."""
        spans = _Spans()
        why = (self.name,)
        return SharedReasons(
            (checkpoint.version, why)
            for checkpoint in checkpoints
            if (span := self._span(checkpoint)) is not None and spans.is_new(span)
        )

    def candidates(self, view: RunView) -> set[int]:
        """Return those that are no longer the first, since an older one was found again."""
        spans = {span for checkpoint in view.added if (span := self._span(checkpoint)) is not None}
        found = (self._first(view, span, 1 + len(view.added))[1:] for span in spans)
        return {version for versions in found for version in versions}

    def keeps(self, view: RunView, checkpoint: Checkpoint) -> bool:
        """Return True if it is the first in its span."""
        span = self._span(checkpoint)
        return span is not None and checkpoint.version in self._first(view, span, 1)

    def certainly_kept(self, view: RunView, after: int) -> IsCertainlyKept:
        """Return a test that is true for those in a later span than all before."""
        position = view.greatest(self.scale, after)
        latest = 0 if position is None else position // self.length

        def is_certainly_kept(row: RowKey) -> bool:
            nonlocal latest
            span = self._span(row)
            if span is None or span <= latest:
                return False
            latest = span
            return True

        return is_certainly_kept

    def _first(self, view: RunView, span: int, limit: int) -> Sequence[int]:
        return view.first_in(self.scale, span * self.length, (span + 1) * self.length, limit)

    def _span(self, checkpoint: RetentionFacts | RowKey) -> int | None:
        position = position_on(checkpoint, self.scale)
        return None if position is None else self._span_at(position)

    def _span_at(self, position: int) -> int | None:
        span = position // self.length
        return span if span > 0 or self.scale == "microseconds" else None


class _Spans:
    """Set of spans, in eight bytes each where they mostly come in order."""

    def __init__(self) -> None:
        self._rising = array("q")
        self._others: set[int] = set()

    def is_new(self, span: int) -> bool:
        """Return True if a span is added for the first time."""
        if not self._rising or span > self._rising[-1]:
            self._rising.append(span)
            return True
        if self._rising[bisect_left(self._rising, span)] == span or span in self._others:
            return False
        self._others.add(span)
        return True


def position_on(checkpoint: RetentionFacts | RowKey, scale: Scale) -> int | None:
    """Return a checkpoint's position on a scale: finished epochs, finished steps, or microseconds of the clock."""
    if scale == "epochs":
        return checkpoint.epoch + (checkpoint.batch is None)
    return (
        checkpoint.step if scale == "steps" else (checkpoint.created_at - EPOCH) // timedelta(microseconds=1)
    )
