"""The records that the rooms exchange: frozen, typed, without I/O.

`checkpoints` has checkpoints and what belongs to them, `runs` has runs and the attempts at them.

May import: frameworks, on first use.
"""

from __future__ import annotations

from ckptstore.records.checkpoints import (
    FINISHED,
    SUFFIXES,
    Checkpoint,
    Claim,
    Epoch,
    Event,
    FinishedEpoch,
    Format,
    Holder,
    Mode,
    NewCheckpoint,
    Problem,
    Published,
    Resumed,
    RetentionProgress,
    RowKey,
    State,
    json_number,
    json_time,
)
from ckptstore.records.runs import END_REASONS, Attempt, EndReason, Run, RunState

__all__ = [
    "END_REASONS",
    "FINISHED",
    "SUFFIXES",
    "Attempt",
    "Checkpoint",
    "Claim",
    "EndReason",
    "Epoch",
    "Event",
    "FinishedEpoch",
    "Format",
    "Holder",
    "Mode",
    "NewCheckpoint",
    "Problem",
    "Published",
    "Resumed",
    "RetentionProgress",
    "RowKey",
    "Run",
    "RunState",
    "State",
    "json_number",
    "json_time",
]
