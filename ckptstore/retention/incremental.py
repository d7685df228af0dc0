"""Which of a run's checkpoints go after a save, found by look-ups: the cost is that of what goes, not of what stays.

When the rules were applied last, everything that was left was kept by one of them, or stays always. So only that can go
now which is new or back, which has lost a tag, a pin or a place at which it was shown, or which a rule tells that new
ones have pushed out (`Rule.candidates`). Each of these few is then judged by all rules.

When rules are applied for the first time, all are looked at once, briefly: what none of the rules keeps for certain
(`Rule.certainly_kept`) is judged. So much may go then that it would hold up the training: `MOST` at a time.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Protocol

from ckptstore.records import Checkpoint, Mode
from ckptstore.retention.always_kept import NEWEST
from ckptstore.retention.max_bytes import MaxBytes
from ckptstore.retention.policy import AnyOf, OfThese, Policy, as_rule
from ckptstore.retention.rule import IsCertainlyKept, Rule, RunView

# So many go at a time when rules are applied for the first time.
MOST = 1000


class StoreView(RunView, Protocol):
    """A run's checkpoints, with what is known of them beside the rules.

    Attributes:
        always: Versions that always stay, but for those that are pinned or shown.
        scanned_to: The version up to which a first look has come in earlier turns; it begins behind that.
    """

    always: frozenset[int]
    scanned_to: int

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

    def undecided(
        self, is_certainly_kept: IsCertainlyKept, after: int, upto: int | None
    ) -> Iterator[Checkpoint]:
        """Yield those in a span of versions that are not kept for certain, oldest first, without their metrics."""
        ...

    def get(self, versions: Iterable[int], *, without_metrics: bool = False) -> list[Checkpoint]:
        """Return complete checkpoints, oldest first; `without_metrics` if they may lack them."""
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


def expired(policy: Policy, view: StoreView) -> tuple[list[Checkpoint], bool]:
    """Return the checkpoints that go, oldest first, and whether these are all: else there is another turn."""
    rule = policy.kept
    if isinstance(rule, OfThese):
        first, budget = as_rule(rule.first), rule.second.kept
        assert isinstance(budget, MaxBytes)
        view.already_expired, is_complete = _judged(view, first)
        if not is_complete:
            return list(view.already_expired), False
        too_many, is_complete = _so_many(
            budget.going(view), None if view.is_judged else MOST - len(view.already_expired)
        )
        return sorted([*view.already_expired, *too_many], key=lambda one: one.version), is_complete
    simple = as_rule(policy)
    if isinstance(simple, MaxBytes) and not view.is_judged:
        too_many, is_complete = _so_many(simple.going(view), MOST)
        return sorted(too_many, key=lambda one: one.version), is_complete
    return _judged(view, simple)


def _so_many(going: Iterable[Checkpoint], most: int | None) -> tuple[list[Checkpoint], bool]:
    """Return the first, and whether these are all."""
    found = list(islice(going, None if most is None else most + 1))
    return found[:most], most is None or len(found) <= most


def _judged(view: StoreView, rule: Rule) -> tuple[list[Checkpoint], bool]:
    def goes(one: Checkpoint) -> bool:
        # Whether it is kept is mostly known by now; whether it is whole is asked of the disk.
        return not rule.keeps(view, one) and view.is_free(one)

    if not view.is_judged and isinstance(rule, AnyOf) and (budget := _budget_in(rule)) is not None:
        # What the budget keeps stays: the rest is looked at in its order, and no further than so many go.
        others = [as_rule(part) for part in rule.parts if part.kept is not budget]
        left = (one for one in budget.going(view) if not any(other.keeps(view, one) for other in others))
        going, is_complete = _so_many(left, MOST)
        return sorted(going, key=lambda one: one.version), is_complete
    if not view.is_judged:
        going, is_complete = _so_many(filter(goes, _at_first_look(view, rule)), MOST)
        view.scanned_to = 0 if is_complete else going[-1].version
        return sorted(going, key=lambda one: one.version), is_complete
    fresh = (one.version for one in view.fresh)
    may_go = {*rule.candidates(view), *_left_behind(view), *view.released, *fresh} - view.always
    return [one for one in view.get(may_go, without_metrics=True) if goes(one)], True


def _budget_in(rule: AnyOf) -> MaxBytes | None:
    return next((part.kept for part in rule.parts if isinstance(part.kept, MaxBytes)), None)


def _at_first_look(view: StoreView, rule: Rule) -> Iterator[Checkpoint]:
    """Yield what a rule may not keep, from where the last turn ended, and then from the start: all at one moment."""
    passed = view.scanned_to
    yield from view.undecided(rule.certainly_kept(view, passed), passed, None)
    if passed:
        yield from view.undecided(rule.certainly_kept(view, 0), 0, passed)


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
