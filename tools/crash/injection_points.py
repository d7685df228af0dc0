"""The moments at which strace can kill or fail a thread: each call that it makes, by name and number.

strace counts for ``when=`` by thread and by call: of a set of calls, ``when=3`` hits the third of *each*. So one moment
in a sequence of different calls is told by the call's name and how many of that name came before.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Call:
    """A system call, and which of its name it is in its thread, counted from 1."""

    name: str
    nth: int


def calls_in(log: Path) -> list[Call]:
    """Return the calls in a log of strace's that its busiest thread made, in order."""
    lines = [re.match(r"(\d+) +(\w+)\(", line) for line in log.read_text(encoding="utf-8").splitlines()]
    made = [(match[1], match[2]) for match in lines if match]
    busiest = Counter(thread for thread, _ in made).most_common(1)
    count = Counter[str]()
    calls = []
    for thread, name in made:
        if thread == busiest[0][0]:
            count[name] += 1
            calls.append(Call(name, count[name]))
    return calls


def one_of_each(calls: Sequence[Call]) -> set[int]:
    """Return the place of the middle one of the calls of each name."""
    places: dict[str, list[int]] = {}
    for place, call in enumerate(calls):
        places.setdefault(call.name, []).append(place)
    return {found[len(found) // 2] for found in places.values()}


def from_then_on(calls: Sequence[Call], place: int) -> list[Call]:
    """Return, for each name, the first call of it at `place` or behind."""
    first: dict[str, Call] = {}
    for call in calls[place:]:
        first.setdefault(call.name, call)
    return list(first.values())
