"""`drive`: runs a state machine of messages until it needs its caller, or is finished."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

_FIRST_PAUSE_S = 0.002
_LONGEST_PAUSE_S = 0.1


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
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Make steps until the machine needs its caller or is finished; its own limits end it.

    Raises:
        DistributedError: The messages do not get through; the machine is as it was before that step.
    """
    pause_s = _FIRST_PAUSE_S
    while machine.needs_steps:
        if machine.step(clock()):
            pause_s = _FIRST_PAUSE_S
        else:
            sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
