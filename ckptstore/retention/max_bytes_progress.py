"""How far budgets have come with a run, in the memory of the process that saves: for its next turns to go on from.

What a budget lets go and another rule keeps would be passed over in every turn, and while much is still to go all bytes
would be added up in each. Where anything but saves came in between, all of this is forgotten, and found out again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# So many of the last that a budget let go are looked at again: it may let go fewer, where payloads differ in size.
TRAIL = 64

# Events that change nothing for a budget, but by what always stays.
_BESIDE = ("tagged", "untagged", "resuming", "resumed", "ended")

# Up to which version a budget let everything go, and the bytes of what is still there of that.
Passed = tuple[int, int]


class Passes:
    """How far budgets come in one turn.

    Args:
        before: How far they had come.
    """

    def __init__(self, before: Mapping[object, Passed]) -> None:
        self._before = before
        self._begun: dict[object, Passed] = {}
        self._walked: dict[object, list[Passed]] = {}

    def begin(self, budget: object, excess: int) -> Passed:
        """Return up to which version a budget lets everything go anyway, and the bytes of that."""
        if budget not in self._begun:
            found = self._before.get(budget, (0, 0))
            self._begun[budget] = found if found[1] < excess else (0, 0)
            self._walked[budget] = []
        return self._begun[budget]

    def note(self, budget: object, version: int, nbytes: int) -> None:
        """Note what a budget lets go, which is told oldest first."""
        if version > self.upto(budget):
            self._walked[budget].append((version, nbytes))

    def upto(self, budget: object) -> int:
        """Return up to which version a budget lets everything go."""
        walked = self._walked[budget]
        return walked[-1][0] if walked else self._begun[budget][0]

    def after(self, gone: Mapping[int, int]) -> dict[object, Passed]:
        """Return how far they have come when some are gone, each with its bytes."""
        found = {}
        for budget, (version, nbytes) in self._begun.items():
            walked = self._walked[budget][:-TRAIL]
            # Others kept these until now.
            let_go = sum(size for one, size in gone.items() if one <= version)
            added = sum(size for one, size in walked if one not in gone)
            found[budget] = (walked[-1][0] if walked else version, nbytes + added - let_go)
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far the turns of a run have come.

    Attributes:
        event_id: An event; the newest that was seen comes right after it.
        newest: The newest version.
        nbytes: Bytes of what is left; None where nobody asked.
        gone: What went in the last turn.
        passed: How far budgets have come.
        always: The versions that always stayed.
        is_noted: Whether the manifest noted that everything was judged; whoever removes something takes that away.
    """

    event_id: int
    newest: int
    nbytes: int | None
    gone: Sequence[int]
    passed: Mapping[object, Passed]
    always: frozenset[int]
    is_noted: bool

    def saved_since(self, events: Iterable[tuple[str, int | None, Any]]) -> list[int] | None:
        """Return what was saved since, by the events behind `event_id`; None where anything else happened.

        That what went is marked stands in an event, too: if it is missing, the turn's transaction failed.
        """
        saved: list[int] = []
        marked = not self.gone
        for kind, version, detail in events:
            if kind == "saved" and version is not None:
                saved += [version] if version > self.newest else []
            elif kind in _BESIDE:
                continue
            elif kind == "pruned" and not marked and detail == {"versions": list(self.gone)}:
                marked = True
            else:
                return None
        return saved if marked else None

    def still_passed(self, always: frozenset[int]) -> Mapping[object, Passed]:
        """Return how far budgets have come, but for those behind which something always stays now, or did."""
        changed = min(self.always ^ always, default=None)
        return {
            budget: passed for budget, passed in self.passed.items() if changed is None or passed[0] < changed
        }
