"""`Policy`: a rule that decides what stays, and rules joined by ``|`` (either keeps) and ``&`` (one restricts another).

A rule is a pure function of one run's checkpoints. Built-in rules are frozen dataclasses, which pickle, and can also
decide about a few checkpoints by look-ups in the manifest (`ckptstore.retention.rule.Rule`); any other function works
too, and is given all of the run's checkpoints each time.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import cast

from ckptstore.errors import InvalidArgumentError
from ckptstore.records import Checkpoint, Mode, RowKey
from ckptstore.retention.columns import select_versions
from ckptstore.retention.reasons import SharedReasons
from ckptstore.retention.rule import IsCertainlyKept, Reasons, RetentionFacts, Rule, RunView

KeepFunction = Callable[[Sequence[Checkpoint]], Collection[int] | Collection[Checkpoint]]


@dataclass(frozen=True, slots=True)
class Policy:
    """A rule that decides which checkpoints of a run stay.

    ``a | b`` keeps what either keeps; ``a & b`` applies `b` to what `a` keeps, as a budget over other rules:
    ``(keep_last(50) | keep_best("val_loss", 5)) & max_bytes("20 GB")``.

    Attributes:
        name: Its text, such as ``"keep_last(3)"``.
        kept: Maps one run's intact checkpoints, oldest first, to the versions that it keeps, or to the checkpoints.
        is_builtin: True if every part of it is built in, so that another process can apply it.

    Example:
        >>> from ckptstore.retention import keep_best, keep_last
        >>> keep_last(3) | keep_best("val_loss", 2)
        keep_last(3) | keep_best('val_loss', 2, mode='min')
    """

    name: str
    kept: KeepFunction
    is_builtin: bool = False

    def __call__(self, checkpoints: Sequence[Checkpoint]) -> set[int]:
        """Return the versions that stay.

        Raises:
            InvalidArgumentError: The function did not return versions of these checkpoints.
        """
        if self.is_builtin:
            return {int(version) for version in self.kept(checkpoints)}  # type: ignore[arg-type]
        return _checked(self.name, self.kept(checkpoints), {checkpoint.version for checkpoint in checkpoints})

    def reasons(self, checkpoints: Sequence[RetentionFacts], always: AbstractSet[int]) -> Reasons:
        """Return the versions that stay, each with the names of the rules that keep it.

        Args:
            checkpoints: One run's intact checkpoints, oldest first.
            always: Versions that stay whatever a rule decides; a budget counts them.
        """
        if isinstance(self.kept, Rule):
            return self.kept.reasons(checkpoints, always)
        # Callers pass complete checkpoints to a policy with a user's function.
        versions = self(cast("Sequence[Checkpoint]", checkpoints))
        return SharedReasons((version, (self.name,)) for version in versions)

    def rules(self) -> Iterator[Rule]:
        """Yield the built-in rules that it is made of."""
        if isinstance(self.kept, AnyOf):
            for part in self.kept.parts:
                yield from part.rules()
        elif isinstance(self.kept, Restricted):
            yield from self.kept.first.rules()
            yield from self.kept.second.rules()
        elif isinstance(self.kept, Rule):
            yield self.kept

    def __or__(self, other: Policy | KeepFunction) -> Policy:
        other = as_policy(other)
        parts = (*_parts(self), *_parts(other))
        return _joined(
            Policy(" | ".join(map(_bracketed, parts)), AnyOf(parts), self.is_builtin and other.is_builtin)
        )

    def __ror__(self, other: KeepFunction) -> Policy:
        return as_policy(other) | self

    def __and__(self, other: Policy | KeepFunction) -> Policy:
        other = as_policy(other)
        name = f"{_bracketed(self, of='|')} & {_bracketed(other)}"
        return _joined(Policy(name, Restricted(self, other), self.is_builtin and other.is_builtin))

    def __rand__(self, other: KeepFunction) -> Policy:
        return as_policy(other) & self

    def __repr__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True)
class AnyOf(Rule):
    """Keeps what any of several policies keeps."""

    parts: tuple[Policy, ...]

    def reasons(self, checkpoints: Sequence[RetentionFacts], always: AbstractSet[int]) -> Reasons:
        """Return what stays, with all reasons for it."""
        found = [part.reasons(checkpoints, always) for part in self.parts]
        joined = (
            (
                checkpoint.version,
                tuple(name for reasons in found for name in reasons.get(checkpoint.version, ())),
            )
            for checkpoint in checkpoints
        )
        return SharedReasons((version, names) for version, names in joined if names)

    def candidates(self, view: RunView) -> set[int]:
        """Return the candidates of all parts."""
        return set().union(*(as_rule(part).candidates(view) for part in self.parts))

    def keeps(self, view: RunView, checkpoint: Checkpoint) -> bool:
        """Return True if any of the parts keeps it."""
        return any(as_rule(part).keeps(view, checkpoint) for part in self.parts)

    def certainly_kept(self, view: RunView, after: int) -> IsCertainlyKept:
        """Return a test that is true for what any of the parts certainly keeps."""
        parts = [as_rule(part).certainly_kept(view, after) for part in self.parts]

        def is_certainly_kept(row: RowKey) -> bool:
            # Every part must see every row.
            return True in [part(row) for part in parts]

        return is_certainly_kept


@dataclass(frozen=True, slots=True)
class Restricted(Rule):
    """Keeps what a second policy keeps of what a first keeps and of what always stays."""

    first: Policy
    second: Policy

    def reasons(self, checkpoints: Sequence[RetentionFacts], always: AbstractSet[int]) -> Reasons:
        """Return what stays, with the first policy's reasons."""
        found = self.first.reasons(checkpoints, always)
        left = select_versions(checkpoints, lambda version: version in found or version in always)
        stay = self.second.reasons(left, always)
        return SharedReasons((version, names) for version, names in found.items() if version in stay)


def as_rule(policy: Policy) -> Rule:
    """Return the rule of a built-in policy."""
    assert isinstance(policy.kept, Rule)
    return policy.kept


def as_policy(rule: Policy | KeepFunction) -> Policy:
    """Return a policy: itself, or one of a function that maps a run's checkpoints to those that stay.

    Raises:
        InvalidArgumentError: It is neither.

    Example:
        >>> def even(checkpoints):
        ...     return [one.version for one in checkpoints if one.version % 2 == 0]
        >>> as_policy(even)
        even
    """
    if isinstance(rule, Policy):
        return rule
    if not callable(rule) or isinstance(rule, type):
        raise InvalidArgumentError(
            argument="policy",
            value=rule,
            reason="must be a retention policy, or a function of a run's checkpoints",
            hint="such as ckptstore.keep_last(3) | ckptstore.keep_best('val_loss', 2)",
        )
    return Policy(getattr(rule, "__name__", type(rule).__name__), rule)


def check_modes(policy: Policy, monitors: Mapping[str, Mode]) -> None:
    """Refuse a policy whose better direction of a metric contradicts the run's.

    Raises:
        InvalidArgumentError: They contradict.
    """
    for rule in policy.rules():
        for metric, mode in rule.modes:
            if monitors.get(metric, mode) != mode:
                raise InvalidArgumentError(
                    argument="policy",
                    value=policy,
                    reason=f"takes {metric!r} to be better the other way than the run, which watches it "
                    f"as {monitors[metric]!r}; nothing was removed",
                    hint=f"say mode={monitors[metric]!r}",
                )


def _parts(policy: Policy) -> tuple[Policy, ...]:
    return policy.kept.parts if isinstance(policy.kept, AnyOf) else (policy,)


def _bracketed(policy: Policy, of: str = "&|") -> str:
    joined = ("|" in of and isinstance(policy.kept, AnyOf)) or (
        "&" in of and isinstance(policy.kept, Restricted)
    )
    return f"({policy.name})" if joined else policy.name


def _joined(policy: Policy) -> Policy:
    """Return a policy whose rules agree on the better direction of each metric.

    Raises:
        InvalidArgumentError: They disagree.
    """
    modes: dict[str, str] = {}
    for rule in policy.rules():
        for metric, mode in rule.modes:
            if modes.setdefault(metric, mode) != mode:
                raise InvalidArgumentError(
                    argument="policy",
                    value=policy,
                    reason=f"takes {metric!r} to be better low and high at once",
                    hint="give both rules the same mode",
                )
    return policy


def _checked(name: str, kept: object, known: AbstractSet[int]) -> set[int]:
    """Return the versions that a user's function returned.

    Raises:
        InvalidArgumentError: It did not return versions of the run's checkpoints.
    """
    if not isinstance(kept, Collection) or isinstance(kept, str | bytes):
        raise _wrong(name, kept, "returned no collection of versions")
    versions = {item.version if isinstance(item, Checkpoint) else item for item in kept}
    unknown = [version for version in versions if version not in known]
    if unknown:
        raise _wrong(name, unknown[0], "returned what is no version of the run's checkpoints")
    return versions


def _wrong(name: str, value: object, reason: str) -> InvalidArgumentError:
    return InvalidArgumentError(
        argument=f"policy {name}", value=value, reason=f"{reason}; nothing was removed"
    )
