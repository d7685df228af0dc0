"""Finds a run's expired checkpoints after a save by look-ups: the cost depends on what expires, not on what stays.

After a check, every checkpoint left is kept by a rule or always stays. So at the next check a checkpoint can expire
only if it is new or found again, if it lost a tag, a pin or a published path, or if a rule reports that newer ones have
pushed it out (`Rule.candidates`). Each of these few is tested by all rules.

The first check with a policy scans the whole run, cheaply: checkpoints that no rule certainly keeps
(`Rule.certainly_kept`) are tested. At most `MAX_EXPIRED` expire in one check, so that it does not delay the training.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Protocol

from ckptstore.records import Checkpoint, Mode
from ckptstore.retention.always_kept import NEWEST
from ckptstore.retention.max_bytes import MaxBytes
from ckptstore.retention.policy import AnyOf, Policy, Restricted, as_rule
from ckptstore.retention.rule import IsCertainlyKept, Rule, RunView

# The most that expire in one check while a policy is applied for the first time.
MAX_EXPIRED = 1000


class RetentionView(RunView, Protocol):
    """A run's checkpoints, with the facts beyond the rules that decide what expires.

    Attributes:
        always: Versions that always stay, without those that are pinned or shown.
        scanned_to: The version up to which the first check has come in earlier calls; it continues after that.
    """

    always: frozenset[int]
    scanned_to: int

    @property
    def monitors(self) -> Mapping[str, Mode]:
        """The metrics that writers watch, each with its better direction."""
        ...

    @property
    def resumed(self) -> Sequence[int]:
        """The version that the run was resumed from last, and those before, back to the last check."""
        ...

    @property
    def released(self) -> Collection[int]:
        """Versions that lost a tag, a pin or a published path since the last check."""
        ...

    @property
    def last_event(self) -> int:
        """The newest event."""
        ...

    def newest(self, limit: int, *, resumable: bool = False) -> Sequence[int]:
        """Return the versions of the newest intact checkpoints, newest first."""
        ...

    def undecided(
        self, is_certainly_kept: IsCertainlyKept, after: int, upto: int | None
    ) -> Iterator[Checkpoint]:
        """Yield those in a range of versions that are not certainly kept, oldest first, without their metrics."""
        ...

    def get(self, versions: Iterable[int], *, without_metrics: bool = False) -> list[Checkpoint]:
        """Return complete checkpoints, oldest first; `without_metrics` if they may lack them."""
        ...

    def may_expire(self, checkpoint: Checkpoint) -> bool:
        """Return True if a checkpoint is intact, neither pinned nor shown, and none of those that always stay."""
        ...


def is_incremental(policy: Policy) -> bool:
    """Return True if look-ups are enough to apply a policy.

    They are not for users' own functions; of rules joined by ``&`` only for a budget over simple ones.
    """
    rule = policy.kept
    if isinstance(rule, Restricted):
        return isinstance(rule.second.kept, MaxBytes) and _is_simple(rule.first)
    return _is_simple(policy)


def _is_simple(policy: Policy) -> bool:
    rule = policy.kept
    if isinstance(rule, AnyOf):
        return all(map(_is_simple, rule.parts))
    return isinstance(rule, Rule) and not isinstance(rule, Restricted)


def always_kept_versions(view: RetentionView) -> set[int]:
    """Return the versions of a run that always stay, without those that are pinned or shown."""
    best = (view.ranked(metric, mode, 1) for metric, mode in view.monitors.items())
    return {
        *(version for versions in best for version in versions),
        *view.newest(NEWEST),
        *view.newest(NEWEST, resumable=True),
        *view.resumed[:1],
    }


def expired(policy: Policy, view: RetentionView) -> tuple[list[Checkpoint], bool]:
    """Return the expired checkpoints, oldest first, and True if these are all; else the next check continues."""
    rule = policy.kept
    if isinstance(rule, Restricted):
        first, budget = as_rule(rule.first), rule.second.kept
        assert isinstance(budget, MaxBytes)
        view.already_expired, is_complete = _expired_by(view, first)
        if not is_complete:
            return list(view.already_expired), False
        limit = None if view.was_checked else MAX_EXPIRED - len(view.already_expired)
        over_budget, is_complete = _at_most(budget.over_budget(view), limit)
        return _oldest_first([*view.already_expired, *over_budget]), is_complete
    simple = as_rule(policy)
    if isinstance(simple, MaxBytes) and not view.was_checked:
        over_budget, is_complete = _at_most(simple.over_budget(view), MAX_EXPIRED)
        return _oldest_first(over_budget), is_complete
    return _expired_by(view, simple)


def _at_most(checkpoints: Iterable[Checkpoint], limit: int | None) -> tuple[list[Checkpoint], bool]:
    """Return the first ones, and True if these are all."""
    found = list(islice(checkpoints, None if limit is None else limit + 1))
    return found[:limit], limit is None or len(found) <= limit


def _oldest_first(checkpoints: Iterable[Checkpoint]) -> list[Checkpoint]:
    return sorted(checkpoints, key=lambda checkpoint: checkpoint.version)


def _expired_by(view: RetentionView, rule: Rule) -> tuple[list[Checkpoint], bool]:
    def is_expired(checkpoint: Checkpoint) -> bool:
        # The rule mostly knows its answer by now; `may_expire` asks the disk.
        return not rule.keeps(view, checkpoint) and view.may_expire(checkpoint)

    if not view.was_checked and isinstance(rule, AnyOf) and (budget := _budget_in(rule)) is not None:
        # The rest is scanned in the budget's order, and only as far as enough have expired.
        others = [as_rule(part) for part in rule.parts if part.kept is not budget]
        left = (
            checkpoint
            for checkpoint in budget.over_budget(view)
            if not any(other.keeps(view, checkpoint) for other in others)
        )
        found, is_complete = _at_most(left, MAX_EXPIRED)
        return _oldest_first(found), is_complete
    if not view.was_checked:
        found, is_complete = _at_most(filter(is_expired, _first_scan(view, rule)), MAX_EXPIRED)
        view.scanned_to = 0 if is_complete else found[-1].version
        return _oldest_first(found), is_complete
    added = (checkpoint.version for checkpoint in view.added)
    candidates = {*rule.candidates(view), *_no_longer_protected(view), *view.released, *added} - view.always
    return list(filter(is_expired, view.get(candidates, without_metrics=True))), True


def _budget_in(rule: AnyOf) -> MaxBytes | None:
    return next((part.kept for part in rule.parts if isinstance(part.kept, MaxBytes)), None)


def _first_scan(view: RetentionView, rule: Rule) -> Iterator[Checkpoint]:
    """Yield what a rule may not keep, from where the last check ended, then from the start: all at one moment."""
    start = view.scanned_to
    yield from view.undecided(rule.certainly_kept(view, start), start, None)
    if start:
        yield from view.undecided(rule.certainly_kept(view, 0), 0, start)


def _no_longer_protected(view: RetentionView) -> set[int]:
    """Return the versions that may have stayed only because they were always kept, and are not any longer."""
    more = len(view.added)
    best = (view.ranked(metric, mode, 1 + more) for metric, mode in view.monitors.items())
    return {
        *(version for versions in best for version in versions),
        *view.newest(NEWEST + more),
        *view.newest(NEWEST + more, resumable=True),
        *view.resumed,
    }
