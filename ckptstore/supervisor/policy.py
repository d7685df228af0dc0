"""Decides what follows the end of a command: another start after a pause, a wait for the disk, or the end. Pure."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from ckptstore.records import EndReason
from ckptstore.system.stop_signals import TRY_AGAIN

StopReason = Literal["signal", "no_progress", "same_exception", "cannot_start", "disk_full", "max_restarts"]
MAX_PAUSE_S = 60.0
# A pause is up to this share shorter or longer, so that the trainings of a cluster do not come back in one instant.
_JITTER = 0.25
# More would be no float any more, after a thousand starts; long before that `MAX_PAUSE_S` is reached.
_MOST_DOUBLINGS = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Limits on the restarts of `supervise`, and on what it waits for.

    Attributes:
        restarts: Maximal number of restarts; None for as many as there is progress for.
        without_progress: Maximal number of starts in a row without a new checkpoint.
        pause_s: Seconds before a restart; doubled for each start without progress, up to a minute.
        grace_s: Seconds that the command has between a signal that asks for a stop and SIGKILL.
        disk_full_s: Seconds for which a full disk is waited for.
        hang_after_s: Seconds without a sign of life after which the command is believed to hang; None to learn them
            from the training; 0 for never.
        log_bytes: Bytes that the logs of a run may take.
    """

    restarts: int | None = None
    without_progress: int = 5
    pause_s: float = 1.0
    grace_s: float = 120.0
    disk_full_s: float = 3600.0
    hang_after_s: float | None = None
    log_bytes: int = 512 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """How a start of the command ended, as far as the policy asks for it.

    Attributes:
        exit_code: Its exit code, negative for the signal that killed it.
        reason: Probable reason.
        progressed: True if it has saved a new checkpoint.
        stop_requested: True if a signal asked this process for a stop.
        exception: A text that tells the exception that ended it from others; None if it was not ended by one, or
            nothing is known of it.
        step: The run's finished batches when it ended; None where unknown.
        at_s: When it ended, on the monotonic clock.
    """

    exit_code: int
    reason: EndReason
    progressed: bool
    stop_requested: bool = False
    exception: str | None = None
    step: int | None = None
    at_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Restart:
    """The command is to be started again.

    Attributes:
        pause_s: Seconds to wait before that.
        for_disk: True to wait until there is room on the disk again, but not longer than `pause_s`.
    """

    pause_s: float
    for_disk: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    """The command is not started again.

    Attributes:
        reason: The reason; None if it is done.
        text: The reason in words.
    """

    reason: StopReason | None
    text: str = ""


def grown_pause_s(first_s: float, doublings: int) -> float:
    """Return a pause that has been doubled, in seconds, at most `MAX_PAUSE_S`.

    Args:
        first_s: The first pause, in seconds.
        doublings: How often it was doubled; less than 0 counts as 0.

    Example:
        >>> grown_pause_s(1.0, 3), grown_pause_s(1.0, 100_000)
        (8.0, 60.0)
    """
    return min(first_s * 2.0 ** min(max(0, doublings), _MOST_DOUBLINGS), MAX_PAUSE_S)


class RestartPolicy:
    """Remembers how the starts of a command ended, and decides what is next.

    Args:
        limits: When to give up.
        jitter: Returns a number from 0 to 1, by which pauses differ.

    Attributes:
        restarts: The restarts so far.

    Example:
        >>> policy = RestartPolicy(Limits(), jitter=lambda: 0.5)
        >>> policy.after(End(exit_code=-9, reason="killed", progressed=True))
        Restart(pause_s=1.0, for_disk=False)
        >>> policy.after(End(exit_code=0, reason="finished", progressed=True))
        Stop(reason=None, text='')
    """

    def __init__(self, limits: Limits, *, jitter: Callable[[], float] = random.random) -> None:
        self._limits, self._jitter = limits, jitter
        self.restarts = 0
        self.without_progress = 0
        self._failure: tuple[str, int | None] | None = None
        self._full_since_s: float | None = None

    def after(self, end: End) -> Restart | Stop:
        """Return what follows an end."""
        # One that hung was told to end, and may take that for a reason to end well.
        if end.exit_code == 0 and end.reason != "hang":
            return Stop(reason=None)
        if end.stop_requested:
            return Stop(reason="signal", text="a signal asked to stop")
        if end.reason == "disk_full":
            return self._after_full_disk(end)
        self._full_since_s = None
        self.without_progress = 0 if end.progressed else self.without_progress + 1
        if (repeated := self._repeated_failure(end)) is not None:
            return Stop(reason="same_exception", text=repeated)
        if self.without_progress >= self._limits.without_progress:
            text = f"{self.without_progress} starts in a row without a new checkpoint"
            return Stop(reason="no_progress", text=text)
        return self._restart(grown_pause_s(self._limits.pause_s, self.without_progress - 1))

    def _restart(self, pause_s: float, *, for_disk: bool = False) -> Restart | Stop:
        if self._limits.restarts is not None and self.restarts >= self._limits.restarts:
            return Stop(reason="max_restarts", text=f"{self.restarts} restarts are the limit")
        self.restarts += 1
        varied_s = pause_s * (1 + _JITTER * (2 * self._jitter() - 1))
        return Restart(pause_s=min(varied_s, MAX_PAUSE_S) if not for_disk else pause_s, for_disk=for_disk)

    def _after_full_disk(self, end: End) -> Restart | Stop:
        if self._full_since_s is None or end.progressed:
            self._full_since_s = end.at_s
        left_s = self._full_since_s + self._limits.disk_full_s - end.at_s
        if left_s <= 0:
            return Stop(reason="disk_full", text=f"the disk has been full for {self._limits.disk_full_s:g} s")
        return self._restart(left_s, for_disk=True)

    def _repeated_failure(self, end: End) -> str | None:
        """Return a text if the command has failed as it did the last time, where it would fail again."""
        if end.exit_code < 0 or end.exit_code == TRY_AGAIN or end.reason in ("hang", "oom", "killed"):
            self._failure = None
            return None
        known = end.exception is not None and end.step is not None
        failure = (end.exception or f"exit code {end.exit_code}", end.step)
        before, self._failure = self._failure, failure
        # Without a step, only a lack of progress tells that it failed at the same place.
        if before != failure or (end.progressed and not known):
            return None
        if end.exception is None:
            return "it has failed twice without saving a checkpoint, and would fail again"
        where = f"at step {end.step}" if end.step is not None else "before the first batch"
        return f"the same exception twice, {where}: {end.exception}"
