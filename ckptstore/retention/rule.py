"""The interface of a built-in rule, and of the look-ups that let it check a run without reading all checkpoints."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from datetime import datetime
from typing import Literal, Protocol

from ckptstore.errors import InvalidArgumentError
from ckptstore.records import Checkpoint, Mode, RowKey
from ckptstore.retention.max_bytes_progress import BudgetProgress

# Versions that stay, each with the names of the rules that keep it.
Reasons = Mapping[int, tuple[str, ...]]
Scale = Literal["epochs", "steps", "microseconds"]


# True for a checkpoint that is certainly kept; called for each in turn, lowest version first.
IsCertainlyKept = Callable[[RowKey], bool]


class RetentionFacts(Protocol):
    """The facts about a checkpoint that rules use: a `Checkpoint` has them, and so have rows that take less memory."""

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
        """Time of the save."""
        ...

    @property
    def resumable(self) -> bool:
        """True if a run can resume from it."""
        ...

    @property
    def pinned(self) -> bool:
        """True if it is pinned."""
        ...

    @property
    def metrics(self) -> Mapping[str, float]:
        """Its metrics, or those that the rules use."""
        ...

    @property
    def tags(self) -> tuple[str, ...]:
        """Its tags."""
        ...


class RunView(Protocol):
    """One run's complete checkpoints, seen through look-ups whose cost does not grow with their number.

    Attributes:
        already_expired: Checkpoints that earlier rules of this check let expire; a budget counts their bytes as freed.
        budgets: Progress of the budgets.
    """

    already_expired: Sequence[Checkpoint]
    budgets: BudgetProgress

    @property
    def was_checked(self) -> bool:
        """True if the same rules have checked the whole run before; else everything is checked."""
        ...

    @property
    def added(self) -> Sequence[Checkpoint]:
        """Checkpoints added since the last check."""
        ...

    @property
    def before(self) -> datetime | None:
        """The result of `newest_at` at the last check; None if there was none."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes of all payloads."""
        ...

    def cached(self, what: object, find: Callable[[], Collection[int]]) -> Collection[int]:
        """Return the result stored under a key, or compute and store it."""
        ...

    def nth_newest(self, n: int) -> int | None:
        """Return the version of the n-th newest intact checkpoint; None if there are fewer."""
        ...

    def below(self, version: int, limit: int) -> Sequence[int]:
        """Return the next intact versions below one, newest first."""
        ...

    def ranked(self, metric: str, mode: Mode, limit: int) -> Sequence[int]:
        """Return the versions of the best by a metric, best first, the earlier of equals first; NaN is never best."""
        ...

    def first_in(self, scale: Scale, low: int, high: int, limit: int) -> Sequence[int]:
        """Return the lowest versions whose position on a scale lies in a half-open range."""
        ...

    def greatest(self, scale: Scale, upto: int) -> int | None:
        """Return an upper bound of the positions on a scale of the versions up to one; None if there are none."""
        ...

    def saved_between(self, low: datetime, high: datetime) -> Sequence[int]:
        """Return the versions saved in a half-open span of time."""
        ...

    def newest_at(self) -> datetime:
        """Return the time of the newest checkpoint; a clock may have been set back since older ones."""
        ...

    def oldest(self, after: int = 0, *, without_metrics: bool = False) -> Iterator[Checkpoint]:
        """Yield those after a version that are not always kept, oldest first; optionally without their metrics."""
        ...


class Rule(ABC):
    """A built-in rule: a pure function of all of a run's checkpoints that can also check a few by look-ups.

    Attributes:
        modes: The metrics that it uses, each with the better direction.
    """

    __slots__ = ()

    @property
    def modes(self) -> Iterable[tuple[str, Mode]]:
        """The metrics that it uses."""
        return ()

    def __call__(self, checkpoints: Sequence[Checkpoint]) -> set[int]:
        """Return the versions that stay if nothing else keeps any."""
        return set(self.reasons(checkpoints, frozenset()))

    @abstractmethod
    def reasons(self, checkpoints: Sequence[RetentionFacts], always: AbstractSet[int]) -> Reasons:
        """Return the versions that stay, each with the names of the rules that keep it.

        Args:
            checkpoints: All of a run's intact checkpoints, oldest first.
            always: Versions that stay whatever a rule decides.
        """

    def candidates(self, view: RunView) -> Iterable[int]:
        """Return every version that the rule may have kept at the last check and keeps no longer."""
        return ()

    def keeps(self, view: RunView, checkpoint: Checkpoint) -> bool:
        """Return True if the rule keeps a checkpoint, as `reasons` would for the whole run."""
        raise NotImplementedError

    def certainly_kept(self, view: RunView, after: int) -> IsCertainlyKept:
        """Return a cheap test for checkpoints that are certainly kept; for all others `keeps` decides.

        Args:
            view: The run.
            after: The version after which the test is called for every checkpoint, in order.
        """
        return lambda row: False


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
