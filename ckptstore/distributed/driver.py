"""`drive`: runs a state machine of messages until it needs its caller, or is finished."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Protocol

from ckptstore.errors import MessagesLostError

_FIRST_PAUSE_S = 0.002
_LONGEST_PAUSE_S = 0.1


def pauses() -> Iterator[float]:
    """Yield the seconds to wait between two looks for a message: short at first, for the fast case, then longer.

    Example:
        >>> from itertools import islice
        >>> list(islice(pauses(), 8))
        [0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.1, 0.1]
    """
    pause_s = _FIRST_PAUSE_S
    while True:
        yield pause_s
        pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)


class Machine(Protocol):
    """One side of an exchange. A step makes at most one call of `Messages`."""

    @property
    def needs_steps(self) -> bool:
        """True until it needs its caller, or is finished."""
        ...

    def step(self, now: float) -> bool:
        """Make one step; returns False if nothing came of it, so that the next may wait a moment.

        Args:
            now: The time of a monotonic clock, in seconds.
        """
        ...


def drive(
    machine: Machine,
    *,
    patience_s: float = 0.0,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Make steps until the machine needs its caller or is finished; its own limits end it.

    Args:
        machine: The machine.
        patience_s: How long messages may fail to get through before that is an error; a step may be repeated.
        clock: A monotonic clock, in seconds.
        sleep: Waits for some seconds.

    Raises:
        MessagesLostError: The messages do not get through; the machine is as it was before that step.
        DistributedError: Another failure of a message, likewise.
    """
    waits = pauses()
    lost_since: float | None = None
    while machine.needs_steps:
        now = clock()
        try:
            progressed = machine.step(now)
        except MessagesLostError:
            lost_since = now if lost_since is None else lost_since
            if clock() - lost_since >= patience_s:
                raise
            progressed = False
        else:
            lost_since = None
        if progressed:
            waits = pauses()
        else:
            sleep(next(waits))
