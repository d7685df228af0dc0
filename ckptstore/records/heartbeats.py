"""Record of where a running training stands, as its heartbeat tells it: frozen, typed, without I/O."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

Phase = Literal["starting", "training", "validating", "saving", "paused", "ended"]
PHASES: tuple[Phase, ...] = get_args(Phase)
Silence = Literal["start", "batch", "validation", "save", "epoch_gap"]
# The silence that belongs to each phase.
SILENCES: dict[Phase, Silence] = {
    "starting": "start",
    "training": "batch",
    "validating": "validation",
    "saving": "save",
    "paused": "epoch_gap",
}
# A training is believed to hang after this many times its longest silence so far, and never before this many seconds;
# and never before the second where it starts, or is in a phase for the first time: loading data and compiling may take
# long, and nothing is known of them when they happen first.
_TIMES_THE_LONGEST = 20.0
_NEVER_BEFORE_S = 600.0
_NEVER_BEFORE_AT_FIRST_S = 1800.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Beat:
    """Where a training stood when it last gave a sign of life.

    Times ending in ``_s`` that are points in time are seconds of the machine's clock since it was started, which counts
    while the machine is suspended and which nobody can set. They mean something on the same `boot_id` only.

    Attributes:
        run: Name of the run.
        attempt: Number of the attempt, or 0 where it has none.
        pid: Id of the training process; it may count in a container's own numbers.
        started_ticks: When that process was started, in the kernel's clock ticks; None where the system does not tell.
        host: Name of the machine.
        boot_id: The kernel's id of this start of the machine; None where the system has none.
        at_s: When it gave the sign.
        written_at: The same in UTC, as text, for people only.
        phase: ``"starting"`` (until its first batch ended: loading, compiling), ``"training"``, ``"validating"``,
            ``"saving"`` (the training waits for a save), ``"paused"`` (between two epochs: callbacks, the next epoch's
            data) or ``"ended"``.
        phase_since_s: When that phase began.
        epoch: Zero-based index of the epoch, or None before the first.
        batch: Zero-based index of its last finished batch, or None before the first.
        step: Finished train batches of the run, or None where unknown.
        epochs: Number of epochs that it trains to, or None where unknown.
        batches: Number of batches in an epoch, or None where unknown.
        steps_per_s: Train batches per second, lately, without validation and saves; None before the first.
        metrics: Its last logs, those that were plain numbers.
        slowest_s: The longest silence between two signs of life so far, in seconds, of each kind that was seen:
            ``"start"``, ``"batch"``, ``"validation"``, ``"save"``, ``"epoch_gap"``; taken over from attempt to attempt.
        dump: Number of the signal that makes the process write the stacks of its threads, or None.
        sparse: True for a loop written by hand that gives signs of life at its saves alone: a silence tells nothing.
    """

    run: str
    attempt: int
    pid: int
    started_ticks: int | None
    host: str
    boot_id: str | None
    at_s: float
    written_at: str
    phase: Phase
    phase_since_s: float
    epoch: int | None = None
    batch: int | None = None
    step: int | None = None
    epochs: int | None = None
    batches: int | None = None
    steps_per_s: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict, hash=False)
    slowest_s: Mapping[str, float] = field(default_factory=dict, hash=False)
    dump: int | None = None
    sparse: bool = False

    def hang_limit_s(self) -> float:
        """Return the silence in seconds after which this training is believed to hang, learnt from those so far.

        It is infinite where a silence tells nothing.

        Example:
            >>> beat = Beat(
            ...     run="digits", attempt=1, pid=7, started_ticks=None, host="", boot_id=None, at_s=9.0,
            ...     written_at="", phase="training", phase_since_s=5.0, slowest_s={"batch": 60.0},
            ... )
            >>> beat.hang_limit_s()
            1200.0
        """
        if self.sparse:
            return math.inf
        silence = SILENCES.get(self.phase)
        longest = 0.0 if silence is None else self.slowest_s.get(silence, 0.0)
        is_first = self.phase == "starting" or not longest
        never_before_s = _NEVER_BEFORE_AT_FIRST_S if is_first else _NEVER_BEFORE_S
        return max(never_before_s, _TIMES_THE_LONGEST * longest)
