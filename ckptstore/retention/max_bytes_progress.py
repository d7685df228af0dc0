"""Progress of size budgets from one check of a run to the next, kept in the memory of the process that saves.

Without it, each check would pass again over the checkpoints that a budget lets expire and another rule keeps, and would
add up the bytes of the whole run while many checkpoints still have to go. If anything but saves happened since the last
check, the progress is dropped and found again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ckptstore.records import FINISHED

# The last checkpoints that a budget let expire are checked again: with payloads of other sizes it may let fewer expire.
RECHECKED = 64

# Events that matter to a budget only through the versions that always stay.
_HARMLESS = ("tagged", "untagged", "resuming", "resumed", "ended", FINISHED)

# The version up to which a budget lets everything expire, and the bytes of those that are still there.
Reached = tuple[int, int]


class BudgetProgress:
    """How far budgets come in one check.

    Args:
        before: How far they had come before.
    """

    def __init__(self, before: Mapping[object, Reached]) -> None:
        self._before = before
        self._started: dict[object, Reached] = {}
        self._added: dict[object, list[Reached]] = {}

    def begin(self, budget: object, excess: int) -> Reached:
        """Return the version up to which a budget lets everything expire in any case, and the bytes of that."""
        if budget not in self._started:
            reached = self._before.get(budget, (0, 0))
            self._started[budget] = reached if reached[1] < excess else (0, 0)
            self._added[budget] = []
        return self._started[budget]

    def add(self, budget: object, version: int, nbytes: int) -> None:
        """Record a checkpoint that a budget lets expire; called oldest first."""
        if version > self.expires_up_to(budget):
            self._added[budget].append((version, nbytes))

    def expires_up_to(self, budget: object) -> int:
        """Return the version up to which a budget lets everything expire."""
        added = self._added[budget]
        return added[-1][0] if added else self._started[budget][0]

    def after(self, removed: Mapping[int, int]) -> dict[object, Reached]:
        """Return how far the budgets have come once some versions, each with its bytes, are removed."""
        found = {}
        for budget, (version, nbytes) in self._started.items():
            added = self._added[budget][:-RECHECKED]
            # Other rules kept these until now.
            freed = sum(size for removed_version, size in removed.items() if removed_version <= version)
            kept = sum(size for left, size in added if left not in removed)
            found[budget] = (added[-1][0] if added else version, nbytes + kept - freed)
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckProgress:
    """State of a run after a check, from which the next check continues.

    Attributes:
        event_id: An event; the newest one seen is the next after it.
        newest: The newest version.
        nbytes: Bytes of the checkpoints that are left; None if no rule asked for it.
        expired: Versions that expired in the check.
        reached: How far budgets have come.
        always: The versions that always stayed.
        is_recorded: True if the manifest has recorded that everything was checked; any other removal clears that.
    """

    event_id: int
    newest: int
    nbytes: int | None
    expired: Sequence[int]
    reached: Mapping[object, Reached]
    always: frozenset[int]
    is_recorded: bool

    def saved_since(self, events: Iterable[tuple[str, int | None, Any]]) -> list[int] | None:
        """Return the versions saved since, by the events after `event_id`; None if anything else happened.

        The marking of expired versions is an event too: if it is missing, the transaction of the check failed.
        """
        saved: list[int] = []
        is_marked = not self.expired
        for kind, version, detail in events:
            if kind == "saved" and version is not None:
                saved += [version] if version > self.newest else []
            elif kind in _HARMLESS:
                continue
            elif kind == "pruned" and not is_marked and detail == {"versions": list(self.expired)}:
                is_marked = True
            else:
                return None
        return saved if is_marked else None

    def still_reached(self, always: frozenset[int]) -> Mapping[object, Reached]:
        """Return how far budgets have come, without those that had passed a version whose protection has changed."""
        changed = min(self.always ^ always, default=None)
        return {
            budget: reached
            for budget, reached in self.reached.items()
            if changed is None or reached[0] < changed
        }
