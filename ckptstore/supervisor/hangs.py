"""Tells a training that hangs from one that is slow, stopped by a signal, or held by a debugger. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from ckptstore.records import Beat
from ckptstore.system.processes import ProcessState

# Time counts only while the supervisor looks regularly. A machine that was suspended, or a supervisor that was stopped
# together with the training, so counts for one look.
_LONGEST_LOOK_S = 2.0
MIN_LOOK_EVERY_S, MAX_LOOK_EVERY_S = 1.0, 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Hang:
    """A training that hangs.

    Attributes:
        beat: Its last sign of life.
        silent_s: Seconds without another one.
        limit_s: Seconds after which it is believed to hang.
    """

    beat: Beat
    silent_s: float
    limit_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Paused:
    """A training that cannot give a sign of life, since it is kept from running.

    Attributes:
        beat: Its last sign of life.
        by: ``"stopped"`` (by a signal, or frozen) or ``"traced"`` (by a debugger).
    """

    beat: Beat
    by: ProcessState


class HangWatch:
    """Counts for how long a training has given no sign of life, on the clock of the one who looks.

    No clock of the training or of the machine decides, so that none that jumps can end a training.

    Args:
        hang_after_s: Seconds that are allowed after the first batch; None for what the heartbeat has learnt, which
            always counts before it; 0 for any number.
    """

    def __init__(self, hang_after_s: float | None) -> None:
        self._hang_after_s = hang_after_s
        self._last: Beat | None = None
        self._silent_s = 0.0
        self._looked_s: float | None = None
        self._paused: tuple[ProcessState, int] | None = None

    @property
    def look_every_s(self) -> float:
        """Seconds after which to look again."""
        after_s = self._hang_after_s
        return (
            MAX_LOOK_EVERY_S
            if after_s is None
            else min(max(after_s / 10, MIN_LOOK_EVERY_S), MAX_LOOK_EVERY_S)
        )

    def look(self, beat: Beat | None, state: ProcessState, now_s: float) -> Hang | Paused | None:
        """Judge a training by its last sign of life.

        Args:
            beat: The heartbeat; None if the command has none that is held.
            state: The state of the process.
            now_s: The time on the monotonic clock.

        Returns:
            `Hang` once it hangs; `Paused` once, at the second look at which it is kept from running; else None.
        """
        looked_s, self._looked_s = self._looked_s, now_s
        passed_s = 0.0 if looked_s is None else min(now_s - looked_s, _LONGEST_LOOK_S * self.look_every_s)
        if beat is None or beat.phase == "ended" or beat != self._last:
            self._last, self._silent_s, self._paused = beat, 0.0, None
            return None
        if state in ("stopped", "traced"):
            self._silent_s = 0.0
            looks = self._paused[1] + 1 if self._paused is not None and self._paused[0] == state else 1
            self._paused = (state, looks)
            return Paused(beat=beat, by=state) if looks == 2 else None
        self._paused = None
        self._silent_s += passed_s
        limit_s = self._limit_s(beat)
        if limit_s and self._silent_s >= limit_s:
            return Hang(beat=beat, silent_s=self._silent_s, limit_s=limit_s)
        return None

    def _limit_s(self, beat: Beat) -> float:
        given_s, learnt_s = self._hang_after_s, beat.hang_limit_s()
        if given_s is None:
            return learnt_s
        # Loading and compiling take longer than any batch: who gives a limit thinks of batches.
        return max(given_s, learnt_s) if given_s and beat.phase == "starting" else given_s
