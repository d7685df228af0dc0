"""`keep_best`, and the order by a metric: NaN and missing values are never best, and of equals the earlier is."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from heapq import nsmallest
from typing import TypeVar

from ckptstore.errors import InvalidArgumentError
from ckptstore.metrics import mode_of
from ckptstore.records import Checkpoint, Mode
from ckptstore.retention.policy import Policy
from ckptstore.retention.rule import IsCertainlyKept, Reasons, RetentionFacts, Rule, RunView, check_count
from ckptstore.validation import check_metric_name

FactsT = TypeVar("FactsT", bound=RetentionFacts)


def keep_best(metric: str, n: int = 1, mode: Mode | None = None) -> Policy:
    """Keep the `n` best checkpoints of a run by a metric; NaN is never best, and of equals the earlier is.

    Args:
        metric: The metric's name, as in Keras' logs.
        n: The number to keep.
        mode: ``"min"`` or ``"max"``; None for the usual direction of the name.

    Raises:
        InvalidArgumentError: An argument cannot be used, or `mode` is needed.

    Example:
        >>> keep_best("val_accuracy", 2)
        keep_best('val_accuracy', 2, mode='max')
    """
    check_metric_name(metric)
    check_count("n", n)
    direction = check_mode(metric, mode)
    return Policy(
        f"keep_best({metric!r}, {n}, mode={direction!r})", KeepBest(metric, n, direction), is_builtin=True
    )


def check_mode(metric: str, mode: object) -> Mode:
    """Return the better direction of a metric: the one given, or the usual one of its name.

    Raises:
        InvalidArgumentError: It is neither direction, or the name has no usual one.
    """
    if mode is None:
        mode = mode_of(metric)
        if mode is None:
            raise InvalidArgumentError(
                argument="mode",
                value=None,
                reason=f"whether {metric!r} is better low or high cannot be told from its name",
                hint="say mode='min' or mode='max'",
            )
    if mode not in ("min", "max"):
        raise InvalidArgumentError(argument="mode", value=mode, reason="must be 'min' or 'max'")
    return "min" if mode == "min" else "max"


@dataclass(frozen=True, slots=True)
class KeepBest(Rule):
    """Keeps the `n` best by a metric."""

    metric: str
    n: int
    mode: Mode

    @property
    def modes(self) -> Iterable[tuple[str, Mode]]:
        """The metric."""
        return ((self.metric, self.mode),)

    def reasons(self, checkpoints: Sequence[RetentionFacts], always: AbstractSet[int]) -> Reasons:
        """Return the `n` best."""
        name = f"keep_best({self.metric!r}, {self.n}, mode={self.mode!r})"
        best = ranked(checkpoints, self.metric, self.mode, self.n)
        return {checkpoint.version: (name,) for checkpoint in best}

    def candidates(self, view: RunView) -> Sequence[int]:
        """Return those that new checkpoints have pushed below rank `n`."""
        return view.ranked(self.metric, self.mode, self.n + len(view.added))[self.n :]

    def keeps(self, view: RunView, checkpoint: Checkpoint) -> bool:
        """Return True if it is one of the `n` best."""
        return checkpoint.version in view.ranked(self.metric, self.mode, self.n)

    def certainly_kept(self, view: RunView, after: int) -> IsCertainlyKept:
        """Return a test that decides as `keeps` does."""
        best = frozenset(view.ranked(self.metric, self.mode, self.n))
        return lambda row: row.version in best


def ranked(checkpoints: Iterable[FactsT], metric: str, mode: Mode, n: int) -> list[FactsT]:
    """Return the `n` best by a metric, best first."""
    sign = 1.0 if mode == "min" else -1.0
    valued = ((checkpoint.metrics.get(metric, math.nan), checkpoint) for checkpoint in checkpoints)
    keyed = (
        (sign * value, checkpoint.version, checkpoint)
        for value, checkpoint in valued
        if not math.isnan(value)
    )
    return [checkpoint for _, _, checkpoint in nsmallest(n, keyed)]


def best_of(checkpoints: Iterable[FactsT], metric: str, mode: Mode) -> FactsT | None:
    """Return the best by a metric; None where none has it."""
    return next(iter(ranked(checkpoints, metric, mode, 1)), None)
