"""`keep_tagged`: the rule that keeps checkpoints with a tag."""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from ckptstore.records import Checkpoint
from ckptstore.retention.policy import Policy
from ckptstore.retention.reasons import SharedReasons
from ckptstore.retention.rule import IsCertainlyKept, Reasons, RetentionFacts, Rule, RunView


def keep_tagged() -> Policy:
    """Keep the checkpoints that have a tag.

    Example:
        >>> keep_tagged()
        keep_tagged()
    """
    return Policy("keep_tagged()", KeepTagged(), is_builtin=True)


@dataclass(frozen=True, slots=True)
class KeepTagged(Rule):
    """Keeps what has a tag; a checkpoint that loses its last tag is checked again, since that is an event."""

    def reasons(self, checkpoints: Sequence[RetentionFacts], always: AbstractSet[int]) -> Reasons:
        """Return those with a tag."""
        why = ("keep_tagged()",)
        return SharedReasons((checkpoint.version, why) for checkpoint in checkpoints if checkpoint.tags)

    def keeps(self, view: RunView, checkpoint: Checkpoint) -> bool:
        """Return True if it has a tag."""
        return bool(checkpoint.tags)

    def certainly_kept(self, view: RunView, after: int) -> IsCertainlyKept:
        """Return a test that decides as `keeps` does."""
        return lambda row: row.is_tagged
