"""Which of a run's checkpoints go after a save, found by look-ups: the cost is that of what goes, not of what stays.

When the rules were applied last, everything that was left was kept by one of them, or stays always. So only that can go
now which is new or back, which has lost a tag, a pin or a place at which it was shown, or which a rule tells that new
ones have pushed out (`Rule.leavers`). Each of these few is then judged by all rules.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Protocol

from ckptstore.records import Checkpoint, Mode
from ckptstore.retention.always import NEWEST
from ckptstore.retention.budget import MaxBytes
from ckptstore.retention.policy import AnyOf, OfThese, Policy, as_rule
from ckptstore.retention.rule import Rule, RunView


class StoreView(RunView, Protocol):
    """A run's checkpoints, with what is known of them beside the rules.

    Attributes:
        always: Versions that always stay, but for those that are pinned or shown.
    """

    always: frozenset[int]

    @property
    def monitors(self) -> Mapping[str, Mode]:
        """The metrics that writers watch, each with its better direction."""
        ...

    @property
    def resumed(self) -> Sequence[int]:
        """The version that the run was resumed from last, and those before, back to when the rules were applied."""
        ...

    @property
    def released(self) -> Collection[int]:
        """Versions that lost a tag, a pin or a place at which they were shown since."""
        ...

    @property
    def last_event(self) -> int:
        """The newest event."""
        ...

    def newest(self, limit: int, *, resumable: bool = False) -> Sequence[int]:
        """Return the versions of the newest that are whole, newest first."""
        ...

    def every(self) -> Iterator[Checkpoint]:
        """Yield all checkpoints, oldest first, without their metrics."""
        ...

    def get(self, versions: Iterable[int]) -> list[Checkpoint]:
        """Return complete checkpoints, oldest first."""
        ...

    def is_free(self, checkpoint: Checkpoint) -> bool:
        """Tell whether a checkpoint is whole, neither pinned nor shown, and none of those that always stay."""
        ...


def has_steps(policy: Policy) -> bool:
    """Tell whether look-ups are enough to apply a policy.

    They are not for users' own functions, and of rules joined by ``&`` only for a budget over simple ones.
    """
    rule = policy.kept
    if isinstance(rule, OfThese):
        return isinstance(rule.second.kept, MaxBytes) and _is_simple(rule.first)
    return _is_simple(policy)


def _is_simple(policy: Policy) -> bool:
    rule = policy.kept
    if isinstance(rule, AnyOf):
        return all(map(_is_simple, rule.parts))
    return isinstance(rule, Rule) and not isinstance(rule, OfThese)


def always_here(view: StoreView) -> set[int]:
    """Return the versions of a run that always stay, but for those that are pinned or shown."""
    best = (view.ranked(metric, mode, 1) for metric, mode in view.monitors.items())
    return {
        *(version for versions in best for version in versions),
        *view.newest(NEWEST),
        *view.newest(NEWEST, resumable=True),
        *view.resumed[:1],
    }


def gone(policy: Policy, view: StoreView) -> list[Checkpoint]:
    """Return the checkpoints that go, oldest first."""
    rule = policy.kept
    if isinstance(rule, OfThese):
        first, budget = as_rule(rule.first), as_rule(rule.second)
        view.let_go = _judged(view, first.leavers, lambda one: first.keeps(view, one))
        too_many = view.get(budget.leavers(view))
        return sorted([*view.let_go, *too_many], key=lambda one: one.version)
    simple = as_rule(policy)
    return _judged(view, simple.leavers, lambda one: simple.keeps(view, one))


def _judged(
    view: StoreView, leavers: Callable[[StoreView], Iterable[int]], keeps: Callable[[Checkpoint], bool]
) -> list[Checkpoint]:
    found: Iterable[Checkpoint] = view.every()
    if view.is_judged:
        fresh = (one.version for one in view.fresh)
        found = view.get({*leavers(view), *_left_behind(view), *view.released, *fresh})
    # Whether it is kept is mostly known by now; whether it is whole is asked of the disk.
    return [one for one in found if not keeps(one) and view.is_free(one)]


def _left_behind(view: StoreView) -> set[int]:
    """Return what may have stayed because it always does, and does not any more."""
    more = len(view.fresh)
    best = (view.ranked(metric, mode, 1 + more) for metric, mode in view.monitors.items())
    return {
        *(version for versions in best for version in versions),
        *view.newest(NEWEST + more),
        *view.newest(NEWEST + more, resumable=True),
        *view.resumed,
    }
