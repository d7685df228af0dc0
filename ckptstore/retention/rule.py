"""What a rule of ours is, and the few look-ups by which it judges a checkpoint without reading all that are kept."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from datetime import datetime
from typing import Literal, Protocol

from ckptstore.errors import InvalidArgumentError
from ckptstore.records import Checkpoint, Mode, RowKey
from ckptstore.retention.max_bytes_progress import Passes

# Versions that stay, each with the names of the rules that keep it.
Reasons = Mapping[int, tuple[str, ...]]
Scale = Literal["epochs", "steps", "microseconds"]


# Tells of one checkpoint after the other, lowest version first, whether it is kept for certain.
IsCertainlyKept = Callable[[RowKey], bool]


class RetentionFacts(Protocol):
    """What rules look at of a checkpoint: a `Checkpoint` has it, and so has what takes less memory."""

    @property
    def version(self) -> int:
        """Its version."""
        ...

    @property
    def epoch(self) -> int:
        """Its epoch."""
        ...

    @property
    def batch(self) -> int | None:
        """Its last finished batch; None at an epoch's end."""
        ...

    @property
    def step(self) -> int | None:
        """Finished train batches."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes of its payload."""
        ...

    @property
    def created_at(self) -> datetime:
        """When it was saved."""
        ...

    @property
    def resumable(self) -> bool:
        """Whether a run can go on from it."""
        ...

    @property
    def pinned(self) -> bool:
        """Whether it is pinned."""
        ...

    @property
    def metrics(self) -> Mapping[str, float]:
        """Its metrics, or those that are looked at."""
        ...

    @property
    def tags(self) -> tuple[str, ...]:
        """Its names."""
        ...


class RunView(Protocol):
    """One run's complete checkpoints, seen through look-ups whose cost does not grow with their number.

    Attributes:
        already_expired: Those that rules before this one let go, of which a budget frees the bytes.
        budgets: How far budgets have come.
    """

    already_expired: Sequence[Checkpoint]
    budgets: Passes

    @property
    def is_judged(self) -> bool:
        """Whether the rules were applied to everything here before; else everything is looked at."""
        ...

    @property
    def fresh(self) -> Sequence[Checkpoint]:
        """Those that are new since the rules were applied last."""
        ...

    @property
    def before(self) -> datetime | None:
        """When the newest was saved that the rules saw then; None where there was none."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes of all."""
        ...

    def remember(self, what: object, find: Callable[[], Collection[int]]) -> Collection[int]:
        """Return what was found before under a key, or find it."""
        ...

    def nth_newest(self, n: int) -> int | None:
        """Return the version of the n-th newest that is whole; None where there are fewer."""
        ...

    def below(self, version: int, limit: int) -> Sequence[int]:
        """Return the next versions below one that are whole, newest first."""
        ...

    def ranked(self, metric: str, mode: Mode, limit: int) -> Sequence[int]:
        """Return the versions of the best by a metric, best first, of equals the earlier; NaN is none."""
        ...

    def first_in(self, scale: Scale, low: int, high: int, limit: int) -> Sequence[int]:
        """Return the lowest versions whose place on a scale is in a half-open span."""
        ...

    def greatest(self, scale: Scale, upto: int) -> int | None:
        """Return a place on a scale beyond which none is whose version is up to this; None where there is none."""
        ...

    def saved_between(self, low: datetime, high: datetime) -> Sequence[int]:
        """Return the versions saved in a half-open span of time."""
        ...

    def newest_at(self) -> datetime:
        """Return when the newest was saved, or the latest of what the clock said."""
        ...

    def oldest(self, after: int = 0, *, without_metrics: bool = False) -> Iterator[Checkpoint]:
        """Yield those after a version that are not always kept, oldest first; optionally without their metrics."""
        ...


class Rule(ABC):
    """A rule of ours: pure over all checkpoints of a run, and able to judge few of them.

    Attributes:
        modes: Metrics that it looks at, each with the better direction.
    """

    __slots__ = ()

    @property
    def modes(self) -> Iterable[tuple[str, Mode]]:
        """The metrics that it looks at."""
        return ()

    def __call__(self, checkpoints: Sequence[Checkpoint]) -> set[int]:
        """Return the versions that stay, where nothing else keeps any."""
        return set(self.reasons(checkpoints, frozenset()))

    @abstractmethod
    def reasons(self, checkpoints: Sequence[RetentionFacts], always: AbstractSet[int]) -> Reasons:
        """Return the versions that stay, each with the names of the rules that keep it."""

    def candidates(self, view: RunView) -> Iterable[int]:
        """Return every version that it may have kept when it was applied last, and keeps no more."""
        return ()

    def keeps(self, view: RunView, checkpoint: Checkpoint) -> bool:
        """Tell whether it keeps a checkpoint, as `reasons` would say over all."""
        raise NotImplementedError

    def certainly_kept(self, view: RunView, after: int) -> IsCertainlyKept:
        """Return what tells, at little cost, what it keeps for certain; the rest is asked of `keeps`.

        Args:
            view: The run.
            after: The version behind which all will be told, each in turn.
        """
        return lambda one: False


def check_count(argument: str, value: object) -> int:
    """Return a number of checkpoints, epochs or steps.

    Raises:
        InvalidArgumentError: It is not a positive integer.

    Example:
        >>> check_count("n", 3)
        3
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InvalidArgumentError(argument=argument, value=value, reason="must be a positive integer")
    return value
