"""Points at which strace can kill a thread or let a call fail: each of its system calls, by name and number.

strace counts for ``when=`` by thread and by call: of a set of calls, ``when=3`` hits the third of *each*. So a point in
a sequence of different calls is identified by the call's name and how many calls of that name came before.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Call:
    """A system call, and its number among the calls of that name in its thread, from 1."""

    name: str
    nth: int


def calls_in(log: Path) -> list[Call]:
    """Return the calls of the busiest thread in a log of strace, in order."""
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


def one_of_each_name(calls: Sequence[Call]) -> set[int]:
    """Return the positions of the middle call of each name."""
    positions: dict[str, list[int]] = {}
    for position, call in enumerate(calls):
        positions.setdefault(call.name, []).append(position)
    return {found[len(found) // 2] for found in positions.values()}


def first_calls_from(calls: Sequence[Call], position: int) -> list[Call]:
    """Return the first call of each name at a position or after it."""
    first: dict[str, Call] = {}
    for call in calls[position:]:
        first.setdefault(call.name, call)
    return list(first.values())
