"""Records of a store as it is seen from outside at one moment: frozen, typed, without I/O."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from ckptstore.records.checkpoints import Epoch, Mode
from ckptstore.records.runs import Run


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskSpace:
    """Space on the disk of a store.

    Attributes:
        total: Bytes that it has.
        free: Bytes that an ordinary user can still write.
        full_in_s: Seconds until it is full if it goes on filling as it does; None where it does not, or where that has
            not been seen for long enough.
    """

    total: int
    free: int
    full_in_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SavingCost:
    """Cost of a run's latest saves.

    Attributes:
        saves: Number of saves that were counted.
        blocked_s: Mean of the seconds that the training waited for one of them.
        share: Share of the time that the training waited for saves, 0 to 1; None where there was only one save.
    """

    saves: int
    blocked_s: float
    share: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ObservedRun:
    """A run as it is seen from outside.

    Attributes:
        run: The run.
        phase: Its training's phase by the heartbeat, such as ``"training"`` or ``"validating"``; None where it does not
            train.
        phase_s: Seconds since that phase began, or None.
        metrics: Its newest known metrics: of the heartbeat while it trains, else of its newest checkpoint.
        monitor: The metric that its callback watches, and its better direction; None where there is none.
        epochs: Its epochs so far, as recorded; may lag behind, or be empty, until they have been read.
        cost: Cost of its latest saves, or None where there are none.
    """

    run: Run
    phase: str | None = None
    phase_s: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict, hash=False)
    monitor: tuple[str, Mode] | None = None
    epochs: Sequence[Epoch] = ()
    cost: SavingCost | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """A store as it is seen from outside at one moment.

    Attributes:
        store: The store's directory, absolute.
        at: When it was looked at; aware, UTC.
        runs: Its runs; those last seen while there is a problem.
        disk: Space on its disk, or None where unknown.
        problem: Why its runs cannot be seen now, with what to do about it; None where they can.
    """

    store: Path
    at: datetime
    runs: tuple[ObservedRun, ...] = ()
    disk: DiskSpace | None = None
    problem: str | None = None
