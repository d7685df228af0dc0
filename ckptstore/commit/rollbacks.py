"""Rollbacks of a run, as the descriptions of later payloads tell them: which earlier checkpoints they found unsound."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

ROLLBACKS = "rollbacks"


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """A checkpoint of a run, and what it knows of rollbacks.

    Attributes:
        version: The checkpoint.
        run: Its run.
        beginning: Number of the run's beginning that it belongs to.
        step: Finished batches of the run, or None.
        rollbacks: Steps that the run went back to and came from, of each rollback before it was saved.
    """

    version: int
    run: str
    beginning: int
    step: int | None
    rollbacks: tuple[tuple[int, int], ...]


def read_rollbacks(description: Mapping[str, Any]) -> tuple[tuple[int, int], ...]:
    """Return the rollbacks that a payload's description tells of.

    Raises:
        ValueError: They are nothing that ckptstore writes.
    """
    found = []
    for steps in description.get(ROLLBACKS, ()):
        to, come_from = steps
        if type(to) is not int or type(come_from) is not int or not 0 <= to < come_from:
            raise ValueError(f"a rollback is {steps!r}")
        found.append((to, come_from))
    return tuple(found)


def unsound_versions(positions: Iterable[Position]) -> dict[str, list[int]]:
    """Return the versions that rollbacks have found unsound, by run.

    The first checkpoint after a rollback is the first that tells of it. Those of a later step than it went back to that
    were saved before are unsound.

    Example:
        >>> one, two = (Position(version=n, run="r", beginning=1, step=10 * n, rollbacks=()) for n in (1, 2))
        >>> after = Position(version=3, run="r", beginning=1, step=25, rollbacks=((10, 25),))
        >>> unsound_versions([one, two, after])
        {'r': [2]}
    """
    unsound: dict[str, set[int]] = {}
    earlier: dict[tuple[str, int], list[Position]] = {}
    known: dict[tuple[str, int], set[tuple[int, int]]] = {}
    for position in sorted(positions, key=lambda one: one.version):
        key = position.run, position.beginning
        for to, come_from in set(position.rollbacks) - known.setdefault(key, set()):
            known[key].add((to, come_from))
            late = [one for one in earlier.get(key, ()) if one.step is not None and one.step > to]
            unsound.setdefault(position.run, set()).update(one.version for one in late)
        earlier.setdefault(key, []).append(position)
    return {run: sorted(versions) for run, versions in unsound.items() if versions}
